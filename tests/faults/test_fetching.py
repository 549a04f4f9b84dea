"""Workers killed while they fetch pictures that events name by address, with no broker anywhere: nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import sqlalchemy as sa

from cmerwatch import db, events, ledger, models, settings
from tests import factories, receiver, stack
from tests.receiver import Got, Receiver
from tests.worker import images, process, stage

pytestmark = pytest.mark.faults

KILLS, EVENTS = 6, 40


@pytest.fixture
def server(committed: str, configured: Callable[..., settings.Settings]) -> Iterator[Receiver]:
    """And a broker that is down: a port that nobody listens on."""
    with receiver.receiver() as made:
        place = f"127.0.0.1:{made.port}"
        made_settings = configured(
            database_url=committed,
            redis_url=f"redis://127.0.0.1:{receiver.refusing_port()}/0",
            fetch_images=place,
            allow_private_targets=place,
            poll_seconds="0.1",
            audit_rate=0,
            decode_processes=1,
        )
        made_settings.blob_dir.parent.mkdir(parents=True, exist_ok=True)
        yield made


class Killer:
    """Serves a picture, but first, or just after, kills the worker that asks, a few times."""

    def __init__(self) -> None:
        self.pid, self.kills = 0, 0
        self._lock, self._rng = threading.Lock(), random.Random(23)

    def answer(self, handler: BaseHTTPRequestHandler, got: Got) -> None:
        is_before = self._rng.random() < 0.5
        picture = images.encoded(images.scene())
        if not is_before:
            receiver.reply(handler, 200, picture)
        if self._rng.random() < 0.3:
            self._kill()
        if is_before:
            receiver.reply(handler, 200, picture)

    def _kill(self) -> None:
        with self._lock:
            if self.pid and self.kills < KILLS:
                os.kill(self.pid, signal.SIGKILL)
                self.pid, self.kills = 0, self.kills + 1


def send(project_id: uuid.UUID, url: str) -> uuid.UUID:
    with db.transaction() as session:
        made = factories.new_event(urls=((0, url),), output="A red circle.")
        return events.ingest(session, project_id, made).id


def expire() -> None:
    """As if a minute had passed: leases of the dead run out, and what failed is due."""
    with db.transaction() as session:
        session.execute(
            sa.text(
                "UPDATE image_fetches SET next_at = now(), lease_until = now() - interval '1 second' "
                "WHERE state = 'waiting'"
            )
        )
    stage.make_ready()


def is_done(event_ids: list[uuid.UUID]) -> bool:
    with db.SessionLocal() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(models.Check)) == len(event_ids)


def test_workers_killed_while_they_fetch_lose_no_event_and_count_none_twice(server: Receiver, tmp_path: Path) -> None:
    project_id, killer = stage.new_project(), Killer()
    server.answer = killer.answer
    ids = [send(project_id, f"{server.url}/{number}?key=secret") for number in range(EVENTS)]
    for life in range(KILLS + 1):
        expire()
        with process.worker(tmp_path / f"log-{life}", poll_seconds="0.1") as worker:
            killer.pid = worker.process.pid
            stack.wait_until(lambda w=worker: w.process.poll() is not None or is_done(ids), 60)  # type: ignore[misc]
        assert "secret" not in worker.said
        if is_done(ids):
            break
    assert killer.kills >= 2
    with db.SessionLocal() as session:
        outcomes = session.execute(sa.select(models.Check.outcome, sa.func.count()).group_by(models.Check.outcome))
        assert [tuple(row) for row in outcomes] == [("scored", EVENTS)]
        assert session.scalar(sa.select(sa.func.count()).select_from(models.Work)) == 0
        states = session.scalars(sa.select(models.ImageFetch.state)).all()
        assert set(states) == {"fetched"}
        first = session.scalars(sa.select(sa.func.min(models.Event.received_at))).one()
        last = session.scalars(sa.select(sa.func.max(models.Event.received_at))).one()
        hours = ledger.hours(session, project_id, first, last)
        assert [hour.difference for hour in hours] == [0] * len(hours)
