"""The queue over HTTP: what each call answers, and what each refuses."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models
from tests import factories
from tests.core import review_people as people

Headers = dict[str, str]
Person = Callable[..., Headers]


@pytest.fixture
def person(session: orm.Session, project: models.Project) -> Person:
    """`person("ada")` makes the headers of a review key that acts as a reviewer of that name."""

    def make(login: str, role: str = "reviewer", *scopes: str, of: models.Project | None = None) -> Headers:
        home = (of or project).id
        user = access.create_user(session, home, login, login.title(), role)
        made = access.create_key(session, home, login, scopes or ("review",), user.id)
        session.commit()
        return {"Authorization": f"Bearer {made}"}

    return make


@pytest.fixture
def ada(person: Person) -> Headers:
    return person("ada")


@pytest.fixture
def bob(person: Person) -> Headers:
    return person("bob")


@pytest.fixture
def items(session: orm.Session, project: models.Project) -> list[models.ReviewItem]:
    made = people.queue(session, project.id, 3)
    session.commit()
    return made


def taken(http: TestClient, headers: Headers) -> tuple[str, str]:
    """The id of the next item, and its lease's token."""
    answer = http.post("/v1/reviews/next", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["item"]["id"], answer.json()["lease"]["token"]


def verdict(http: TestClient, headers: Headers, item: str, token: str, **fields: Any) -> Any:
    body = {"lease_token": token, "verdict": "hallucinated"} | fields
    return http.post(f"/v1/reviews/{item}/verdict", json=body, headers=headers)


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The details of a refusal in the one shape."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code, error
    return dict(error["details"])


def test_next_answers_with_the_item_and_a_lease(http: TestClient, ada: Headers, items: list[models.ReviewItem]) -> None:
    answer = http.post("/v1/reviews/next", headers=ada)
    assert answer.status_code == 200
    item, lease = answer.json()["item"], answer.json()["lease"]
    assert item["id"] == str(items[0].id)
    assert item["event"]["id"] == str(items[0].event_id)
    assert item["event"]["output"] == "A red circle."
    assert item["event"]["images"]
    assert item["event"]["check"]["claims"]
    assert uuid.UUID(lease["token"])
    left = dt.datetime.fromisoformat(lease["expires_at"]) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(minutes=4) < left <= dt.timedelta(minutes=5)


def test_an_empty_queue_answers_204(http: TestClient, ada: Headers) -> None:
    answer = http.post("/v1/reviews/next", headers=ada)
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_whole_day_of_one_item(http: TestClient, ada: Headers, read: Headers, items: list[models.ReviewItem]) -> None:
    item, token = taken(http, ada)
    beat = http.post(f"/v1/reviews/{item}/heartbeat", json={"lease_token": token}, headers=ada)
    assert beat.json()["lease"]["token"] == token
    said = {"error_types": ["object"], "spans": [{"start": 2, "end": 5, "error_type": "object"}], "note": "no red"}
    answer = verdict(http, ada, item, token, **said, correction="A blue circle.")
    assert answer.status_code == 200
    assert answer.json()["item"] == {"id": item, "state": "done"}
    assert answer.json()["review"]["seconds"] >= 0
    shown = http.get(f"/v1/events/{items[0].event_id}", headers=read).json()["review"]
    assert {name: shown[name] for name in ("item", "kind", "state", "verdict")} == {
        "item": item, "kind": "flagged", "state": "done", "verdict": "hallucinated"
    }  # fmt: skip
    assert {name: shown[name] for name in said} == said
    back = http.post(f"/v1/reviews/{item}/undo", headers=ada)
    assert back.json()["lease"]["token"] != token
    shown = http.get(f"/v1/events/{items[0].event_id}", headers=read).json()["review"]
    assert (shown["state"], shown["verdict"], shown["reviewed_at"]) == ("leased", None, None)
    released = http.post(
        f"/v1/reviews/{item}/release", json={"lease_token": back.json()["lease"]["token"]}, headers=ada
    )
    assert (released.status_code, released.content) == (204, b"")
    assert taken(http, ada)[0] == item


def test_skip_escalate_and_hold(http: TestClient, ada: Headers, bob: Headers, items: list[models.ReviewItem]) -> None:
    item, token = taken(http, ada)
    reason = {"reason": "The picture is blurred."}
    skipped = http.post(f"/v1/reviews/{item}/skip", json={"lease_token": token} | reason, headers=ada)
    assert skipped.json() == {"item": {"id": item, "state": "open"}}
    held = http.post(f"/v1/reviews/{item}/hold", headers=bob).json()
    assert held["item"]["id"] == item
    assert http.get("/v1/reviews/held", headers=bob).json()["rows"] == [held]
    body = {"lease_token": held["lease"]["token"]} | reason
    assert http.post(f"/v1/reviews/{item}/escalate", json=body, headers=bob).json()["item"]["state"] == "escalated"
    details = refused(http.post(f"/v1/reviews/{item}/hold", headers=ada), 409, "lease_lost")
    assert details["state"] == "escalated"


def test_escalated_items_are_for_keys_that_act_as_leads(
    http: TestClient, person: Person, ada: Headers, items: list[models.ReviewItem]
) -> None:
    lea = person("lea", "lead", "review", "admin")
    item, token = taken(http, ada)
    http.post(f"/v1/reviews/{item}/escalate", json={"lease_token": token, "reason": "unsure"}, headers=ada)
    refused(http.post("/v1/reviews/next", json={"state": "escalated"}, headers=ada), 403, "forbidden")
    answer = http.post("/v1/reviews/next", json={"state": "escalated"}, headers=lea)
    assert answer.json()["item"]["id"] == item


def test_a_reviewer_cannot_tell_an_audit_item_from_a_flagged_one(
    http: TestClient, session: orm.Session, project: models.Project, person: Person, ada: Headers
) -> None:
    factories.ingest(session, project.id)
    factories.ingest(session, project.id)
    scores = iter([0.01, 0.6])
    factories.check_all(session, lambda event: next(scores), audit_rate=1.0)
    session.commit()
    for _ in range(2):
        item = http.post("/v1/reviews/next", headers=ada).json()["item"]
        assert (item["kind"], item["priority"], item["inclusion_probability"]) == (None, None, None)
        assert item["event"]["decision"] is None
        assert "review" not in item["event"]
        assert "audit" not in str(item)
    session.execute(sa.update(models.ReviewItem).values(lease_until=sa.func.now()))
    session.commit()
    lea = person("lea", "lead", "review", "admin")
    seen = [http.post("/v1/reviews/next", headers=lea).json()["item"] for _ in range(2)]
    assert {item["kind"] for item in seen} == {"flagged", "audit"}
    assert all(item["event"]["decision"] for item in seen)


def test_a_second_verdict_names_who_answered_and_when(
    http: TestClient, ada: Headers, items: list[models.ReviewItem]
) -> None:
    item, token = taken(http, ada)
    assert verdict(http, ada, item, token).status_code == 200
    details = refused(verdict(http, ada, item, token, verdict="correct"), 409, "lease_lost")
    assert details["holder"] == "ada"
    assert dt.datetime.fromisoformat(details["at"])


def test_a_stale_token_names_the_holder_and_until_when(
    http: TestClient, session: orm.Session, ada: Headers, bob: Headers, items: list[models.ReviewItem]
) -> None:
    item, token = taken(http, ada)
    people.pass_time(session, dt.timedelta(minutes=6))
    session.commit()
    details = refused(verdict(http, ada, item, token), 409, "lease_lost")
    assert (details["holder"], details["state"]) == (None, "expired")
    lease = http.post("/v1/reviews/next", headers=bob).json()["lease"]
    for path, body in (("verdict", {"verdict": "correct"}), ("skip", {"reason": "no"}), ("heartbeat", {})):
        answer = http.post(f"/v1/reviews/{item}/{path}", json={"lease_token": token} | body, headers=ada)
        details = refused(answer, 409, "lease_lost")
        assert (details["holder"], details["until"]) == ("bob", lease["expires_at"])
        assert "bob holds this item" in answer.json()["error"]["message"]
    assert verdict(http, bob, item, lease["token"]).status_code == 200


def test_an_eleventh_item_is_refused_with_the_limit(
    http: TestClient, session: orm.Session, project: models.Project, ada: Headers
) -> None:
    people.queue(session, project.id, 11)
    session.commit()
    for _ in range(10):
        taken(http, ada)
    assert refused(http.post("/v1/reviews/next", headers=ada), 409, "conflict")["limit"] == 10


CALLS = {
    "hold": {},
    "heartbeat": {"lease_token": str(uuid.uuid4())},
    "verdict": {"lease_token": str(uuid.uuid4()), "verdict": "correct", "spans": [{"start": 0, "end": 1}]},
    "skip": {"lease_token": str(uuid.uuid4()), "reason": "no"},
    "escalate": {"lease_token": str(uuid.uuid4()), "reason": "no"},
    "release": {"lease_token": str(uuid.uuid4())},
    "undo": {},
}


@pytest.mark.parametrize("call", CALLS)
def test_another_projects_item_is_404_like_one_that_never_was(
    http: TestClient, person: Person, stranger: models.Project, items: list[models.ReviewItem], call: str
) -> None:
    eve = person("eve", "admin", "review", "admin", of=stranger)
    answers = [
        http.post(f"/v1/reviews/{item}/{call}", json=CALLS[call], headers=eve) for item in (items[0].id, uuid.uuid4())
    ]
    for answer in answers:
        refused(answer, 404, "not_found")
    assert http.post("/v1/reviews/next", headers=eve).status_code == 204


@pytest.mark.parametrize("path", ["next", *(f"{uuid.UUID(int=7)}/{call}" for call in CALLS)])
def test_a_viewers_key_and_keys_without_the_scope_are_refused(
    http: TestClient, person: Person, read: Headers, path: str
) -> None:
    refused(http.post(f"/v1/reviews/{path}", headers=person("vic", "viewer")), 403, "forbidden")
    refused(http.post(f"/v1/reviews/{path}", headers=read), 403, "forbidden")
    refused(http.post(f"/v1/reviews/{path}"), 401, "unauthenticated")


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"lease_token": ...}, "lease_token"),
        ({"lease_token": "mine"}, "lease_token"),
        ({"lease_token": 7}, "lease_token"),
        ({"verdict": ...}, "verdict"),
        ({"verdict": "wrong"}, "verdict"),
        ({"verdict": None}, "verdict"),
        ({"error_types": "object"}, "error_types"),
        ({"error_types": ["object", "hue"]}, "error_types[1]"),
        ({"error_types": [1]}, "error_types[0]"),
        ({"spans": [{"start": 0, "end": 14}]}, "spans[0].end"),
        ({"spans": [{"start": 3, "end": 3}]}, "spans[0].end"),
        ({"spans": [{"start": -1, "end": 3}]}, "spans[0].start"),
        ({"spans": [{"start": 0.5, "end": 3}]}, "spans[0].start"),
        ({"spans": [{"start": True, "end": 3}]}, "spans[0].start"),
        ({"spans": [{"start": float("nan"), "end": 3}]}, "spans[0].start"),
        ({"spans": [{"start": 10**30, "end": 10**31}]}, "spans[0].end"),
        ({"spans": [{"start": 0, "end": 3, "colour": "red"}]}, "spans[0].colour"),
        ({"spans": [{"start": 0, "end": 3, "error_type": "hue"}]}, "spans[0].error_type"),
        ({"spans": [[0, 3]]}, "spans[0]"),
        ({"correction": 5}, "correction"),
        ({"note": ["a"]}, "note"),
        ({"vote": "up"}, "vote"),
    ],
)
def test_a_wrong_field_is_named_and_the_lease_stays(
    http: TestClient, ada: Headers, items: list[models.ReviewItem], fields: dict[str, Any], field: str
) -> None:
    item, token = taken(http, ada)
    body = {"lease_token": token, "verdict": "hallucinated"} | fields
    content = json.dumps({name: value for name, value in body.items() if value is not ...})
    headers = ada | {"Content-Type": "application/json"}
    answer = http.post(f"/v1/reviews/{item}/verdict", content=content, headers=headers)
    assert refused(answer, 422, "invalid")["field"] == field
    assert field in answer.json()["error"]["message"]
    assert verdict(http, ada, item, token).status_code == 200


