"""Day partitions: made once whoever asks, bounded by ids, and never in the way of those who read and write."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from cmerwatch import db, ids, models, partitions
from tests import factories

DAY = dt.date(2031, 5, 6)


@pytest.fixture
def own_engine(committed: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(committed, pool_size=8)
    yield engine
    engine.dispose()


def made(engine: sa.Engine) -> set[str]:
    with engine.connect() as connection:
        return {name for name in partitions._existing(connection) if "_p2031" in name}


def test_each_day_gets_one_partition_of_every_table_and_asking_again_none(own_engine: sa.Engine) -> None:
    assert partitions.ensure(own_engine, DAY, DAY + dt.timedelta(days=1)) == 2 * len(models.PARTITIONED)
    assert made(own_engine) == {f"{table}_p{day}" for table in models.PARTITIONED for day in ("20310506", "20310507")}
    assert partitions.ensure(own_engine, DAY, DAY + dt.timedelta(days=1)) == 0
    assert partitions.ensure(own_engine, DAY, DAY + dt.timedelta(days=2)) == len(models.PARTITIONED)
    assert partitions.ensure(own_engine, DAY, DAY - dt.timedelta(days=1)) == 0


def test_makers_may_race(own_engine: sa.Engine) -> None:
    start = threading.Barrier(4)

    def make() -> int:
        start.wait()
        return partitions.ensure(own_engine, DAY, DAY + dt.timedelta(days=3))

    with ThreadPoolExecutor(4) as pool:
        counts = [future.result() for future in [pool.submit(make) for _ in range(4)]]
    assert sum(counts) == 4 * len(models.PARTITIONED)


def test_readers_and_writers_of_other_days_are_neither_waited_for_nor_held_up(committed: str) -> None:
    """A slow page of the console must not stop ingest when the next day's partitions are made."""
    engine = sa.create_engine(committed)
    with db.SessionLocal() as slow:
        project_id = factories.project(slow)
        factories.check_all(slow)
        factories.ingest(slow, project_id)
        for table in models.PARTITIONED:
            slow.execute(sa.text(f"SELECT count(*) FROM {table}"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(partitions.ensure, engine, DAY, DAY).result(8) == len(models.PARTITIONED)
        slow.commit()
    engine.dispose()


def test_a_partition_has_every_index_and_check_of_its_table(own_engine: sa.Engine) -> None:
    partitions.ensure(own_engine, DAY, DAY)
    with own_engine.connect() as connection:
        inspector = sa.inspect(connection)
        for table in models.PARTITIONED:
            part = f"{table}_p20310506"
            assert (
                inspector.get_pk_constraint(part)["constrained_columns"]
                == (inspector.get_pk_constraint(table)["constrained_columns"])
            )
            assert len(inspector.get_indexes(part)) == len(inspector.get_indexes(table))
            assert len(inspector.get_check_constraints(part)) == len(inspector.get_check_constraints(table))
        loose = sa.text(
            "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
            "WHERE c.relname LIKE '%_p20310506' AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = i.indexrelid)"
        )
        assert connection.scalar(loose) == 0, "an index of its own would be built twice when one is added"


def test_ids_of_a_day_from_its_first_to_its_last_millisecond_lie_in_its_partition(own_engine: sa.Engine) -> None:
    partitions.ensure(own_engine, DAY, DAY)
    start = dt.datetime.combine(DAY, dt.time(), dt.UTC)
    inside = [ids.first(start), ids.uuid7(start), ids.uuid7(start + dt.timedelta(days=1, microseconds=-1))]
    outside = [ids.uuid7(start - dt.timedelta(milliseconds=1)), ids.first(start + dt.timedelta(days=1))]
    with own_engine.connect() as connection:
        bounds = connection.scalar(
            sa.text("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'events_p20310506'")
        )
    low, high = (part for part in (bounds or "").split("'") if "-" in part)
    assert all(low <= str(value) < high for value in inside)
    assert not any(low <= str(value) < high for value in outside)


def test_the_days_ahead_are_counted_up_to_the_first_gap(own_engine: sa.Engine) -> None:
    today = dt.datetime.now(dt.UTC).date()
    with own_engine.begin() as connection:
        ahead = partitions.days_ahead(connection)
        assert ahead == partitions.AHEAD_DAYS + 1, "today counts"
        gone = today + dt.timedelta(days=3)
        connection.execute(sa.text(f"DROP TABLE checks_p{gone:%Y%m%d}"))
        assert partitions.days_ahead(connection) == 3
    assert partitions.ensure_ahead(own_engine) == 1
    with own_engine.connect() as connection:
        assert partitions.days_ahead(connection) == ahead


def test_yesterday_is_kept_ready_for_a_clock_that_jumps_back(own_engine: sa.Engine) -> None:
    yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    with own_engine.connect() as connection:
        assert f"events_p{yesterday:%Y%m%d}" in partitions._existing(connection)
