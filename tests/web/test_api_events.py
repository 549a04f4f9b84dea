"""POST /v1/events stores once whatever the way the bytes come, and the answers read as the contract says."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import models
from tests.web.wire import Headers, event, inline, multipart, named, png, sha256

Stored = Callable[[], dict[str, int]]


def test_inline_multipart_and_hash_first_retries_are_one_event(
    http: TestClient, ingest: Headers, stored: Stored
) -> None:
    picture = png()
    by_hash = event(images=[named(picture)], event_id="e1")
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    answers = [
        http.post("/v1/events", json=event(images=[inline(picture)], event_id="e1"), headers=ingest),
        http.post("/v1/events", json=event(images=[{"data": uri}], event_id="e1"), headers=ingest),
        http.post("/v1/events", **multipart([by_hash], picture), headers=ingest),
        http.post("/v1/events", **multipart([by_hash], filename="events.json"), headers=ingest),
        http.post("/v1/events", json={"events": [by_hash]}, headers=ingest),
    ]
    results = [answer.json()["results"][0] for answer in answers]
    assert [answer.status_code for answer in answers] == [202] * 5
    assert [result["status"] for result in results] == ["accepted"] + ["duplicate"] * 4
    assert len({result["id"] for result in results}) == 1
    assert stored() == {"events": 1, "event_bodies": 1, "ingest_keys": 1, "images": 1, "work": 1, "blobs": 1}


def test_without_an_id_each_event_is_another(http: TestClient, ingest: Headers, stored: Stored) -> None:
    for _ in range(2):
        assert http.post("/v1/events", json=event(), headers=ingest).status_code == 202
    assert stored()["events"] == 2


def test_a_multipart_batch_shares_its_pictures(http: TestClient, ingest: Headers, stored: Stored) -> None:
    first, second = png(1), png(2)
    batch = [event(images=[named(first)]), event(images=[named(first), named(second)])]
    answer = http.post("/v1/events", **multipart(batch, first, second), headers=ingest)
    assert [result["status"] for result in answer.json()["results"]] == ["accepted", "accepted"]
    assert (stored()["events"], stored()["images"], stored()["blobs"]) == (2, 2, 2)


def test_a_picture_that_no_accepted_event_names_is_not_stored(
    http: TestClient, ingest: Headers, stored: Stored
) -> None:
    wanted, unwanted = png(1), png(2)
    batch = [event(images=[named(wanted)]), event(images=[named(unwanted)], confidence=2)]
    http.post("/v1/events", **multipart(batch, wanted, unwanted, png(3)), headers=ingest)
    assert (stored()["images"], stored()["blobs"]) == (1, 1)


def test_a_part_that_does_not_match_its_hash_refuses_only_its_event(
    http: TestClient, ingest: Headers, stored: Stored
) -> None:
    good, promised, other = png(1), png(2), png(3)
    request = multipart([event(images=[named(good)]), event(images=[named(promised)])], good)
    request["files"].append((f"sha256:{sha256(promised)}", ("x", other, "image/png")))
    results = http.post("/v1/events", **request, headers=ingest).json()["results"]
    assert [result["status"] for result in results] == ["accepted", "rejected"]
    assert results[1]["error"]["code"] == "image_refused"
    assert results[1]["error"]["details"]["field"] == "events[1].images[0]"
    assert sha256(other) in results[1]["error"]["message"]
    assert stored()["blobs"] == 1


@pytest.mark.parametrize(
    "parts, says",
    [
        pytest.param([("sha256:" + "0" * 64, ("x", b"x"))], "`events`", id="no events"),
        pytest.param([("events", (None, b"{}")), ("events", (None, b"{}"))], "twice", id="events twice"),
        pytest.param([("events", (None, b"{}")), ("picture", ("x", b"x"))], "'picture'", id="a part of another name"),
        pytest.param([("events", (None, b"{}")), ("sha256:zz", ("x", b"x"))], "64", id="not a hash"),
        pytest.param([("events", (None, b"nonsense"))], "not JSON", id="not JSON"),
    ],
)
def test_a_multipart_body_of_the_wrong_parts_is_refused(
    http: TestClient, ingest: Headers, stored: Stored, parts: Any, says: str
) -> None:
    answer = http.post("/v1/events", files=parts, headers=ingest)
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
    assert set(stored().values()) == {0}


@pytest.mark.parametrize(
    "content_type, body",
    [
        pytest.param("multipart/form-data", b"--x\r\n", id="no boundary"),
        pytest.param("multipart/form-data; boundary=x", b"hello", id="not multipart"),
        pytest.param("multipart/form-data; boundary=x", b"", id="nothing"),
        pytest.param(
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="events"\r\n\r\n{"events"',
            id="cut off",
        ),
        pytest.param("multipart/form-data; boundary=" + "x" * 300, b"--x--", id="endless boundary"),
        pytest.param(
            "multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\n", id="a hundred headers"
        ),
    ],
)
def test_a_broken_multipart_body_is_refused(http: TestClient, ingest: Headers, content_type: str, body: bytes) -> None:
    answer = http.post("/v1/events", content=body, headers=ingest | {"Content-Type": content_type})
    assert answer.status_code == 422
    assert "multipart" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(http: TestClient, ingest: Headers, content_type: str) -> None:
    answer = http.post("/v1/events", content=b"{}", headers=ingest | {"Content-Type": content_type})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_an_event_reads_back_as_it_was_sent(
    http: TestClient, ingest: Headers, read: Headers, session: orm.Session
) -> None:
    sent = event(
        images=[inline(png())],
        event_id="e1",
        occurred_at="2026-11-20T10:00:00+01:00",
        prompt_type="describe",
        customer="acme",
        model="vlm",
        model_version="2",
        environment="staging",
        request_id="r",
        response_id="s",
        trace_id="t",
        prompt="What is this?",
        tokens=["A", " square"],
        logprobs=[-0.25, -0.75],
        confidence=0.1,
        sample_rate=0.5,
        metadata={"a": {"b": [1, 2.5, None, "ä"]}},
    )
    made = http.post("/v1/events", json=sent, headers=ingest).json()["results"][0]["id"]
    found = http.get(f"/v1/events/{made}", headers=read).json()
    same = set(sent) - {"images", "tokens", "logprobs", "confidence", "occurred_at"}
    assert {name: found[name] for name in same} == {name: sent[name] for name in same}
    assert found["occurred_at"] == "2026-11-20T09:00:00+00:00"
    assert found["images"] == [{"sha256": sha256(png())}]
    assert found["confidence"]["geo_p"] == pytest.approx(0.60653, abs=1e-5)  # logprobs beat the app's own 0.1
    assert (found["state"], found["check"], found["decision"], found["review"]) == ("waiting", None, None, None)
    body = session.get_one(models.EventBody, uuid.UUID(made))
    assert (body.tokens, body.logprobs) == (["A", " square"], [-0.25, -0.75])


def test_lists_are_newest_first_and_page_without_gaps(http: TestClient, ingest: Headers, read: Headers) -> None:
    made = [
        http.post("/v1/events", json=event(event_id=f"e{i}"), headers=ingest).json()["results"][0]["id"]
        for i in range(5)
    ]
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = http.get("/v1/events", params=query, headers=read).json()
        seen += [row["id"] for row in page["rows"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize(
    "query, found",
    [
        ({"event_id": "a"}, {"a"}),
        ({"event_id": "nobody"}, set()),
        ({"customer": "acme"}, {"a"}),
        ({"customer": ""}, {"b"}),
        ({"endpoint": "chat", "customer": "acme"}, {"a"}),
        ({"state": "waiting"}, {"a", "b"}),
        ({"state": "checked"}, set()),
        ({"flagged": "true"}, set()),
        ({"outcome": "scored"}, set()),
        ({"from": "2020-01-01T00:00:00Z"}, {"a", "b"}),
        ({"to": "2020-01-01T00:00:00Z"}, set()),
    ],
)
def test_lists_filter_by_what_is_asked(
    http: TestClient, ingest: Headers, read: Headers, query: dict[str, str], found: set[str]
) -> None:
    batch = [event(event_id="a", customer="acme"), event(event_id="b")]
    http.post("/v1/events", json={"events": batch}, headers=ingest)
    rows = http.get("/v1/events", params=query, headers=read).json()["rows"]
    assert {row["event_id"] for row in rows} == found


@pytest.mark.parametrize(
    "query, field",
    [
        ({"custmer": "acme"}, "custmer"),
        ({"outcome": "good"}, "outcome"),
        ({"state": "lost"}, "state"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-11-24T09:00:00"}, "to"),
        ({"limit": "201"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "not-one"}, "cursor"),
        ({"flagged": "maybe"}, "flagged"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_name(
    http: TestClient, read: Headers, query: dict[str, str], field: str
) -> None:
    answer = http.get("/v1/events", params=query, headers=read)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field


def test_filters_with_unstorable_text_find_nothing_instead_of_failing(http: TestClient, read: Headers) -> None:
    for query in ("customer=%00", "event_id=%00", "endpoint=%ED%A0%BD"):
        answer = http.get(f"/v1/events?{query}", headers=read)
        assert (answer.status_code, answer.json()["rows"]) == (200, [])
