"""How Postgres goes about the hot statements: by index, and in the partitions of the days asked for only."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import checks, event_views, fetches, ledger, models
from cmerwatch.event_views import EventFilter
from tests import factories

WAITING = 20_000


def plan(session: orm.Session, statement: str, **values: Any) -> str:
    return "\n".join(session.scalars(sa.text(f"EXPLAIN (COSTS OFF) {statement}"), values))


def days(plan: str, table: str) -> set[str]:
    return set(re.findall(rf" on {table}_p(\d{{8}})", plan))


@pytest.fixture
def crowd(session: orm.Session, project: models.Project) -> None:
    """Much waiting work, as statistics know it."""
    session.execute(
        sa.text(
            "INSERT INTO work (event_id, project_id, bucket) "
            "SELECT gen_random_uuid(), :project, now() FROM generate_series(1, :n)"
        ),
        {"project": project.id, "n": WAITING},
    )
    session.execute(sa.text("ANALYZE work"))


def test_claiming_and_looking_for_work_never_read_the_whole_queue(session: orm.Session, crowd: None) -> None:
    claim = plan(session, checks._CLAIM.text, n=256, token=uuid.uuid4(), lease=30)
    assert "Seq Scan on work" not in claim
    assert "ix_work" in claim
    read = session.execute(
        sa.text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) {checks._CLAIM.text}"),
        {"n": 256, "token": uuid.uuid4(), "lease": 30},
    ).scalar_one()
    most = max(node["Actual Rows"] for node in nodes(read[0]["Plan"]))
    assert most == 256, "a batch reads a batch"


@pytest.fixture
def waiting_for_pictures(session: orm.Session, project: models.Project) -> None:
    """Events that came first, each waiting for a picture, and one that is ready, behind them all."""
    made = "SELECT gen_random_uuid() AS id FROM generate_series(1, :n)"
    session.execute(
        sa.text(
            f"WITH made AS ({made}), work AS (INSERT INTO work (event_id, project_id, bucket, state) "
            f"SELECT id, :project, now(), {models.READY} FROM made) "
            "INSERT INTO image_fetches (event_id, position, project_id, url, host) "
            "SELECT id, 0, :project, 'https://cdn.example.com/' || id, 'cdn.example.com' FROM made"
        ),
        {"project": project.id, "n": WAITING},
    )
    session.execute(fetches._WAIT, {"ids": session.scalars(sa.select(models.Work.event_id)).all()})
    last = uuid.UUID(int=2**128 - 1)
    session.add(models.Work(event_id=last, project_id=project.id, bucket=dt.datetime.now(dt.UTC)))
    session.flush()
    session.execute(sa.text("ANALYZE work"))
    session.execute(sa.text("ANALYZE image_fetches"))


def test_a_claim_steps_over_no_event_that_waits_for_pictures(session: orm.Session, waiting_for_pictures: None) -> None:
    values = {"n": 1, "token": uuid.uuid4(), "lease": 30}
    read = session.execute(
        sa.text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) {checks._CLAIM.text}"), values
    ).scalar_one()
    found = nodes(read[0]["Plan"])
    assert max(node["Actual Rows"] for node in found) == 1
    assert sum(node.get("Rows Removed by Filter", 0) for node in found) == 0


def test_a_fetcher_never_reads_all_that_waits(session: orm.Session, waiting_for_pictures: None) -> None:
    values = {"n": 4, "token": uuid.uuid4(), "lease": 60, "again": False}
    values |= {"busy": ["elsewhere.example.com"], "full": [uuid.uuid4()]}
    read = session.execute(
        sa.text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) {fetches._CLAIM.text}"), values
    ).scalar_one()
    found = nodes(read[0]["Plan"])
    assert "Seq Scan" not in {node["Node Type"] for node in found}
    assert sum(node.get("Rows Removed by Filter", 0) for node in found) == 0


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in nodes(child))]


def test_a_batch_is_read_from_the_partitions_of_its_days(session: orm.Session, project: models.Project) -> None:
    made = factories.ingest_many(session, project.id, 3)
    today = f"{dt.datetime.now(dt.UTC):%Y%m%d}"
    values = {"ids": made, "low": made[0], "high": made[-1]}
    assert days(plan(session, checks._EVENTS.text, **values), "events") <= {today}
    assert days(plan(session, checks._BODIES.text, **values), "event_bodies") <= {today}


def test_an_hour_of_the_ledger_reads_one_day(session: orm.Session, project: models.Project) -> None:
    start = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    end = start + dt.timedelta(hours=1)
    values = {"project": project.id, "start": start, "end": end}
    assert days(plan(session, ledger._sql(start, end), **values), "events") == {f"{start:%Y%m%d}"}


def test_the_ledger_counts_each_hour_by_index_alone_and_several_at_once(
    session: orm.Session, project: models.Project
) -> None:
    """Of tables as empty as a test's nothing pays: what is asked is whether rows can be left unread at all, and whether
    the hours can be shared out."""
    settings = ("enable_seqscan", "enable_bitmapscan", "parallel_setup_cost", "parallel_tuple_cost")
    for name in settings:
        session.execute(sa.text(f"SET LOCAL {name} = 0"))
    start = dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    end = start + dt.timedelta(days=1)
    values = {"project": project.id, "start": start, "end": end}
    found = plan(session, ledger._sql(start, end), **values)
    assert found.count("Index Only Scan using events_p") == 24
    assert "Scan on events_p" not in found, "the rows themselves are not read"
    assert "Parallel Append" in found


def test_a_window_of_events_reads_its_days(session: orm.Session, project: models.Project) -> None:
    start = dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    wanted = EventFilter(start=start, end=start + dt.timedelta(days=1))
    values = {"project": project.id, "limit": 51, **event_views._values(wanted, None)}
    found = plan(session, event_views._sql(wanted, False), **values)
    assert days(found, "events") == {f"{start:%Y%m%d}"}


def test_an_event_is_found_by_its_senders_id_without_a_look_at_the_others(
    session: orm.Session, project: models.Project
) -> None:
    """The days of a test are nearly empty, where reading all of one may cost no more than its index: what is asked is
    whether an index leads there, and a scan that is all there is would be shown all the same."""
    session.execute(sa.text("SET LOCAL enable_seqscan = off"))
    wanted = EventFilter(event_key="mine")
    values = {"project": project.id, "limit": 51, **event_views._values(wanted, None)}
    found = plan(session, event_views._sql(wanted, False), **values)
    assert "pk_ingest_keys" in found
    for table in ("events", "event_bodies", "checks"):
        assert f"Seq Scan on {table}_p" not in found
