"""The sender against real servers: what arrives, what is recorded, and who is held up by whom."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from standardwebhooks.webhooks import Webhook

from cmerwatch import db, models, settings
from cmerwatch_worker import dispatch
from tests import alerting, factories, receiver, stack
from tests.receiver import Receiver

Configure = Callable[..., settings.Settings]


@pytest.fixture
def sink(configured: Configure) -> Iterator[Receiver]:
    with receiver.receiver() as made:
        configured(allow_private_targets=f"127.0.0.1:{made.port}")
        yield made


@pytest.fixture
def project_id(committed: str) -> uuid.UUID:
    with db.transaction() as session:
        return factories.project(session, "acme")


@contextlib.contextmanager
def dispatching() -> Iterator[dispatch.Dispatcher]:
    made, stopping = dispatch.Dispatcher(settings.current()), threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        thread.join()


def fire(project_id: uuid.UUID, kind: str, url: str, **config: str) -> uuid.UUID:
    """A channel with one firing message; returns the message's id."""
    with db.transaction() as session:
        channel = alerting.channel(session, project_id, kind, url, **config)
        return alerting.message(session, channel, alerting.alert(session, project_id)).id


def stored(delivery_id: uuid.UUID) -> models.Delivery:
    with db.SessionLocal() as session:
        return session.get_one(models.Delivery, delivery_id)


def channel_of(delivery: models.Delivery) -> models.Channel:
    with db.SessionLocal() as session:
        return session.get_one(models.Channel, delivery.channel_id)


def settled(delivery_id: uuid.UUID) -> models.Delivery:
    """The delivery after its first recorded try."""
    stack.wait_until(lambda: stored(delivery_id).attempts > 0 or stored(delivery_id).state != "pending")
    return stored(delivery_id)


def test_a_webhook_arrives_signed_so_that_the_official_verifier_takes_it(sink: Receiver, project_id: uuid.UUID) -> None:
    delivery_id = fire(project_id, "webhook", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    assert (delivery.state, delivery.attempts, delivery.last_error, delivery.last_status) == ("delivered", 1, None, 204)
    [got] = sink.got
    secret = alerting.opened(channel_of(delivery))["secret"]
    told = Webhook(secret).verify(got.body, got.headers)
    assert got.headers["webhook-id"] == str(delivery_id)
    assert (told["type"], told["data"]["value"]) == ("alert.firing", 0.463)
    assert channel_of(delivery).last_ok_at is not None
