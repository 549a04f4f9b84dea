"""Monitoring must not be the thing that breaks the app."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

import cmerwatch
from cmerwatch.sdk import api
from cmerwatch.sdk.testing import MemoryTransport
from tests.sdk.loopback import LoopbackServer

MakeClient = Callable[..., cmerwatch.Client]


def event(**fields: Any) -> Any:
    return {"image": b"picture", "prompt": "p", "output": "A secret.", "endpoint": "/describe", **fields}


def explode(*args: Any) -> None:
    raise ZeroDivisionError


def test_without_a_key_one_warning_and_then_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_client", None)
    for _ in range(3):
        assert cmerwatch.record(**event())
    with cmerwatch.capture(image=b"picture", endpoint="/describe") as ev:
        ev.output = "x"
    assert cmerwatch.flush()
    assert cmerwatch.stats() == cmerwatch.Stats(0, 0, 0, {}, 0, 0, None)
    assert cmerwatch.shutdown()
    assert len(caplog.messages) == 1
    assert "CMERWATCH_API_KEY" in caplog.messages[0]


def test_key_and_address_come_from_the_environment_unless_given(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMERWATCH_API_KEY", "cmw_env")
    monkeypatch.setenv("CMERWATCH_SERVER_URL", server.url)
    for key in (None, "cmw_argument"):
        cmerwatch.init(key, flush_interval=0.001)
        cmerwatch.record(**event())
        assert cmerwatch.shutdown(10)
    keys = [request.headers["authorization"] for request in server.posts()]
    assert keys == ["Bearer cmw_env", "Bearer cmw_argument"]


def test_a_second_init_replaces_the_first_and_loses_nothing() -> None:
    first, second = MemoryTransport(), MemoryTransport()
    old = cmerwatch.init(transport=first, flush_interval=0.001)
    cmerwatch.record(**event())
    cmerwatch.init(transport=second, flush_interval=0.001)
    cmerwatch.record(**event())
    assert old.flush(10)
    assert cmerwatch.shutdown(10)
    assert (len(first.events), len(second.events)) == (1, 1)


def test_enabled_false_records_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CMERWATCH_ENABLED", "false")
    transport = MemoryTransport()
    client = cmerwatch.Client(transport=transport)
    client.record(**event())
    assert client.shutdown(10)
    assert transport.events == []
    assert caplog.messages == []


@pytest.mark.parametrize(
    "options, named",
    [
        ({"server_url": "ftp://example.com"}, "server_url"),
        ({"server_url": "not an address"}, "server_url"),
        ({"server_url": "http://host:99999"}, "server_url"),
        ({"api_key": "two words"}, "api_key"),
        ({"api_key": "line\nbreak"}, "api_key"),
        ({"api_key": "schlüssel"}, "api_key"),
        ({"sample_rate": 7}, "sample_rate"),
        ({"queue_max_bytes": -1}, "queue_max_bytes"),
        ({"timeout": "soon"}, "timeout"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_option_is_named_in_one_line_and_does_not_raise(
    options: Any, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = cmerwatch.Client(**{"api_key": "cmw_key", **options})
    client.shutdown(0)
    assert len(caplog.messages) == 1
    assert named in caplog.messages[0]
    assert "schlüssel" not in caplog.text


def test_wrong_environment_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CMERWATCH_SAMPLE_RATE", "often")
    monkeypatch.setenv("CMERWATCH_DEBUG", "perhaps")
    cmerwatch.Client("cmw_key").shutdown(0)
    assert "CMERWATCH_SAMPLE_RATE" in caplog.text
    assert "CMERWATCH_DEBUG" in caplog.text


def test_a_bug_on_the_sending_thread_is_counted_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    transport = MemoryTransport()
    client = cmerwatch.Client(transport=transport, debug=False, flush_interval=0.001)
    original = transport.send

    def fail_once(*args: Any) -> Any:
        transport.send = original  # type: ignore[method-assign]
        raise ZeroDivisionError

    transport.send = fail_once  # type: ignore[method-assign, assignment]
    client.record(**event())
    assert client.flush(10)
    client.record(**event())
    assert client.shutdown(10)
    assert client.stats().dropped == {"internal": 1}
    assert client.stats().sent == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize("step", ["cmerwatch.sdk.client._weigh", "cmerwatch.sdk.pending.Pending.put"])
def test_a_bug_on_the_apps_thread_is_counted_or_with_debug_raised(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, explode)
    quiet = cmerwatch.Client(transport=MemoryTransport(), debug=False)
    assert quiet.record(**event())
    assert quiet.stats().dropped == {"internal": 1}
    loud = cmerwatch.Client(transport=MemoryTransport())
    with pytest.raises(ZeroDivisionError):
        loud.record(**event())
    quiet.shutdown(0)
    loud.shutdown(0)


def test_a_bug_in_reading_an_event_is_counted_or_with_debug_raised_by_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmerwatch.sdk.events.glance", explode)
    quiet = cmerwatch.Client(transport=MemoryTransport(), debug=False)
    assert quiet.record(**event())
    assert quiet.flush(10)
    assert quiet.stats().dropped == {"internal": 1}
    loud = cmerwatch.Client(transport=MemoryTransport())
    loud.record(**event())
    with pytest.raises(ZeroDivisionError):
        loud.flush(10)
    quiet.shutdown(0)
    loud.shutdown(0)


def test_objects_of_the_app_that_raise_when_looked_at_do_no_harm(make_client: MakeClient) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise ValueError("boom")

        def __len__(self) -> int:
            raise ValueError("boom")

    client = make_client(debug=False)
    for fields in (
        {"metadata": {"x": Hostile()}},
        {"logprobs": Hostile()},
        {"customer": Hostile()},
        {"image": Hostile()},
    ):
        assert client.record(**event(**fields))
    client.flush()
    assert sum(client.stats().dropped.values()) == 4


def test_before_send_may_call_the_client_without_hanging_it(make_client: MakeClient) -> None:
    answers: list[bool] = []

    def nosy(seen: cmerwatch.Event) -> cmerwatch.Event:
        answers.append(client.flush(60))
        return seen

    client = make_client(before_send=nosy)
    client.record(**event())
    assert client.flush(10)
    assert answers == [False]


def test_a_full_queue_warns_once_a_minute_not_once_an_event(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, server: LoopbackServer
) -> None:
    from tests.sdk.loopback import Reply

    server.script.append(Reply(503, headers={"Retry-After": "100"}))
    client = make_client(queue_max_events=2)
    client.record(**event())
    server.wait_for_posts(1)
    with caplog.at_level(logging.WARNING, "cmerwatch"):
        for _ in range(50):
            client.record(**event())
        assert client.stats().dropped["queue_full"] >= 48
    assert len([message for message in caplog.messages if "queue_full" in message]) == 1
