"""The sender against real servers: what arrives, what is recorded, and who is held up by whom."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook

from cmerwatch import db, embedded, models, settings
from cmerwatch_worker import dispatch
from tests import alerting, receiver, stack
from tests.receiver import Got, Receiver, answering

Configure = Callable[..., settings.Settings]


@pytest.fixture
def sink(configured: Configure) -> Iterator[Receiver]:
    with receiver.receiver() as made:
        configured(allow_private_targets=f"127.0.0.1:{made.port}")
        yield made


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


def test_a_slack_channel_that_answers_200_with_an_error_body_was_not_told(
    sink: Receiver, project_id: uuid.UUID
) -> None:
    sink.answer = answering(200, b"something_else")
    delivery_id = fire(project_id, "slack", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    assert (delivery.state, delivery.last_status) == ("pending", 200)
    assert delivery.last_error == "Slack answered 200, but not `ok`: the message was not taken."


def test_a_layout_that_slack_refuses_goes_out_once_more_as_plain_text(sink: Receiver, project_id: uuid.UUID) -> None:
    def picky(handler: BaseHTTPRequestHandler, got: Got) -> None:
        refused = b"blocks" in got.body
        receiver.reply(handler, 400 if refused else 200, b"invalid_blocks" if refused else b"ok")

    sink.answer = picky
    delivery_id = fire(project_id, "slack", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    assert [b"blocks" in got.body for got in sink.got] == [True, False]


def test_a_layout_refused_twice_is_dead_and_the_channel_stays_on(sink: Receiver, project_id: uuid.UUID) -> None:
    sink.answer = answering(400, b"invalid_blocks")
    delivery_id = fire(project_id, "slack", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    assert (delivery.state, len(sink.got)) == ("dead", 2)
    assert channel_of(delivery).disabled_at is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_loopback_is_a_failure_and_is_not_followed(
    sink: Receiver, project_id: uuid.UUID, status: int
) -> None:
    with receiver.receiver() as inside:
        sink.answer = answering(status, Location=inside.url)
        delivery_id = fire(project_id, "webhook", sink.url)
        with dispatching():
            delivery = settled(delivery_id)
        assert inside.got == []
    assert (delivery.state, delivery.last_status) == ("pending", status)
    assert "redirects are not followed" in (delivery.last_error or "")


def test_a_429_is_tried_again_after_the_time_it_names(sink: Receiver, project_id: uuid.UUID) -> None:
    sink.answer = answering(429, Retry_After="120")
    delivery_id = fire(project_id, "webhook", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    assert delivery.state == "pending"
    assert 110 < (delivery.next_at - delivery.created_at).total_seconds() < 200


def test_gone_disables_the_channel_and_later_messages_wait(sink: Receiver, project_id: uuid.UUID) -> None:
    sink.answer = answering(410)
    delivery_id = fire(project_id, "webhook", sink.url)
    with dispatching():
        delivery = settled(delivery_id)
    channel = channel_of(delivery)
    assert (delivery.state, channel.disabled_reason is not None) == ("dead", True)


def test_a_stream_without_end_is_cut_and_counts_by_its_status(sink: Receiver, project_id: uuid.UUID) -> None:
    def endless(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not sink.closing.is_set():
            handler.wfile.write(b"x" * 65_536)

    sink.answer = endless
    delivery_id = fire(project_id, "webhook", sink.url)
    with dispatching():
        assert settled(delivery_id).state == "delivered"


def test_a_tls_error_and_a_refused_connection_are_told_without_the_address(
    sink: Receiver, project_id: uuid.UUID, configured: Configure
) -> None:
    closed = receiver.refusing_port()
    configured(allow_private_targets=f"127.0.0.1:{sink.port},127.0.0.1:{closed}")
    made = [
        fire(project_id, "webhook", f"https://127.0.0.1:{sink.port}/secret-path"),
        fire(project_id, "webhook", f"http://127.0.0.1:{closed}/secret-path"),
    ]
    with dispatching():
        said = [settled(one).last_error or "" for one in made]
    assert "TLS" in said[0] or "broke off" in said[0]
    assert said[1] == "The connection was refused."
    assert not any("secret-path" in one or "127.0.0.1" in one for one in said)


def test_an_address_that_became_private_since_is_never_called(
    sink: Receiver, project_id: uuid.UUID, configured: Configure
) -> None:
    """It was listed when the channel was made, and is not any more."""
    delivery_id = fire(project_id, "webhook", sink.url)
    configured(allow_private_targets="")
    with dispatching():
        delivery = settled(delivery_id)
    assert delivery.state == "pending"
    assert "CMERWATCH_ALLOW_PRIVATE_TARGETS" in (delivery.last_error or "")
    assert sink.got == []


def test_a_configuration_under_a_lost_secret_key_disables_the_channel_and_says_what_to_do(
    sink: Receiver, project_id: uuid.UUID, configured: Configure
) -> None:
    delivery_id = fire(project_id, "webhook", sink.url)
    configured(secret_key="another secret key than the one it was sealed under")
    with dispatching():
        delivery = settled(delivery_id)
    assert delivery.state == "dead"
    assert "CMERWATCH_SECRET_KEY_PREVIOUS" in (channel_of(delivery).disabled_reason or "")
    assert sink.got == []


def test_channels_that_hang_hold_up_nobody_else(
    sink: Receiver, project_id: uuid.UUID, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than senders may serve channels that failed before, and messages still pass between."""
    monkeypatch.setattr(dispatch, "SEND_SECONDS", 300.0)  # none of them gives up while this test runs
    with receiver.receiver() as hanging:
        configured(allow_private_targets=f"127.0.0.1:{sink.port},127.0.0.1:{hanging.port}")
        hanging.answer = lambda handler, got: hanging.closing.wait(60) and None
        for _ in range(dispatch.SENDERS + 4):
            delivery_id = fire(project_id, "webhook", hanging.url)
            with db.transaction() as session:
                stuck = session.get_one(models.Channel, session.get_one(models.Delivery, delivery_id).channel_id)
                stuck.last_error_at = stuck.created_at
        with dispatching():
            stack.wait_until(lambda: len(hanging.got) == dispatch.FOR_TROUBLED)
            for number in range(3):
                delivery_id = fire(project_id, "webhook", sink.url)
                assert settled(delivery_id).state == "delivered"
                assert len(sink.got) == number + 1
            assert len(hanging.got) == dispatch.FOR_TROUBLED
            hanging.closing.set()


