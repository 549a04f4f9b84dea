"""One incident from its first bucket to its end, as the engine decides it and three services receive it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_rules, alerts, db, models, settings
from cmerwatch_worker import dispatch
from tests import alerting, factories, receiver, stack
from tests.core import watched
from tests.core.watched import END, MINUTES_5, NOW
from tests.receiver import Got, Receiver


@pytest.fixture
def services(configured: Callable[..., settings.Settings]) -> Iterator[Receiver]:
    """Each answers as the real one says yes."""

    def answer(handler: BaseHTTPRequestHandler, got: Got) -> None:
        status, said = {"/hook/slack": (200, b"ok"), "/hook/pagerduty": (202, b"")}.get(got.path, (204, b""))
        receiver.reply(handler, status, said)

    with receiver.receiver() as made:
        configured(allow_private_targets=f"127.0.0.1:{made.port}")
        made.answer = answer
        yield made


def told(services: Receiver, kind: str) -> list[dict[str, Any]]:
    return [json.loads(got.body) for got in services.got if got.path == f"/hook/{kind}"]


def bucket(session: orm.Session, project_id: uuid.UUID, number: int, **flagged: int) -> None:
    """The next five minutes: flagged outputs of 60 for each endpoint, judged and told."""
    for name, count in flagged.items():
        at = END - MINUTES_5 + number * MINUTES_5
        watched.lay(session, project_id, at, 60, count, endpoint=f"/{name}", model_version="2")
    alerts.evaluate(session, project_id, NOW + number * MINUTES_5)


def test_an_incident_pages_once_grows_shrinks_and_ends_under_one_key(committed: str, services: Receiver) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        for kind in ("slack", "pagerduty", "webhook"):
            alerting.channel(session, project_id, kind, f"{services.url}/{kind}")
        watched.rule(session, project_id, scopes=alert_rules.DEFAULT_SCOPES, window_seconds=300, min_n=10)
    stopping = threading.Event()
    sender = threading.Thread(target=dispatch.Dispatcher(settings.current()).run, args=(stopping,))
    sender.start()
    try:
        for number, flagged in enumerate(({"a": 40, "b": 0}, {"a": 40, "b": 40}, {"a": 40, "b": 0}, {"a": 0, "b": 0})):
            with db.transaction() as session:
                bucket(session, project_id, number, **flagged)
            stack.wait_until(all_sent)
    finally:
        stopping.set()
        sender.join()
    pages = told(services, "pagerduty")
    assert [one["event_action"] for one in pages] == ["trigger", "trigger", "trigger", "resolve"]
    assert len({one["dedup_key"] for one in pages}) == 1
    assert [one["type"] for one in told(services, "webhook")] == [
        "alert.firing",
        "alert.update",
        "alert.update",
        "alert.resolved",
    ]
    assert [len(one["data"]["parts"]) for one in told(services, "webhook")] == [3, 4, 3, 4]
    assert [one["text"].partition(":")[0] for one in told(services, "slack")] == [
        "Firing",
        "Now also on 1 more slice",
        "Resolved",
    ]


def all_sent() -> bool:
    with db.SessionLocal() as session:
        return set(session.scalars(sa.select(models.Delivery.state))) == {"delivered"}
