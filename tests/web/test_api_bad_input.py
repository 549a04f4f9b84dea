"""Every bad event is refused by name, with its limit, and leaves nothing behind."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cmerwatch import settings
from tests.web.wire import Headers, bomb, encoded, event, inline

Stored = Callable[[], dict[str, int]]


def in_minutes(minutes: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)).isoformat()


LONE = "\ud83d"
BAD = [
    # (what is sent, code, the field named, words of the message, the limit in details)
    pytest.param({"endpoint": ...}, "invalid", "endpoint", "is required", None, id="no endpoint"),
    pytest.param({"endpoint": "  "}, "invalid", "endpoint", "empty", None, id="blank endpoint"),
    pytest.param({"endpoint": "x" * 201}, "invalid", "endpoint", "201 .* 200", 200, id="long endpoint"),
    pytest.param({"endpoint": 7}, "invalid", "endpoint", "a string", None, id="endpoint not a string"),
    pytest.param({"customer": "x" * 201}, "invalid", "customer", "200", 200, id="long customer"),
    pytest.param(
        {
            "endpoint": "/x",
            "customer": "\U00020000" * 200,
            "model": "\U00020000" * 200,
            "environment": "\U00020000" * 200,
            "prompt_type": "字" * 200,
        },
        "invalid",
        "customer",
        "environment`.* 3002 bytes .* 2400",
        2400,
        id="names too long for one key",
    ),
    pytest.param({"output": ...}, "invalid", "output", "is required", None, id="no output"),
    pytest.param({"output": None}, "invalid", "output", "a string", None, id="null output"),
    pytest.param({"output": ""}, "invalid", "output", "empty", None, id="empty output"),
    pytest.param({"output": " \n\t"}, "invalid", "output", "empty", None, id="white output"),
    pytest.param({"output": "x" * 200_001}, "invalid", "output", "200001 .* 200000", 200_000, id="long output"),
    pytest.param({"prompt": "x" * 200_001}, "invalid", "prompt", "200000", 200_000, id="long prompt"),
    pytest.param({"event_id": ""}, "invalid", "event_id", "empty", 1, id="empty id"),
    pytest.param({"event_id": "x" * 129}, "invalid", "event_id", "129 .* 128", 128, id="long id"),
    pytest.param({"logprobs": [-0.1, 0.2]}, "invalid", "logprobs[1]", "0.2", [-1e4, 0], id="positive logprob"),
    pytest.param({"logprobs": [float("nan")]}, "invalid", "logprobs[0]", "NaN", [-1e4, 0], id="NaN logprob"),
    pytest.param({"logprobs": [0, float("-inf")]}, "invalid", "logprobs[1]", "Inf", [-1e4, 0], id="infinite logprob"),
    pytest.param({"logprobs": [-10001]}, "invalid", "logprobs[0]", "-10001", [-1e4, 0], id="logprob too low"),
    pytest.param({"logprobs": [-0.1, "-0.2"]}, "invalid", "logprobs[1]", "a number", None, id="logprob a string"),
    pytest.param({"logprobs": [-0.1, True]}, "invalid", "logprobs[1]", "a number", None, id="logprob a boolean"),
    pytest.param({"logprobs": [-(10**400)]}, "invalid", "logprobs[0]", "number", None, id="logprob beyond floats"),
    pytest.param({"logprobs": -0.1}, "invalid", "logprobs", "a list", None, id="logprobs not a list"),
    pytest.param({"logprobs": [-0.1] * 32_769}, "invalid", "logprobs", "32768", 32_768, id="too many logprobs"),
    pytest.param({"tokens": ["a"] * 32_769}, "invalid", "tokens", "32768", 32_768, id="too many tokens"),
    pytest.param(
        {"logprobs": [-0.1, -0.2], "tokens": ["a"]}, "invalid", "logprobs", "2 .*tokens.* 1", None, id="unequal lengths"
    ),
    pytest.param({"tokens": [1]}, "invalid", "tokens[0]", "a string", None, id="token a number"),
    pytest.param({"confidence": 1.01}, "invalid", "confidence", "0 to 1", [0, 1], id="confidence over 1"),
    pytest.param({"confidence": -0.01}, "invalid", "confidence", "0 to 1", [0, 1], id="confidence under 0"),
    pytest.param({"confidence": float("nan")}, "invalid", "confidence", "NaN", [0, 1], id="NaN confidence"),
    pytest.param({"confidence": float("inf")}, "invalid", "confidence", "Infinity", [0, 1], id="infinite confidence"),
    pytest.param({"confidence": "0.9"}, "invalid", "confidence", "a number", None, id="confidence a string"),
    pytest.param({"sample_rate": 1.5}, "invalid", "sample_rate", "0 to 1", [0, 1], id="sample rate over 1"),
    pytest.param(
        {"occurred_at": in_minutes(24 * 60)}, "invalid", "occurred_at", "5 minutes", 300, id="from the future"
    ),
    pytest.param({"occurred_at": "2026-11-24T09:00:00"}, "invalid", "occurred_at", "time zone", None, id="no zone"),
    pytest.param({"occurred_at": "yesterday"}, "invalid", "occurred_at", "ISO 8601", None, id="not a time"),
    pytest.param({"occurred_at": 1_700_000_000}, "invalid", "occurred_at", "ISO 8601", None, id="time a number"),
    pytest.param(
        {"occurred_at": "9999-12-31T23:59:59-14:00"}, "invalid", "occurred_at", "ISO 8601", None, id="time beyond all"
    ),
    pytest.param({"metadata": {"a": "x" * 16_384}}, "invalid", "metadata", "16384", 16_384, id="large metadata"),
    pytest.param({"metadata": {"a": float("nan")}}, "invalid", "metadata", "NaN", None, id="NaN in metadata"),
    pytest.param({"metadata": [1]}, "invalid", "metadata", "object", None, id="metadata a list"),
    pytest.param(
        {"metadata": json.loads('{"a":' + "[" * 40 + "]" * 40 + "}")},
        "invalid",
        "metadata",
        "32",
        32,
        id="deep metadata",
    ),
    pytest.param({"endpiont": "chat"}, "invalid", "endpiont", "not a field", None, id="mistyped field"),
    pytest.param({"images": ...}, "invalid", "images", "is required", None, id="no images"),
    pytest.param({"images": []}, "invalid", "images", "at least 1", 1, id="empty images"),
    pytest.param({"images": [inline(encoded())] * 17}, "invalid", "images", "17 .* 16", 16, id="17 images"),
    pytest.param({"images": [{}]}, "invalid", "images[0]", "data.*sha256", None, id="image without source"),
    pytest.param(
        {"images": [{"url": "https://example.com/a.png"}]}, "invalid", "images[0].url", "URLs is off", None, id="a URL"
    ),
    pytest.param({"images": [{"date": "x"}]}, "invalid", "images[0].date", "data, sha256", None, id="mistyped source"),
    pytest.param({"images": [{"sha256": "ABC"}]}, "invalid", "images[0].sha256", "64", None, id="not a hash"),
    pytest.param({"images": [{"data": "?"}]}, "invalid", "images[0].data", "base64", None, id="not base64"),
    pytest.param(
        {"images": [{"data": "data:image/png,abc"}]}, "invalid", "images[0].data", "base64,", None, id="plain data URI"
    ),
    pytest.param({"images": [{"sha256": "0" * 64}]}, "image_unknown", "images", "0{64}", None, id="unknown hash"),
    pytest.param({"images": [inline(b"hello")]}, "image_refused", "images[0]", "not an image", None, id="not an image"),
    pytest.param({"images": [inline(b"")]}, "image_refused", "images[0]", "empty", None, id="empty image"),
    pytest.param({"images": [inline(b"<svg/>")]}, "image_refused", "images[0]", "SVG.*PNG", None, id="SVG"),
    pytest.param({"images": [inline(encoded("BMP"))]}, "image_refused", "images[0]", "BMP.*PNG", None, id="BMP"),
    pytest.param(
        {"images": [inline(encoded()), inline(encoded("JPEG")[:60])]},
        "image_refused",
        "images[1]",
        "JPEG .*breaks",
        None,
        id="JPEG cut in its header",
    ),
    pytest.param(
        {"images": [inline(bomb(5001, 5000))]},
        "image_refused",
        "images[0]",
        "25000000",
        25_000_000,
        id="25+ megapixels",
    ),
    pytest.param(
        {"images": [inline(bomb(16_385, 1))]}, "image_refused", "images[0]", "16384", 16_384, id="too long a side"
    ),
]


@pytest.mark.parametrize("change, code, field, says, limit", BAD)
def test_a_bad_event_is_refused_by_name_and_leaves_nothing(
    http: TestClient,
    ingest: Headers,
    stored: Stored,
    change: dict[str, Any],
    code: str,
    field: str,
    says: str,
    limit: object,
) -> None:
    before = stored()
    answer = http.post("/v1/events", content=json.dumps(event(**change)), headers=ingest)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["details"]["field"]) == (code, field)
    assert field.split("[")[0] in error["message"]
    assert re.search(says, error["message"])
    assert error["details"].get("limit") == limit
    assert stored() == before


@pytest.mark.parametrize("change, code, field, says, limit", BAD)
def test_the_same_bad_event_between_two_good_ones_harms_neither(
    http: TestClient,
    ingest: Headers,
    stored: Stored,
    change: dict[str, Any],
    code: str,
    field: str,
    says: str,
    limit: object,
) -> None:
    batch = [event(), event(**change), event(output="Another square.")]
    answer = http.post("/v1/events", content=json.dumps({"events": batch}), headers=ingest)
    assert answer.status_code == 202
    first, bad, last = answer.json()["results"]
    assert (first["status"], last["status"]) == ("accepted", "accepted")
    assert (bad["id"], bad["status"], bad["error"]["code"]) == (None, "rejected", code)
    assert bad["error"]["details"]["field"] == f"events[1].{field}"
    assert f"events[1].{field.split('[')[0]}" in bad["error"]["message"]
    assert stored() == {"events": 2, "event_bodies": 2, "ingest_keys": 0, "images": 1, "work": 2, "blobs": 1}


def test_one_bad_event_among_64_good_ones_is_the_only_one_refused(
    http: TestClient, ingest: Headers, stored: Stored
) -> None:
    batch = [event(event_id=f"e{i}", output=f"Square {i}.") for i in range(63)]
    batch.insert(40, event(confidence=2, images=[inline(encoded(size=(9, 9)))]))
    answer = http.post("/v1/events", json={"events": batch}, headers=ingest)
    assert answer.status_code == 202
    statuses = [result["status"] for result in answer.json()["results"]]
    assert statuses == ["accepted"] * 40 + ["rejected"] + ["accepted"] * 23
    assert stored() == {"events": 63, "event_bodies": 63, "ingest_keys": 63, "images": 1, "work": 63, "blobs": 1}


def test_two_problems_of_one_event_are_both_told(http: TestClient, ingest: Headers) -> None:
    answer = http.post("/v1/events", json=event(output="", confidence=2), headers=ingest)
    problems = answer.json()["error"]["details"]["problems"]
    assert [problem["field"] for problem in problems] == ["output", "confidence"]


@pytest.mark.parametrize(
    "body, field, says",
    [
        pytest.param(b"", "body", "not JSON", id="nothing"),
        pytest.param(b'{"endpoint": "chat",', "body", "line 1", id="cut JSON"),
        pytest.param(b'"hello"', "body", "JSON object", id="a string"),
        pytest.param(b"\xff\xfe\x00", "body", "not JSON", id="not UTF-8"),
        pytest.param(b"[" * 100_000, "body", "deeply", id="deep JSON"),
        pytest.param(b'{"confidence": ' + b"9" * 5000 + b"}", "body", "digits", id="endless number"),
        pytest.param(b'{"events": []}', "events", "1 to 64", id="no events"),
        pytest.param(b'{"events": {}}', "events", "1 to 64", id="events not a list"),
        pytest.param(b'{"events": [' + b"{}," * 64 + b"{}]}", "events", "64", id="65 events"),
        pytest.param(b'{"events": [{}], "endpoint": "chat"}', "endpoint", "each event", id="field beside events"),
        pytest.param(b'{"events": [3]}', "events[0]", "JSON object", id="event not an object"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_whole(
    http: TestClient, ingest: Headers, stored: Stored, body: bytes, field: str, says: str
) -> None:
    answer = http.post("/v1/events", content=body, headers=ingest)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field
    assert says in answer.json()["error"]["message"]
    assert set(stored().values()) == {0}


def test_the_same_id_with_another_body_is_a_conflict(http: TestClient, ingest: Headers, stored: Stored) -> None:
    assert http.post("/v1/events", json=event(event_id="e1"), headers=ingest).status_code == 202
    before = stored()
    other = event(event_id="e1", images=[inline(encoded(size=(9, 9)))])
    answer = http.post("/v1/events", json=other, headers=ingest)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "conflict"
    assert answer.json()["error"]["details"]["field"] == "event_id"
    assert stored() == before  # not even the other picture


def test_a_conflict_within_one_batch_keeps_the_first(http: TestClient, ingest: Headers, stored: Stored) -> None:
    batch = [event(event_id="e1"), event(event_id="e1"), event(event_id="e1", output="Something else.")]
    results = http.post("/v1/events", json={"events": batch}, headers=ingest).json()["results"]
    assert [result["status"] for result in results] == ["accepted", "duplicate", "rejected"]
    assert results[0]["id"] == results[1]["id"]
    assert results[2]["error"]["details"]["field"] == "events[2].event_id"
    assert stored()["events"] == 1


def test_an_image_over_its_limit_is_refused_before_it_is_decoded(
    configured: Callable[..., settings.Settings], http: TestClient, ingest: Headers, app: Any, stored: Stored
) -> None:
    app.state.settings = configured(max_image_bytes=2000)
    answer = http.post("/v1/events", json=event(images=[inline(b"x" * 2001)]), headers=ingest)
    assert answer.status_code == 413
    assert answer.json()["error"]["details"] == {"field": "images[0]", "limit": 2000}
    assert set(stored().values()) == {0}


def test_nul_and_lone_surrogates_are_replaced_and_noted(http: TestClient, ingest: Headers, read: Headers) -> None:
    sent = event(output=f"a\x00b{LONE}c", prompt="\x00", tokens=[LONE], metadata={f"k\x00{LONE}": [{"x": "\x00"}]})
    answer = http.post("/v1/events", content=json.dumps(sent), headers=ingest)
    assert answer.status_code == 202
    found = http.get(f"/v1/events/{answer.json()['results'][0]['id']}", headers=read).json()
    assert found["output"] == "a\ufffdb\ufffdc"
    assert found["prompt"] == "\ufffd"
    assert found["metadata"] == {"k\ufffd\ufffd": [{"x": "\ufffd"}]}
    assert found["text_sanitized"] is True


def test_a_lone_surrogate_as_raw_bytes_is_replaced_too(http: TestClient, ingest: Headers, read: Headers) -> None:
    body = json.dumps(event(output="@")).encode().replace(b"@", b"\xed\xa0\xbd")
    answer = http.post("/v1/events", content=body, headers=ingest)
    found = http.get(f"/v1/events/{answer.json()['results'][0]['id']}", headers=read).json()
    assert (found["output"], found["text_sanitized"]) == ("\ufffd", True)


def test_emoji_are_left_alone(http: TestClient, ingest: Headers, read: Headers) -> None:
    answer = http.post("/v1/events", content=json.dumps(event(output="a \U0001f600")), headers=ingest)
    found = http.get(f"/v1/events/{answer.json()['results'][0]['id']}", headers=read).json()
    assert (found["output"], found["text_sanitized"]) == ("a \U0001f600", False)


def test_a_time_just_over_five_minutes_ahead_is_refused(http: TestClient, ingest: Headers) -> None:
    answer = http.post("/v1/events", json=event(occurred_at=in_minutes(5.5)), headers=ingest)
    assert answer.status_code == 422
    assert "5 minutes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("minutes, late", [(-5, False), (-11, True), (-60 * 24 * 400, True), (4, False)])
def test_old_events_are_taken_and_marked_late(
    http: TestClient, ingest: Headers, read: Headers, minutes: float, late: bool
) -> None:
    answer = http.post("/v1/events", json=event(occurred_at=in_minutes(minutes)), headers=ingest)
    assert answer.status_code == 202
    found = http.get(f"/v1/events/{answer.json()['results'][0]['id']}", headers=read).json()
    assert found["is_late"] is late


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(
            encoded("GIF", mode="P", save_all=True, append_images=[Image.new("P", (8, 8), 1)]), id="moving GIF"
        ),
        pytest.param(encoded("PNG", mode="I;16"), id="16 bits"),
        pytest.param(encoded("JPEG", mode="CMYK"), id="CMYK"),
        pytest.param(encoded("PNG", mode="RGBA"), id="alpha"),
        pytest.param(encoded("JPEG", size=(99, 99))[:-40], id="JPEG cut in its picture"),
    ],
)
def test_odd_images_are_accepted_for_the_worker_to_judge(http: TestClient, ingest: Headers, image: bytes) -> None:
    answer = http.post("/v1/events", json=event(images=[inline(image)]), headers=ingest)
    assert answer.status_code == 202


@pytest.mark.parametrize("sentinel", [-9999, -9999.0, -1e4])
def test_the_sentinel_of_a_missing_logprob_is_no_probability(
    http: TestClient, ingest: Headers, read: Headers, sentinel: float
) -> None:
    answer = http.post("/v1/events", json=event(logprobs=[-0.5, sentinel]), headers=ingest)
    found = http.get(f"/v1/events/{answer.json()['results'][0]['id']}", headers=read).json()
    assert found["confidence"]["geo_p"] == pytest.approx(0.60653, abs=1e-5)
    assert found["confidence"]["n_tokens"] == 1
