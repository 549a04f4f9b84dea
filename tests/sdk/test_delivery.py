"""Retries, refusals, batches, and pictures that travel once."""

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import cmerwatch
from cmerwatch.sdk.pending import Pending
from tests.sdk.loopback import LoopbackServer, Reply

MakeClient = Callable[..., cmerwatch.Client]
LARGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 200  # over the 32 KB below which nobody asks
SHA256 = hashlib.sha256(LARGE).hexdigest()


def event(image: object = b"small", **fields: Any) -> Any:
    return {"image": image, "prompt": "p", "output": "A secret answer.", "endpoint": "/describe", **fields}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_gets_the_event_again_and_stores_it_once(
    status: int, client: cmerwatch.Client, server: LoopbackServer
) -> None:
    server.script.append(Reply(status, headers={"Retry-After": "0"}))
    event_id = client.record(**event())
    assert client.flush(10)
    assert [request.events[0]["event_id"] for request in server.posts()] == [event_id, event_id]
    assert server.posts()[0].events == server.posts()[1].events
    assert client.stats().sent == 1


def test_retry_after_is_honoured(client: cmerwatch.Client, server: LoopbackServer) -> None:
    server.script.append(Reply(503, headers={"Retry-After": "1"}))
    started = time.monotonic()
    client.record(**event())
    assert client.flush(10)
    assert time.monotonic() - started >= 1.0


def test_a_lost_answer_is_counted_as_a_duplicate_on_the_retry(client: cmerwatch.Client, server: LoopbackServer) -> None:
    event_id = client.record(**event())
    assert client.flush()
    assert client.record(**event(event_id=event_id)) == event_id
    assert client.flush()
    assert (client.stats().sent, client.stats().duplicates) == (1, 1)


