"""What arrives at the server when an app records an event."""

import datetime
import enum
import hashlib
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

import cmerwatch
from cmerwatch.sdk import events as sdk_events
from cmerwatch.sdk.testing import MemoryTransport
from cmerwatch_web.console import words
from tests.sdk.loopback import LoopbackServer

JPEG = b"\xff\xd8\xff\xe0" + b"picture" * 40
MakeClient = Callable[..., cmerwatch.Client]


def event(**fields: Any) -> Any:
    return {"image": JPEG, "prompt": "What is this?", "output": "A red circle.", "endpoint": "/describe", **fields}


def test_an_event_arrives_with_every_field_it_was_given(client: cmerwatch.Client, server: LoopbackServer) -> None:
    fields = {
        "prompt_type": "describe",
        "customer": "acme",
        "model": "toy",
        "model_version": "2",
        "environment": "staging",
        "request_id": "req-1",
        "response_id": "resp-1",
        "trace_id": "trace-1",
        "logprobs": [-0.25, -0.5],
        "tokens": ["A red", " circle."],
        "metadata": {"tenant": 7},
    }
    event_id = client.record(**event(**fields))
    assert client.flush()
    stored = server.events[event_id]
    assert stored.items() >= fields.items()
    assert stored["confidence_status"] == "present"
    assert stored["images"] == [{"sha256": hashlib.sha256(JPEG).hexdigest()}]
    assert server.images[hashlib.sha256(JPEG).hexdigest()] == JPEG
    assert datetime.datetime.fromisoformat(stored["occurred_at"]).tzinfo is not None
    assert client.stats() == cmerwatch.Stats(1, 0, 0, {}, 0, 0, None)


def test_the_key_travels_as_a_bearer_token(client: cmerwatch.Client, server: LoopbackServer) -> None:
    client.record(**event())
    assert client.flush()
    assert server.posts()[0].headers["authorization"] == "Bearer cmw_test"


def test_absent_fields_are_left_out_rather_than_sent_as_null(client: cmerwatch.Client, server: LoopbackServer) -> None:
    event_id = client.record(**event(customer=None, logprobs=None, confidence=None))
    assert client.flush()
    assert set(server.events[event_id]) == {
        "event_id", "occurred_at", "endpoint", "output", "prompt", "images", "sample_rate",
    }  # fmt: skip


def test_ids_are_uuid_version_7_in_time_order(client: cmerwatch.Client) -> None:
    first, second = (uuid.UUID(client.record(**event())) for _ in range(2))
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert abs((first.int >> 80) / 1000 - datetime.datetime.now(datetime.UTC).timestamp()) < 60
    assert (second.int >> 80) >= (first.int >> 80)


def test_an_id_of_the_apps_own_is_kept(client: cmerwatch.Client, server: LoopbackServer) -> None:
    assert client.record(**event(event_id="mine")) == "mine"
    assert client.flush()
    assert "mine" in server.events


@pytest.mark.parametrize("shape", ["bytes", "bytearray", "memoryview", "path", "string path", "data URI", "folded"])
def test_every_way_to_hand_over_a_picture_sends_the_same_bytes(
    shape: str, client: cmerwatch.Client, server: LoopbackServer, tmp_path: Path
) -> None:
    import base64

    path = tmp_path / "picture.jpg"
    path.write_bytes(JPEG)
    uri = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
    picture: Any = {
        "bytes": JPEG,
        "bytearray": bytearray(JPEG),
        "memoryview": memoryview(JPEG),
        "path": path,
        "string path": str(path),
        "data URI": uri,
        "folded": uri[:70] + "\n" + uri[70:],
    }[shape]
    client.record(**event(image=picture))
    assert client.flush()
    assert list(server.images.values()) == [JPEG]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "F"])
def test_a_pillow_image_travels_as_png(mode: str, client: cmerwatch.Client, server: LoopbackServer) -> None:
    import io

    picture = PillowImage.new("RGB", (20, 10), "red").convert(mode)
    client.record(**event(image=picture))
    assert client.flush()
    (data,) = server.images.values()
    with PillowImage.open(io.BytesIO(data)) as arrived:
        assert (arrived.format, arrived.size) == ("PNG", (20, 10))
        assert arrived.convert("RGB").getpixel((3, 3)) == picture.convert("RGB").getpixel((3, 3))


def test_an_address_is_passed_on_and_not_fetched(client: cmerwatch.Client, server: LoopbackServer) -> None:
    address = f"{server.url}/picture.jpg"
    event_id = client.record(**event(image=address))
    assert client.flush()
    assert server.events[event_id]["images"] == [{"url": address}]
    assert {request.path for request in server.requests} == {"/v1/events"}