def test_an_orderly_stop_records_what_is_in_the_air(sink: Receiver, project_id: uuid.UUID) -> None:
    arrived, release = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler, got: Got) -> None:
        arrived.set()
        release.wait(10)
        receiver.reply(handler, 204)

    sink.answer = slow
    delivery_id = fire(project_id, "webhook", sink.url)
    made, stopping = dispatch.Dispatcher(settings.current()), threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    assert arrived.wait(10)
    stopping.set()
    release.set()
    thread.join()
    assert stored(delivery_id).state == "delivered"


def test_no_transaction_is_open_while_a_message_is_sent(sink: Receiver, project_id: uuid.UUID) -> None:
    open_transactions: list[int] = []

    def look(handler: BaseHTTPRequestHandler, got: Got) -> None:
        with db.SessionLocal() as session:
            count = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
            )
            open_transactions.append(session.scalars(count).one())
        receiver.reply(handler, 204)

    sink.answer = look
    # One tick by hand: the sender's own next look for work would be a transaction too.
    delivery_id = fire(project_id, "webhook", sink.url)
    dispatcher = dispatch.Dispatcher(settings.current())
    assert dispatcher.tick() == 1
    stack.wait_until(lambda: bool(open_transactions))
    stack.wait_until(lambda: dispatcher.tick() == 0 and stored(delivery_id).state == "delivered")
    dispatcher.close()
    assert open_transactions == [0]


def test_a_stop_does_not_wait_for_ever_for_a_database_that_is_away(
    sink: Receiver, project_id: uuid.UUID, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(dispatch, "STOP_SECONDS", 1.0)
    made, stopping = dispatch.Dispatcher(settings.current()), threading.Event()

    def go_away(handler: BaseHTTPRequestHandler, got: Got) -> None:
        db.configure(f"postgresql+psycopg://nobody@127.0.0.1:{embedded.free_port()}/away")
        stopping.set()
        receiver.reply(handler, 204)

    sink.answer = go_away
    fire(project_id, "webhook", sink.url)
    thread = threading.Thread(target=made.run, args=(stopping,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert 1 <= len(caplog.records) <= 10, "one line a look, not one a moment"


def test_a_row_that_cannot_be_read_holds_up_nobody(sink: Receiver, project_id: uuid.UUID) -> None:
    broken = fire(project_id, "webhook", sink.url)
    with db.transaction() as session:
        session.get_one(models.Delivery, broken).notice = {"status": "firing"}
    whole = fire(project_id, "webhook", sink.url)
    with dispatching():
        assert settled(whole).state == "delivered"
        assert settled(broken).last_error == "cmerwatch could not make this message; the worker's log says where."


def test_a_database_that_goes_away_is_waited_for(sink: Receiver, project_id: uuid.UUID) -> None:
    away = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def cut(handler: BaseHTTPRequestHandler, got: Got) -> None:
        """Every connection is gone when the outcome is to be recorded."""
        with db.SessionLocal() as session:
            session.execute(away)
        receiver.reply(handler, 204)

    def is_delivered() -> bool:
        with contextlib.suppress(sa.exc.OperationalError):  # the test's own connections were cut too
            return stored(delivery_id).state == "delivered"
        return False

    sink.answer = cut
    delivery_id = fire(project_id, "webhook", sink.url)
    with dispatching():
        stack.wait_until(is_delivered)
    assert len(sink.got) == 1