@pytest.mark.parametrize("name", ["note", "correction"])
def test_a_note_of_a_megabyte_is_refused_with_the_limit(
    http: TestClient, ada: Headers, items: list[models.ReviewItem], name: str
) -> None:
    item, token = taken(http, ada)
    details = refused(verdict(http, ada, item, token, **{name: "x" * 2**20}), 422, "invalid")
    assert details == {"field": name, "limit": 10_000}
    assert verdict(http, ada, item, token, **{name: "x" * 10_000}).status_code == 200


@pytest.mark.parametrize("call", ["skip", "escalate"])
@pytest.mark.parametrize("reason", [..., None, "", "  ", pytest.param("x" * 10_001, id="long"), 5])
def test_passing_on_without_a_reason_is_refused(
    http: TestClient, ada: Headers, items: list[models.ReviewItem], call: str, reason: Any
) -> None:
    item, token = taken(http, ada)
    body = {"lease_token": token} | ({} if reason is ... else {"reason": reason})
    assert refused(http.post(f"/v1/reviews/{item}/{call}", json=body, headers=ada), 422, "invalid")["field"] == "reason"


@pytest.mark.parametrize(
    "content, status, field",
    [
        (b"{", 422, "body"),
        (b"[]", 422, "body"),
        (b'"next"', 422, "body"),
        (b"\xff", 422, "body"),
        (b"[" * 40 + b"]" * 40, 422, "body"),
        (b'{"state": "done"}', 422, "state"),
        (b'{"kinds": ["all"]}', 422, "kinds"),
        (b'{"kinds": "audit"}', 422, "kinds"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(
    http: TestClient, ada: Headers, content: bytes, status: int, field: str
) -> None:
    headers = ada | {"Content-Type": "application/json"}
    answer = http.post("/v1/reviews/next", content=content, headers=headers)
    assert refused(answer, status, "invalid")["field"] == field


def test_other_media_and_malformed_addresses_are_refused(http: TestClient, ada: Headers) -> None:
    answer = http.post("/v1/reviews/next", content=b"a=1", headers=ada | {"Content-Type": "text/plain"})
    refused(answer, 415, "unsupported_media_type")
    assert refused(http.post("/v1/reviews/1/hold", headers=ada), 422, "invalid")["field"] == "item"
    refused(http.get("/v1/reviews/next", headers=ada), 405, "method_not_allowed")


def test_what_reviewers_write_comes_back_as_they_wrote_it(
    http: TestClient, ada: Headers, read: Headers, items: list[models.ReviewItem]
) -> None:
    item, token = taken(http, ada)
    hostile = "<script>alert(1)</script> \u202eright to left\u202c {{7*7}} ' OR 1=1 --\x00"
    assert verdict(http, ada, item, token, note=hostile).status_code == 200
    shown = http.get(f"/v1/events/{items[0].event_id}", headers=read)
    assert shown.headers["content-type"] == "application/json"
    assert shown.json()["review"]["note"] == hostile.replace("\x00", "\ufffd")


def test_a_disabled_reviewers_key_answers_nothing(
    http: TestClient, session: orm.Session, ada: Headers, items: list[models.ReviewItem]
) -> None:
    session.execute(sa.update(models.User).where(models.User.login == "ada").values(disabled_at=sa.func.now()))
    session.commit()
    refused(http.post("/v1/reviews/next", headers=ada), 401, "unauthenticated")
