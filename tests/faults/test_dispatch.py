"""The sender killed between sending and recording, over and over, with no broker anywhere: nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook

from cmerwatch import channels, db, models, settings
from cmerwatch import deliveries as deliveries_module
from cmerwatch.notify import pagerduty
from tests import alerting, factories, receiver, stack
from tests.receiver import Got, Receiver
from tests.worker import process

pytestmark = pytest.mark.faults

KILLS = 50
LEASE_SECONDS = 1.0
CHANNELS, ALERTS = 20, 2  # half of the channels webhooks, half PagerDuty; alerts of each


@pytest.fixture
def sink(committed: str, configured: Callable[..., settings.Settings]) -> Iterator[Receiver]:
    """And a broker that is down: a port that nobody listens on."""
    with receiver.receiver() as made:
        configured(
            database_url=committed,
            redis_url=f"redis://127.0.0.1:{receiver.refusing_port()}/0",
            allow_private_targets=f"127.0.0.1:{made.port}",
        )
        yield made


class Killer:
    """Answers as the services do, but for the chosen requests, whose sender is killed first (or just after)."""

    def __init__(self, sink: Receiver, pid_file: Path) -> None:
        self._pid_file, self._lock, self._rng = pid_file, threading.Lock(), random.Random(17)
        self.before, self.after = set[str](), 0
        self._last = 0
        sink.answer = self.answer

    @property
    def kills(self) -> int:
        return len(self.before) + self.after

    def answer(self, handler: BaseHTTPRequestHandler, got: Got) -> None:
        status = 202 if "webhook-id" not in got.headers else 204
        with self._lock:
            choice = self._rng.random()
            if choice < 0.6 and self._strike():
                self.before.add(identity(got))
                return  # it never hears that the message arrived
            receiver.reply(handler, status)
            if choice > 0.9 and self._strike():
                self.after += 1

    def _strike(self) -> bool:
        """Kill the sender, unless this request's was killed already."""
        pid = int(self._pid_file.read_text())
        if self.kills >= KILLS or pid == self._last:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._last = pid
        return True


def identity(got: Got) -> str:
    """What the receiver knows a message by: the id, and for PagerDuty its key and action."""
    if "webhook-id" in got.headers:
        return got.headers["webhook-id"]
    event = json.loads(got.body)
    return f"{event['dedup_key']} {event['event_action']}"


@contextlib.contextmanager
def sending(folder: Path) -> Iterator[Path]:
    """Senders under a supervisor; yields the file that names the one that lives."""
    pid_file = folder / "pid"
    roots = [str(process.ROOT), str(process.ROOT / "worker")]
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "tests.worker.dispatcher", str(pid_file), str(LEASE_SECONDS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
        cwd=process.ROOT,
    )
    try:
        yield pid_file
    finally:
        supervisor.terminate()
        supervisor.wait(60)


def lay(sink: Receiver) -> tuple[uuid.UUID, list[tuple[uuid.UUID, uuid.UUID]]]:
    """A project, its channels, and a firing of each alert; returns (channel, alert) of each."""
    pairs = []
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        for number in range(CHANNELS):
            channel = alerting.channel(session, project_id, "webhook" if number % 2 else "pagerduty", sink.url)
            for _ in range(ALERTS):
                alert = alerting.alert(session, project_id)
                alerting.message(session, channel, alert)
                pairs.append((channel.id, alert.id))
    return project_id, pairs


def resolve(pairs: list[tuple[uuid.UUID, uuid.UUID]]) -> None:
    with db.transaction() as session:
        for channel_id, alert_id in pairs:
            channel = session.get_one(models.Channel, channel_id)
            alerting.message(session, channel, session.get_one(models.Alert, alert_id), "resolved")


def rows() -> list[models.Delivery]:
    with db.SessionLocal() as session:
        return list(session.scalars(sa.select(models.Delivery)))


def test_fifty_kills_between_sending_and_recording_lose_nothing(sink: Receiver, tmp_path: Path) -> None:
    _, pairs = lay(sink)
    killer = Killer(sink, tmp_path / "pid")
    with sending(tmp_path):
        stack.wait_until(lambda: killer.kills >= KILLS // 2, 240)
        resolve(pairs)
        stack.wait_until(lambda: all(row.state in ("delivered", "superseded") for row in rows()), 240)
        spare = iter(range(100))
        while killer.kills < KILLS:  # all was delivered before the last kill: there must be more to send
            lay_more(pairs[next(spare) % len(pairs)][0])
            stack.wait_until(lambda: all(row.state in ("delivered", "superseded") for row in rows()), 60)

    deliveries = rows()
    assert killer.kills == KILLS
    assert killer.before
    assert {row.state for row in deliveries} <= {"delivered", "superseded"}
    told = defaultdict[str, list[bytes]](list)
    for got in sink.got:
        told[identity(got)].append(got.body)
    for row in deliveries:
        if row.state == "delivered" and row.channel_id in webhooks():
            assert str(row.id) in told
    assert all(len(set(bodies)) == 1 for bodies in told.values()), "a repeat must be the same message"
    again = [one for one in killer.before if len(told[one]) > 1]
    ended = {str(row.id) for row in deliveries if row.state == "superseded"}
    assert set(killer.before) - set(again) <= ended | superseded_triggers(deliveries)
    assert_nothing_fires_after_its_end(sink.got)


def lay_more(channel_id: uuid.UUID) -> None:
    with db.transaction() as session:
        channel = session.get_one(models.Channel, channel_id)
        alerting.message(session, channel, alerting.alert(session, channel.project_id))


def webhooks() -> set[uuid.UUID]:
    with db.SessionLocal() as session:
        return set(session.scalars(sa.select(models.Channel.id).where(models.Channel.kind == "webhook")))


def superseded_triggers(deliveries: list[models.Delivery]) -> set[str]:
    """Triggers that need no repeat, because their resolve took their place."""
    gone = [row for row in deliveries if row.state == "superseded"]
    return {f"{pagerduty.dedup_key(deliveries_module.notice_of(row.notice))} trigger" for row in gone}


def assert_nothing_fires_after_its_end(arrived: list[Got]) -> None:
    ended = set[str]()
    for got in arrived:
        event: dict[str, Any] = json.loads(got.body)
        if "webhook-id" in got.headers:
            key, is_end = event["data"]["alert_id"], event["type"] == "alert.resolved"
        else:
            key, is_end = event["dedup_key"], event["event_action"] == "resolve"
        assert is_end or key not in ended
        if is_end:
            ended.add(key)


def test_a_real_worker_sends_alerts_and_tests_while_the_broker_is_down(sink: Receiver, tmp_path: Path) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        channel = alerting.channel(session, project_id, "webhook", sink.url)
        secret = alerting.opened(channel)["secret"]
        fired = alerting.message(session, channel, alerting.alert(session, project_id)).id
        tested = channels.test(session, alerting.principal(project_id), channel.id).id
    with process.worker(tmp_path / "worker.log") as worker:
        worker.wait_ready()
        stack.wait_until(lambda: {row.state for row in rows()} == {"delivered"}, 30)
    assert {got.headers["webhook-id"] for got in sink.got} == {str(fired), str(tested)}
    for got in sink.got:
        Webhook(secret).verify(got.body, got.headers)
