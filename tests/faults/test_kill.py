"""Workers killed under load: every event is checked exactly once, and what kills a worker ends alone.

`make test` runs a short edition; `make faults` the full one: 20 000 events, a lease of 30 seconds.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from cmerwatch import blobs, checks, db, embedded, events, ledger, queue, rollups
from cmerwatch.settings import Settings
from cmerwatch.shapes import Slice
from tests import stack
from tests.worker import images, process, stage
from toy_vlm import captions, scenes

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Edition:
    events: int
    lease_seconds: int
    batch_size: int
    limit_seconds: float


LONG = os.environ.get("CMERWATCH_LONG_FAULTS") == "1"
EDITION = Edition(20_000, 30, 256, 1500) if LONG else Edition(4_000, 3, 32, 240)
WORKERS = 4
PICTURES = 200


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[str]:
    program = embedded.redis_program()
    assert program is not None
    server = embedded.Redis(tmp_path / "redis", tmp_path / "redis.log", program)
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def settings(committed: str, own_redis: str, configured: Callable[..., Settings]) -> Iterator[Settings]:
    made = configured(
        database_url=committed,
        redis_url=own_redis,
        lease_seconds=EDITION.lease_seconds,
        batch_size=EDITION.batch_size,
        decode_processes=1,
    )
    queue.configure(made)
    yield made
    queue.close()


def _send_drawn_scenes(store: blobs.BlobStore, project_id: uuid.UUID, n: int) -> None:
    """n events about real pictures, over 12 slices, some wrong and a few with nothing to check."""
    rng = random.Random(11)
    drawn = [scenes.sample(rng) for _ in range(PICTURES)]
    with db.transaction() as session:
        hashes = [events.store_image(session, store, project_id, images.encoded(scenes.render(s))) for s in drawn]
    for start in range(0, n, 500):
        with db.transaction() as session:
            for i in range(start, min(start + 500, n)):
                picture = rng.randrange(PICTURES)
                told = picture if rng.random() < 0.9 else rng.randrange(PICTURES)
                prompt_type = ("identify", "count", "describe")[i % 3]
                event = events.NewEvent(
                    slice=Slice(endpoint=f"/e{i % 4}", prompt_type=prompt_type),
                    images=(hashes[picture],),
                    output=captions.answer(drawn[told], prompt_type),
                    confidence=rng.random(),
                )
                events.ingest(session, project_id, event)


class Crew:
    """Worker processes that are started again whenever one is gone, as a supervisor would."""

    def __init__(self, folder: Path, size: int, *, own_checker: bool = False, **environment: str) -> None:
        self._names = (folder / f"worker-{n}.log" for n in itertools.count())
        self._own_checker, self._environment = own_checker, environment
        self.workers = [self._start() for _ in range(size)]
        self.deaths = 0

    def _start(self) -> process.Worker:
        return process.Worker(next(self._names), own_checker=self._own_checker, **self._environment)

    def kill_one(self, rng: random.Random) -> bool:
        """One of those that work. On a machine so busy that a start takes longer than the turns of the killer, nobody
        would ever get as far as working, so one of the others goes on."""
        working = [one for one in self.workers if one.process.poll() is None and process.READY in one.said]
        if len(working) < 2:
            return False
        rng.choice(working).kill()
        return True

    def mend(self) -> None:
        for i, worker in enumerate(self.workers):
            if worker.process.poll() is not None:
                self.deaths += 1
                self.workers[i] = self._start()

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.wait(60)


def _count(statement: str) -> int:
    with db.SessionLocal() as session:
        return int(session.execute(sa.text(statement)).scalar_one())


def _waiting() -> int:
    with db.SessionLocal() as session:
        return checks.waiting(session)


def _prove_exactly_once(project_id: uuid.UUID, n: int) -> None:
    now = dt.datetime.now(dt.UTC)
    with db.SessionLocal() as session:
        rows = ledger.hours(session, project_id, now - dt.timedelta(hours=3), now + dt.timedelta(hours=1))
        assert [row.difference for row in rows] == [0] * len(rows)
        totals = ledger.totals(rows)
        assert (totals["accepted"], totals["waiting"], totals["quarantined"]) == (n, 0, 0)
        assert rollups.differences(session, project_id) == []
    assert _count("SELECT count(*) FROM checks") == n
    assert _count("SELECT count(DISTINCT event_id) FROM checks") == n
    assert _count("SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM checks c WHERE c.event_id = e.id)") == 0
    assert _count("SELECT sum(scored + unscorable + invalid_image + model_error) FROM rollups_5m") == n
    assert _count("SELECT count(*) FROM work") == 0


@pytest.mark.timeout(EDITION.limit_seconds + 300)
def test_workers_killed_every_second_lose_nothing_and_count_nothing_twice(
    settings: Settings, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    project = stage.new_project()
    _send_drawn_scenes(blob_store, project, EDITION.events)
    rng, kills, kills_in_work, flushes = random.Random(3), 0, 0, 0
    crew = Crew(tmp_path, WORKERS)
    end = time.monotonic() + EDITION.limit_seconds
    try:
        while (left := _waiting()) > 0:
            assert time.monotonic() < end, f"{left} events still wait after {kills} kills"
            queue.hint("check")
            threading.Event().wait(1)  # the scenario: one kill a second
            if flushes < 2 and left < EDITION.events * (0.9, 0.5)[flushes]:
                with redis.Redis.from_url(settings.redis_url) as client:
                    client.flushall()
                flushes += 1
            if crew.kill_one(rng):
                kills += 1
                kills_in_work += _count("SELECT count(*) FROM work WHERE state = 1") > 0
            crew.mend()
    finally:
        crew.stop()
    said = f"{EDITION.events} events, {kills} kills, {kills_in_work} of them during work, {flushes} flushes"
    print(said)  # noqa: T201 - the figure, shown by `make faults ARGS=-s`
    assert kills_in_work >= 5
    assert flushes == 2
    _prove_exactly_once(project, EDITION.events)


def test_an_event_that_kills_its_worker_is_quarantined_alone_and_replays_once_mended(
    settings: Settings, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    project = stage.new_project()
    picture = images.encoded(images.scene())
    healthy = [stage.send(blob_store, project, [picture], f"A red circle number {n}.") for n in range(40)]
    poison = stage.send(blob_store, project, [picture], "A red poison circle.")
    healthy += [stage.send(blob_store, project, [picture], f"A blue square number {n}.") for n in range(40)]
    crew = Crew(tmp_path, 1, own_checker=True, TEST_POISON="poison", lease_seconds="1", poll_seconds="0.2")
    try:

        def is_settled() -> bool:
            crew.mend()
            return _waiting() == 0

        stack.wait_until(is_settled, 120)
        crew.mend()
        assert 1 <= crew.deaths <= checks.MAX_ATTEMPTS
    finally:
        crew.stop()
    assert {stage.check_of(event)["outcome"] for event in healthy} == {"scored"}
    with db.SessionLocal() as session:
        (quarantined,) = checks.quarantined(session, project)
    assert (quarantined.event_id, quarantined.attempts) == (poison, checks.MAX_ATTEMPTS)
    with db.transaction() as session:
        assert checks.replay(session, project) == 1
    with process.worker(tmp_path / "mended", poll_seconds="0.2"):
        stack.wait_until(lambda: _waiting() == 0, 60)
    assert stage.check_of(poison)["outcome"] == "scored"
    _prove_exactly_once(project, len(healthy) + 1)
