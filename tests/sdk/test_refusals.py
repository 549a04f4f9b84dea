"""What the log says of an event that the server rejected."""

from typing import Any

import pytest

import cmerwatch
from cmerwatch import image_urls
from tests.sdk.loopback import LoopbackServer


def event(**fields: Any) -> Any:
    return {"image": b"small", "prompt": "p", "output": "A secret answer.", "endpoint": "/describe", **fields}


def test_the_servers_sentence_is_logged_whole_so_that_it_says_what_to_do(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.reject["bad"] = "invalid"
    server.says = f"`events[0].images[0].url` {image_urls.OFF}."
    client.record(**event(event_id="bad"))
    assert client.flush()
    assert caplog.messages == [f"cmerwatch: the server rejected an event: invalid (images): {server.says}"]
    assert "CMERWATCH_FETCH_IMAGES" in caplog.text
    assert client.stats().last_error == "invalid (images)"


def test_a_sentence_is_logged_on_one_line_without_unseen_characters_and_not_endlessly(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.reject["bad"] = "invalid"
    server.says = "first\r\nsecond\u2028third \x1b[31m\u202e\u200bend " + "x" * 10_000
    client.record(**event(event_id="bad"))
    assert client.flush()
    (line,) = caplog.messages
    assert line.isprintable()
    assert "first second third [31mend xxx" in line
    assert len(line.partition("(images): ")[2]) == 300


@pytest.mark.parametrize(
    "says, fields",
    [
        ("cannot read: {output}", {"output": "no"}),
        ("cannot read …{output}", {"output": "a long text, whose middle is quoted"}),
        ("near 'whose middle'", {"output": "a long text, whose middle is quoted"}),
        ("near 'whose\nmiddle is'", {"prompt": "a long text, whose middle is quoted"}),
        ("near 'whose mid\u200bdle is'", {"prompt": "a long text, whose middle is quoted"}),
        ("for ACME Corporation", {"customer": "ACME Corporation"}),
        ("note is call 555-01234567", {"metadata": {"a": [{"note": "call 555-01234567"}]}}),
        ("near 'token and tok'", {"tokens": ["tok", "en and", " token"], "logprobs": [-0.1] * 3}),
    ],
)
def test_a_sentence_that_quotes_the_event_is_left_out(
    says: str,
    fields: dict[str, Any],
    client: cmerwatch.Client,
    server: LoopbackServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.reject["bad"] = "invalid"
    server.says = says
    client.record(**event(event_id="bad", **fields))
    assert client.flush()
    assert caplog.messages == ["cmerwatch: the server rejected an event: invalid (images)"]


def test_an_event_that_quotes_nothing_keeps_its_sentence_however_short_its_texts(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.reject["bad"] = "invalid"
    server.says = "`endpoint` is required."
    client.record(**event(event_id="bad", output="red", prompt="is it?"))
    assert client.flush()
    assert caplog.messages[0].endswith(": `endpoint` is required.")