def test_several_pictures_keep_their_order_and_equal_ones_travel_once(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    event_id = client.record(**{**event(images=[b"one", b"two", b"one"]), "image": None})
    assert client.flush()
    names = [image["sha256"] for image in server.events[event_id]["images"]]
    assert [server.images[name] for name in names] == [b"one", b"two", b"one"]
    assert len(server.posts()[0].images) == 2


def test_a_known_hash_may_stand_for_the_picture(client: cmerwatch.Client, server: LoopbackServer) -> None:
    sha256 = hashlib.sha256(JPEG).hexdigest()
    server.images[sha256] = JPEG
    event_id = client.record(**event(image={"sha256": sha256}))
    assert client.flush()
    assert server.events[event_id]["images"] == [{"sha256": sha256}]


def test_numbers_of_other_libraries_are_numbers(client: cmerwatch.Client, server: LoopbackServer) -> None:
    event_id = client.record(**event(logprobs=np.array([-0.5, -1.0], dtype=np.float32), confidence=np.float32(0.5)))
    assert client.flush()
    assert server.events[event_id]["logprobs"] == [-0.5, -1.0]
    assert server.events[event_id]["confidence"] == 0.5


def test_a_reason_for_absent_logprobs_is_passed_on(client: cmerwatch.Client, server: LoopbackServer) -> None:
    event_id = client.record(**event(confidence_status="unsupported_by_provider"))
    assert client.flush()
    assert server.events[event_id]["confidence_status"] == "unsupported_by_provider"


def test_half_a_surrogate_pair_becomes_a_replacement_and_nul_arrives(
    client: cmerwatch.Client, server: LoopbackServer
) -> None:
    event_id = client.record(
        **event(output='cut \ud83d"\udc00', prompt="nul \x00, whole \U0001f600", customer="\ud83d")
    )
    assert client.flush()
    stored = server.events[event_id]
    assert stored["output"] == 'cut �"�'
    assert stored["prompt"] == "nul \x00, whole \U0001f600"
    assert stored["customer"] == "�"


@given(output=st.text(min_size=1), prompt=st.text(), customer=st.text(st.characters()))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_way(output: str, prompt: str, customer: str) -> None:
    transport = MemoryTransport()
    client = cmerwatch.Client(transport=transport, flush_interval=0.0001)
    client.record(**event(output=output, prompt=prompt, customer=customer))
    assert client.shutdown(10)
    (stored,) = transport.events

    def clean(text: str) -> str:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    assert (stored["output"], stored["prompt"]) == (clean(output), clean(prompt))


BAD = [
    ("output", event(output="")),
    ("output", event(output=None)),
    ("output", event(output=b"bytes")),
    ("endpoint", event(endpoint="")),
    ("prompt", event(prompt=7)),
    ("image", event(image=None)),
    ("image", event(images=[JPEG])),
    ("images", {**event(images=[]), "image": None}),
    ("images", {**event(images=[JPEG] * 17), "image": None}),
    ("image", event(image=12)),
    ("image", event(image=b"")),
    ("image", event(image="/no/such/file.png")),
    ("image", event(image="/dev/null")),
    ("base64", event(image="data:image/png;base64,!!!!!")),
    ("base64", event(image="data:image/png;base64,aGVs--__bG8=")),
    ("image", event(image="data:text/plain,hello")),
    ("prompt_type", event(prompt_type=3.5)),
    ("customer", event(customer=True)),
    ("model", event(model=["a"])),
    ("trace_id", event(trace_id=b"abc")),
    ("confidence_status", event(confidence_status={"status": "error"})),
    ("image", event(image={"sha256": "abc"})),
    ("image", event(image={"url": "file:///etc/passwd"})),
    ("confidence", event(confidence=3.0)),
    ("confidence", event(confidence=float("nan"))),
    ("confidence", event(confidence="high")),
    ("logprobs", event(logprobs=[0.5])),
    ("logprobs", event(logprobs=[float("nan")])),
    ("logprobs", event(logprobs=["a"])),
    ("logprobs", event(logprobs=[-1.0], tokens=["a", "b"])),
    ("tokens", event(tokens=3)),
    ("metadata", event(metadata={"rate": float("nan")})),
    ("event_id", event(event_id="x" * 129)),
]


@pytest.mark.parametrize("field, fields", BAD)
def test_a_wrong_argument_is_counted_and_named_and_never_raised(
    field: str, fields: Any, client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cmerwatch"):
        assert client.record(**fields)
        client.flush()
    assert client.stats().dropped == {"invalid": 1}
    assert len(caplog.messages) == 1
    assert field in caplog.messages[0]
    assert "A red circle" not in caplog.text
    assert server.posts() == []


class Kind(enum.Enum):
    COUNT = "count"


class Named(str, enum.Enum):  # noqa: UP042 - whose str() is not its value, unlike a StrEnum's
    COUNT = "count"


@pytest.mark.parametrize("given, stored", [(3, "3"), (uuid.UUID(int=7), str(uuid.UUID(int=7))), (Named.COUNT, "count")])
def test_a_whole_number_a_uuid_and_an_enum_of_strings_are_sent_as_strings(
    given: Any, stored: str, client: cmerwatch.Client, server: LoopbackServer
) -> None:
    event_id = client.record(**event(customer=given))
    assert client.flush()
    assert server.events[event_id]["customer"] == stored


def test_a_value_that_is_no_string_is_refused_by_its_type_and_never_quoted(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    client.record(**event(prompt_type=Kind.COUNT))
    assert client.flush()
    assert client.stats().last_error == (
        "invalid: prompt_type must be a string (a whole number or a UUID is sent as one), not Kind"
    )
    assert server.posts() == []


def test_a_status_that_nobody_knows_is_sent_with_one_warning_that_lists_those_known(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = client.record(**event(confidence_status="huh"))
    client.record(**event(confidence_status="huh"))
    client.record(**event(confidence_status="not_requested"))
    assert client.flush()
    assert server.events[odd]["confidence_status"] == "huh"
    (line,) = caplog.messages
    assert "confidence_status" in line
    assert "not_requested" in line
    assert "huh" not in line


def test_the_statuses_known_to_the_sdk_are_those_the_console_has_words_for() -> None:
    assert set(sdk_events.STATUSES) == words.CONFIDENCE_STATUS.keys()


def test_a_misspelt_field_is_named_and_the_event_still_sent(
    client: cmerwatch.Client, server: LoopbackServer, caplog: pytest.LogCaptureFixture
) -> None:
    event_id = client.record(**event(promt_type="describe"))
    assert client.flush()
    assert event_id in server.events
    assert "promt_type" in caplog.text


def test_sampling_decides_by_request_and_says_its_rate(make_client: MakeClient, server: LoopbackServer) -> None:
    first, second = make_client(sample_rate=0.5), make_client(sample_rate=0.5)
    for n in range(200):
        first.record(**event(request_id=f"r{n}"))
    for n in range(200):
        second.record(**event(request_id=f"r{n}"))
    assert first.flush(20)
    assert second.flush(20)
    chosen = [stored["request_id"] for stored in server.events.values()]
    assert all(chosen.count(name) == 2 for name in chosen), "both hooks on one request decide alike"
    assert 60 < len(set(chosen)) < 140
    assert {stored["sample_rate"] for stored in server.events.values()} == {0.5}
    assert first.stats().dropped == {"sampled_out": 200 - first.stats().sent}


def test_a_sampling_function_sees_the_dimensions(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(sample_rate=lambda fields: 1.0 if fields["customer"] == "acme" else 0.0)
    kept = client.record(**event(customer="acme"))
    client.record(**event(customer="other"))
    assert client.flush()
    assert list(server.events) == [kept]


def test_a_sampling_function_that_raises_loses_no_event(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(sample_rate=lambda fields: 1 / 0)
    client.record(**event())
    assert client.flush()
    assert client.stats().sent == 1


def test_before_send_sees_and_changes_text_and_picture_before_anything_leaves(
    make_client: MakeClient, server: LoopbackServer
) -> None:
    def redact(seen: cmerwatch.Event) -> cmerwatch.Event:
        assert seen.images[0].data == JPEG
        seen.images[0].data = b"blurred"
        seen.output = seen.output.replace("red", "***")
        seen.prompt = None
        return seen

    client = make_client(before_send=redact)
    event_id = client.record(**event())
    assert client.flush()
    assert server.events[event_id]["output"] == "A *** circle."
    assert "prompt" not in server.events[event_id]
    assert list(server.images.values()) == [b"blurred"]
    assert JPEG not in server.posts()[0].body


def test_an_event_whose_before_send_raises_is_not_sent(make_client: MakeClient, server: LoopbackServer) -> None:
    def fail(seen: cmerwatch.Event) -> cmerwatch.Event:
        raise RuntimeError(seen.output)

    client = make_client(before_send=fail)
    client.record(**event())
    assert client.flush()
    assert client.stats().dropped == {"before_send_error": 1}
    assert client.stats().last_error == "before_send_error: RuntimeError"
    assert server.requests == []


def test_before_send_may_withhold_an_event(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(before_send=lambda seen: None)
    client.record(**event())
    assert client.flush()
    assert client.stats().dropped == {"before_send": 1}
    assert server.requests == []


def test_the_environment_of_the_client_is_a_default(make_client: MakeClient, server: LoopbackServer) -> None:
    client = make_client(environment="production")
    default, own = client.record(**event()), client.record(**event(environment="test"))
    assert client.flush()
    assert server.events[default]["environment"] == "production"
    assert server.events[own]["environment"] == "test"
