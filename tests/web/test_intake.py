"""Requests stored together: fewer transactions, and nothing of one request is another's."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import fastapi
import httpx2
import psycopg
import pytest

from cmerwatch import access, blobs, db, errors, events, settings
from cmerwatch_web import app as web
from cmerwatch_web.api import bodies, intake
from tests.stack import wait_until
from tests.web.wire import event, inline, multipart, named, png, sha256

Results = list[intake.Result]


class Full(blobs.FolderStore):
    """A disk with no room for one picture."""

    def put(self, project_id: uuid.UUID, sha256_: str, data: bytes) -> None:
        if data == png(2):
            raise errors.StorageFull
        super().put(project_id, sha256_, data)


@pytest.fixture
def project_id(committed: str) -> uuid.UUID:
    with db.transaction() as session:
        return access.create_project(session, "acme").id


@pytest.fixture
def app(committed: str, configured: Callable[..., settings.Settings]) -> fastapi.FastAPI:
    return web.create_app(configured(database_url=committed))


def sent(*listed: dict[str, Any], images: tuple[bytes, ...] = ()) -> bodies.Sent:
    request = httpx2.Request("POST", "http://test", **multipart(list(listed), *images))
    boundary = request.headers["content-type"].partition("boundary=")[2]
    return bodies.Sent(request.read(), boundary.encode(), time.perf_counter())


def taken(app: fastapi.FastAPI, project_id: uuid.UUID, *requests: bodies.Sent) -> list[Results | BaseException]:
    """What each request is told when they all come at once."""

    async def together() -> list[Results | BaseException]:
        line: intake.Intake = app.state.intake
        return await asyncio.gather(*(line.take(project_id, one) for one in requests), return_exceptions=True)

    return asyncio.run(together())


def statuses(outcome: Results | BaseException) -> list[str]:
    assert isinstance(outcome, list), outcome
    return [result.status if isinstance(result, events.Ingested) else result.code for result in outcome]


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def test_requests_that_come_together_share_transactions(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    requests = [sent(event(event_id=f"e{i}", images=[inline(png(i))])) for i in range(20)]
    outcomes = taken(app, project_id, *requests)
    assert [statuses(outcome) for outcome in outcomes] == [["accepted"]] * 20
    told = [outcome[0].id for outcome in outcomes if isinstance(outcome, list)]  # type: ignore[union-attr]
    with psycopg.connect(committed) as connection:
        stored = connection.execute("SELECT id, event_key, xmin::text FROM events ORDER BY id").fetchall()
    assert {key: id for id, key, _ in stored} == {f"e{i}": id for i, id in enumerate(told)}  # each was told its own
    assert len({transaction for _, _, transaction in stored}) == 2  # 16, which is the most, and the other 4


def test_a_request_that_makes_no_sense_is_refused_alone(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    broken = bodies.Sent(b"{", None, time.perf_counter())
    good, bad, mixed = taken(app, project_id, sent(event()), broken, sent(event(output=""), event()))
    assert statuses(good) == ["accepted"]
    assert isinstance(bad, errors.Invalid)
    assert statuses(mixed) == ["invalid", "accepted"]
    assert count(committed, "events") == 2


def test_a_retry_beside_the_first_try_is_its_duplicate(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    same = sent(event(event_id="e1"))
    outcomes = taken(app, project_id, same, same, sent(event(event_id="e1", output="Another.")))
    assert [statuses(outcome) for outcome in outcomes] == [["accepted"], ["duplicate"], ["conflict"]]
    assert count(committed, "events") == 1


def test_what_the_database_cannot_hold_harms_no_other_request(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "needs_cleaning", lambda raw: False)  # or the NUL would never get that far
    outcomes = taken(app, project_id, sent(event()), sent(event(), event(output="\0")), sent(event()))
    assert [statuses(outcome) for outcome in outcomes] == [["accepted"], ["accepted", "invalid"], ["accepted"]]
    assert count(committed, "events") == 3


def test_a_picture_comes_with_one_request_and_counts_for_the_other(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    """Also where the event that brought it is refused: what an accepted event names is stored, and nothing else."""
    assert statuses(taken(app, project_id, sent(event(event_id="used")))[0]) == ["accepted"]
    brings = sent(event(event_id="used", images=[named(png(7))]), images=(png(7),))
    names = sent(event(images=[named(png(7))]))
    assert [statuses(outcome) for outcome in taken(app, project_id, brings, names)] == [["conflict"], ["accepted"]]
    assert app.state.blobs.get(project_id, sha256(png(7))) == png(7)
    assert count(committed, "images") == 2


def test_a_disk_that_fails_under_one_picture_answers_all_and_stores_nothing(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    app.state.blobs = Full(app.state.settings.blob_dir)
    outcomes = taken(app, project_id, *(sent(event(images=[inline(png(i))])) for i in range(4)))
    assert [type(outcome) for outcome in outcomes] == [errors.StorageFull] * 4
    assert count(committed, "events") == 0


def test_a_project_whose_rows_are_locked_holds_up_no_other(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    with db.transaction() as session:
        other = access.create_project(session, "other").id

    async def one_of_each(holder: psycopg.Connection[Any]) -> None:
        line: intake.Intake = app.state.intake
        held = [asyncio.create_task(line.take(project_id, sent(event(event_id="e1")))) for _ in range(60)]
        free = await asyncio.wait_for(line.take(other, sent(event(event_id="e1"))), 60)
        assert statuses(free) == ["accepted"]
        assert not any(task.done() for task in held)
        holder.rollback()
        told = [statuses(results)[0] for results in await asyncio.gather(*held)]
        assert (told.count("accepted"), told.count("duplicate")) == (1, 59)

    with psycopg.connect(committed) as holder:  # as another process does that has stored this event, uncommitted yet
        holder.execute(
            "INSERT INTO ingest_keys (project_id, key_hash, body_hash, event_id) "
            "VALUES (%s, sha256('e1'), '', gen_random_uuid())",
            (project_id,),
        )
        asyncio.run(one_of_each(holder))


def test_a_sender_who_leaves_takes_no_other_with_it(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    async def leaving() -> Results:
        line: intake.Intake = app.state.intake
        gone = asyncio.create_task(line.take(project_id, sent(event())))
        stays = asyncio.create_task(line.take(project_id, sent(event())))
        await asyncio.sleep(0)  # both wait in line
        gone.cancel()
        return await stays

    assert statuses(asyncio.run(leaving())) == ["accepted"]
    wait_until(lambda: count(committed, "events") == 2)


def test_one_that_fails_beside_what_the_database_cannot_hold_hides_no_commit_of_another(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.state.blobs = Full(app.state.settings.blob_dir)
    monkeypatch.setattr(bodies, "needs_cleaning", lambda raw: False)  # or the NUL would never get that far
    requests = sent(event()), sent(event(output="\0")), sent(event(images=[inline(png(2))])), sent(event())
    stored, poison, full, last = taken(app, project_id, *requests)
    assert [statuses(outcome) for outcome in (stored, poison, last)] == [["accepted"], ["invalid"], ["accepted"]]
    assert isinstance(full, errors.StorageFull)
    assert count(committed, "events") == 2


def test_whoever_comes_in_the_moment_that_all_transactions_end_is_served(
    app: fastapi.FastAPI, project_id: uuid.UUID, committed: str
) -> None:
    """The loop is busy until all of them have ended, so that it hears of their ends in one turn."""

    async def stored(holder: psycopg.Connection[Any], turns: int) -> list[Results]:
        line = intake.Intake(app.state)
        keeping, ended = line._keep, list[None]()

        def keep(project_id: uuid.UUID, sent: Sequence[bodies.Sent]) -> list[intake.Outcome]:
            try:
                return keeping(project_id, sent)
            finally:
                ended.append(None)

        line._keep = keep  # type: ignore[method-assign]
        told = []
        for _ in range(intake.AT_ONCE):
            told.append(asyncio.create_task(line.take(project_id, sent(event(event_id=f"e{turns}")))))
            await asyncio.sleep(0)  # here it joins the line,
            await asyncio.sleep(0)  # and here it is taken off it
        holder.rollback()
        wait_until(lambda: len(ended) == intake.AT_ONCE)
        for _ in range(turns):
            await asyncio.sleep(0)
        told.append(asyncio.create_task(line.take(project_id, sent(event()))))
        return await asyncio.wait_for(asyncio.gather(*told), 20)

    for turns in range(4):
        with psycopg.connect(committed) as holder:
            holder.execute(
                "INSERT INTO ingest_keys (project_id, key_hash, body_hash, event_id) "
                "VALUES (%s, sha256(%s), '', gen_random_uuid())",
                (project_id, f"e{turns}".encode()),
            )
            outcomes = asyncio.run(stored(holder, turns))
        assert sorted(statuses(one)[0] for one in outcomes) == ["accepted"] * 2 + ["duplicate"] * 4
