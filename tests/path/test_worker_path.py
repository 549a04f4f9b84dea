"""The worker as a process: woken by hints through a real Redis, by polling without them, stopped in good order."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from cmerwatch import blobs, checks, db, embedded, models, partitions, queue
from cmerwatch.settings import Settings
from tests import stack
from tests.worker import images, process, stage

PICTURE = images.encoded(images.scene())


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of these tests' own, since they flush and stop it."""
    program = embedded.redis_program()
    assert program is not None
    home = tmp_path_factory.mktemp("redis")
    server = embedded.Redis(home / "data", home / "log", program)
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def settings(committed: str, own_redis: str, configured: Callable[..., Settings]) -> Iterator[Settings]:
    made = configured(database_url=committed, redis_url=own_redis, decode_processes=1, audit_rate=0)
    made.blob_dir.parent.mkdir(parents=True, exist_ok=True)
    queue.configure(made)
    yield made
    queue.close()


@pytest.fixture
def project(settings: Settings) -> uuid.UUID:
    return stage.new_project()


def _hint() -> None:
    queue.hint("check")


def _is_checked(event: uuid.UUID) -> bool:
    with db.SessionLocal() as session:
        found = session.execute(sa.text("SELECT count(*) FROM checks WHERE event_id = :id"), {"id": event})
        return found.scalar() == 1


def test_a_hint_wakes_the_worker_at_once(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    with process.worker(tmp_path / "log", poll_seconds="3600") as worker:
        worker.wait_ready()
        for _ in range(3):
            event = stage.send(blob_store, project, [PICTURE], "A red circle.")
            _hint()
            stack.wait_until(lambda event=event: _is_checked(event))  # type: ignore[misc]


def test_without_any_hint_polling_finds_the_event(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    with process.worker(tmp_path / "log", poll_seconds="0.1") as worker:
        worker.wait_ready()
        event = stage.send(blob_store, project, [PICTURE], "A red circle.")
        stack.wait_until(lambda: _is_checked(event))


def test_a_worker_outlives_a_flushed_redis_and_garbage_on_its_queue(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    with (
        process.worker(tmp_path / "log", poll_seconds="0.2") as worker,
        redis.Redis.from_url(settings.redis_url) as client,
    ):
        worker.wait_ready()
        client.flushall()
        client.lpush("check", "not a message", b"\x80\x04pickle")
        client.lpush("check", '{"body": "bnVsbA==", "headers": {"task": "os.system"}, "properties": {}}')
        event = stage.send(blob_store, project, [PICTURE], "A red circle.")
        _hint()
        stack.wait_until(lambda: _is_checked(event))
        client.flushall()
        event = stage.send(blob_store, project, [PICTURE], "A red circle.")
        stack.wait_until(lambda: _is_checked(event))
        assert worker.process.poll() is None


def test_a_worker_without_redis_polls(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    nobody = f"redis://127.0.0.1:{embedded.free_port()}/0"
    with process.worker(tmp_path / "log", poll_seconds="0.1", redis_url=nobody) as worker:
        worker.wait_ready()
        event = stage.send(blob_store, project, [PICTURE], "A red circle.")
        stack.wait_until(lambda: _is_checked(event))
        assert worker.stop() == 0


def test_a_folder_carries_hints_where_there_is_no_redis(
    committed: str, configured: Callable[..., Settings], blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    queue.configure(configured(database_url=committed, redis_url="", decode_processes=1))
    project = stage.new_project()
    try:
        with process.worker(tmp_path / "log", poll_seconds="3600") as worker:
            worker.wait_ready()
            event = stage.send(blob_store, project, [PICTURE], "A red circle.")
            _hint()
            stack.wait_until(lambda: _is_checked(event))
    finally:
        queue.close()


def test_sigterm_while_the_consumer_is_still_being_built_ends_a_worker_in_good_order(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    events = [stage.send(blob_store, project, [PICTURE], f"A red circle number {n}.") for n in range(40)]
    with process.worker(tmp_path / "log", batch_size="4", poll_seconds="0.1", TEST_END_EARLY="1") as worker:
        assert worker.process.wait(60) == 0, worker.said
    _nothing_is_left_in_hand(len(events))


def test_sigterm_ends_a_worker_in_good_order(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    with process.worker(tmp_path / "log", batch_size="4", poll_seconds="0.1") as worker:
        worker.wait_ready()
        events = [stage.send(blob_store, project, [PICTURE], f"A red circle number {n}.") for n in range(40)]
        stack.wait_until(lambda: _is_checked(events[0]))
        assert worker.stop() == 0
    _nothing_is_left_in_hand(len(events))


def test_the_clock_beats_and_keeps_partitions_ahead(settings: Settings, tmp_path: Path) -> None:
    _drop_partitions_from(dt.datetime.now(dt.UTC).date() + dt.timedelta(days=3))
    with process.worker(tmp_path / "log") as worker:
        worker.wait_ready()
        stack.wait_until(lambda: _days_ahead() >= partitions.AHEAD_DAYS)

        def has_beaten() -> bool:
            with db.SessionLocal() as session:
                return session.get(models.Heartbeat, "clock") is not None

        stack.wait_until(has_beaten)


def _nothing_is_left_in_hand(sent: int) -> None:
    """What was begun is checked; everything else waits as if nobody had touched it."""
    with db.SessionLocal() as session:
        leased = session.scalar(sa.select(sa.func.count()).where(models.Work.state == models.LEASED))
        counted = session.scalar(sa.select(sa.func.count()).where(models.Work.attempts > 0))
        assert (leased, counted) == (0, 0)
        checked = session.scalar(sa.select(sa.func.count()).select_from(models.Check))
        assert checked == sent - checks.waiting(session)


def _drop_partitions_from(day: dt.date) -> None:
    """As if nobody had made any ahead for days."""
    with db.transaction() as session:
        for table in models.PARTITIONED:
            for ahead in range(partitions.AHEAD_DAYS + 1):
                name = f"{table}_p{day + dt.timedelta(days=ahead):%Y%m%d}"
                session.execute(sa.text(f"DROP TABLE IF EXISTS {name}"))
    assert _days_ahead() == 3


def _days_ahead() -> int:
    with db.SessionLocal() as session:
        return partitions.days_ahead(session.connection())


def _refused(log: Path, **environment: str) -> str:
    refused = process.Worker(log, **environment)
    assert refused.process.wait(60) == 2
    (line,) = refused.said.strip().splitlines()
    return line


def test_the_demo_checker_is_refused_in_production(settings: Settings, tmp_path: Path) -> None:
    line = _refused(tmp_path / "log", environment="production")
    assert "CMERWATCH_ENVIRONMENT" in line
    assert "CMERWATCH_CHECKER" in line


def test_a_database_without_tables_is_refused(
    settings: Settings, servers: stack.Shared, tmp_path: Path, worker_id: str
) -> None:
    name = f"bare_{worker_id}"
    try:
        assert "cmerwatch migrate" in _refused(tmp_path / "log", database_url=servers.empty(name))
    finally:
        servers.drop(name)


def test_an_unknown_checker_is_refused(settings: Settings, tmp_path: Path) -> None:
    assert "colour-blind" in _refused(tmp_path / "log", CMERWATCH_CHECKER="colour-blind:x")