def test_a_connection_the_server_closed_while_idle_is_no_failure(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    client.record(**event())
    assert client.flush()
    server.script.append(Reply(0, hang_up=True))
    client.record(**event())
    assert client.flush()
    assert len(server.posts()) == 3
    assert client.stats().sent == 2
    assert client.stats().last_error is None


def test_events_of_an_outage_arrive_when_the_server_is_back(make_client: MakeClient) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    client = make_client(server_url=f"http://127.0.0.1:{port}")
    ids = {client.record(**event(image=f"picture {n}".encode())) for n in range(100)}
    assert not client.flush(0.2)
    assert client.stats().last_error == "ConnectionRefusedError"
    back = LoopbackServer(port)
    try:
        assert client.flush(20)
        assert set(back.events) == ids
        assert client.stats().sent == 100
    finally:
        back.stop()


def test_2000_calls_without_a_server_stay_within_the_queue_and_every_drop_is_counted(make_client: MakeClient) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        client = make_client(server_url=f"http://127.0.0.1:{reserved.getsockname()[1]}", queue_max_bytes=2 << 20)
        for n in range(2000):
            client.record(**event(image=n.to_bytes(2, "big") * 10_000))
        stats = client.stats()
    assert stats.queued_bytes <= 2 << 20
    assert stats.queued_events > 50
    assert stats.dropped == {"queue_full": 2000 - stats.queued_events}


def test_a_picture_the_server_accepted_is_not_sent_again(client: cmerwatch.Client, server: LoopbackServer) -> None:
    for _ in range(3):
        client.record(**event(LARGE))
        assert client.flush()
    assert [list(request.images) for request in server.posts()] == [[SHA256], [], []]
    assert server.posts("/v1/images/missing") == []
    assert len(server.events) == 3


def test_after_an_unclear_answer_a_large_picture_is_asked_about_first(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    server.images[SHA256] = LARGE  # it arrived, only the answer did not say so
    server.script.append(Reply(503, headers={"Retry-After": "0"}))
    client.record(**event(LARGE))
    assert client.flush(10)
    assert len(server.posts("/v1/images/missing")) == 1
    assert [list(request.images) for request in server.posts()] == [[SHA256], []]


def test_a_picture_that_is_missing_after_all_travels_with_the_retry(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    server.script.append(Reply(503, headers={"Retry-After": "0"}))
    client.record(**event(LARGE))
    assert client.flush(10)
    assert [list(request.images) for request in server.posts()] == [[SHA256], [SHA256]]
    assert client.stats().sent == 1


def test_a_picture_the_server_has_forgotten_is_sent_again_with_its_event(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    client.record(**event(LARGE))
    assert client.flush()
    server.images.clear()
    event_id = client.record(**event(LARGE))
    assert client.flush()
    assert event_id in server.events
    assert server.images == {SHA256: LARGE}
    assert (client.stats().sent, client.stats().rejected) == (2, 0)


def test_a_lone_event_refused_for_a_forgotten_picture_is_resent_too(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    client.record(**event(LARGE))
    assert client.flush()
    server.script.append(Reply(422, {"error": {"code": "image_unknown", "message": "", "details": {}}}))
    client.record(**event(LARGE))
    assert client.flush()
    assert [list(request.images) for request in server.posts()] == [[SHA256], [], [SHA256]]
    assert client.stats().sent == 2


def test_a_picture_that_stays_unknown_is_resent_once_only(client: cmerwatch.Client, server: LoopbackServer) -> None:
    event_id = client.record(**event(event_id="never"))
    server.reject[event_id] = "image_unknown"
    assert client.flush()
    assert client.stats().rejected == 1
    assert len(server.posts()) == 2


def test_one_bad_event_leaves_the_others_of_its_batch_alone(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(flush_interval=5.0)
    server.reject["bad"] = "invalid"
    ids = [client.record(**event(event_id=name)) for name in ("a", "bad", "b")]
    assert client.flush()
    assert len(server.posts()) == 1
    assert set(server.events) == {ids[0], ids[2]}
    assert (client.stats().sent, client.stats().rejected) == (2, 1)


def test_errors_name_code_and_field_and_never_quote_the_event(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.reject["bad"] = "invalid"
    client.record(**event(event_id="bad"))
    assert client.flush()
    assert client.stats().last_error == "invalid (images)"
    assert "secret" not in caplog.text


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_a_refusal_is_final_for_a_lone_event(status: int, client: cmerwatch.Client, server: LoopbackServer) -> None:
    server.script.append(Reply(status, {"error": {"code": "conflict", "message": "", "details": {}}}))
    client.record(**event())
    assert client.flush()
    assert len(server.posts()) == 1
    assert client.stats().rejected == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_batch_that_is_refused_whole_is_split_until_the_culprit_stands_alone(
    status: int, make_client: MakeClient, server: LoopbackServer
) -> None:
    client = make_client(flush_interval=5.0)
    server.max_body = 60_000
    for n in range(7):
        client.record(**event(image=bytes([n]) * 10_000))
    huge = client.record(**event(image=b"\xff" * 100_000))
    assert client.flush()
    assert len(server.events) == 7
    assert huge not in server.events
    assert (client.stats().sent, client.stats().rejected, client.stats().last_error) == (7, 1, "too_large")


def test_a_server_that_refuses_without_reading_the_body_is_heard(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    body = {"error": {"code": "too_large", "message": "", "details": {}}}
    server.script.append(Reply(413, body, before_reading=True))
    client.record(**event(image=b"\xff" * (8 << 20)))
    assert client.flush(10)
    stats = client.stats()
    # The kernel may drop the answer together with the connection; then the repeat is stored.
    assert (stats.rejected, stats.last_error) == (1, "too_large") or stats.sent == 1


def test_batches_hold_at_most_64_events(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(flush_interval=0.2)
    for _ in range(150):
        client.record(**event())
    assert client.flush(10)
    assert max(len(request.events) for request in server.posts()) <= 64
    assert len(server.events) == 150


def test_batches_stay_near_4_mib_but_one_event_is_always_sent(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(flush_interval=0.5)
    for n in range(6):
        client.record(**event(image=bytes([n]) * (1 << 20)))
    client.record(**event(image=b"\xff" * (6 << 20)))
    assert client.flush(20)
    sizes = [(len(request.events), len(request.body)) for request in server.posts()]
    assert all(size < (4 << 20) + 10_000 for events, size in sizes if events > 1)
    assert sum(events for events, _ in sizes) == 7
    assert len(sizes) >= 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_sending_with_one_warning(
    status: int, client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script.append(Reply(status))
    client.record(**event())
    with caplog.at_level(logging.WARNING, "cmerwatch"):
        assert client.flush()
        for _ in range(5):
            client.record(**event())
    assert len(server.posts()) == 1
    assert client.stats().dropped == {"unauthorized": 6}
    assert [message for message in caplog.messages if "refused the api key" in message] == caplog.messages[:1]
    assert "Settings, Keys" in caplog.messages[0]
    assert "cmerwatch key create --project <slug> --scope ingest" in caplog.messages[0]
    assert client.flush(), "nothing waits"


def test_a_page_that_is_not_cmerwatchs_does_not_count_as_sent(client: cmerwatch.Client, server: LoopbackServer) -> None:
    server.script.append(Reply(200, {"welcome": "to the login page"}))
    client.record(**event())
    assert client.flush()
    assert (client.stats().sent, client.stats().rejected) == (0, 1)


def test_an_event_that_breaks_the_connection_does_not_hold_up_the_others(
    make_client: MakeClient, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch.sdk.sender.BACKOFF_SECONDS", (0.001, 0.002))
    client = make_client(flush_interval=0.3)
    accept = server.accept

    def hang_up_on_poison(request: Any) -> Reply:
        poisoned = any(one["event_id"] == "poison" for one in request.events)
        return Reply(0, hang_up=True) if poisoned else accept(request)

    monkeypatch.setattr(server, "accept", hang_up_on_poison)
    client.record(**event(event_id="poison"))
    good = [client.record(**event(event_id=f"good {n}")) for n in range(3)]
    assert not client.flush(0.01)
    with server.arrived:
        assert server.arrived.wait_for(lambda: set(server.events) == set(good), 10)
    assert "poison" not in server.events
    with server.arrived:
        assert server.arrived.wait_for(lambda: client.stats().queued_events == 1, 10), "the culprit is kept"


def test_flush_answers_false_when_time_is_up_and_true_when_all_is_settled(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    assert client.flush(0.0)
    server.script.append(Reply(503, headers={"Retry-After": "1"}))
    client.record(**event())
    assert not client.flush(0.1)
    assert client.flush(10)


def test_a_flush_does_not_wait_for_what_other_threads_record_meanwhile(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    stop = threading.Event()

    def keep_recording() -> None:
        while not stop.is_set():
            client.record(**event())
            stop.wait(0.001)

    recorder = threading.Thread(target=keep_recording)
    recorder.start()
    try:
        assert client.flush(10)
    finally:
        stop.set()
        recorder.join()


def test_events_from_many_threads_all_arrive(client: cmerwatch.Client, server: LoopbackServer) -> None:
    threads = [threading.Thread(target=lambda: [client.record(**event()) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(20)
    assert len(server.events) == client.stats().sent == 400


def test_after_shutdown_events_are_counted_and_not_sent(client: cmerwatch.Client, server: LoopbackServer) -> None:
    client.record(**event())
    assert client.shutdown(10)
    assert client.record(**event())
    assert client.stats().dropped == {"shutdown": 1}
    assert len(server.events) == 1


def test_what_a_shutdown_leaves_behind_is_counted(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client()
    server.script.append(Reply(503, headers={"Retry-After": "100"}))
    client.record(**event())
    server.wait_for_posts(1)
    assert not client.shutdown(0.1)
    assert client._thread is not None
    client._thread.join(10)
    assert client.stats().dropped == {"shutdown": 1}


def test_a_picture_deleted_before_it_was_read_is_counted(client: cmerwatch.Client, server: LoopbackServer) -> None:
    client.record(**event(image="/tmp/cmerwatch-no-such-picture.png"))
    assert client.flush()
    assert client.stats().dropped == {"invalid": 1}
    assert client.stats().last_error == "invalid: image file could not be read (FileNotFoundError)"


def test_waits_between_tries_double_up_to_half_a_minute_with_jitter(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def note(pending: Pending, seconds: float, until_flush: bool) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            pending.abandon("shutdown")

    monkeypatch.setattr(Pending, "rest", note)
    client = make_client(server_url="http://127.0.0.1:9")
    client.record(**event())
    assert client._thread is not None
    client._thread.join(20)
    for wait, most in zip(waits, [0.5, 1, 2, 4, 8, 16, *[30] * 6], strict=True):
        assert most / 2 <= wait <= most
    assert len(set(waits[6:])) > 1
