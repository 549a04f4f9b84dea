"""The queue over HTTP: what each call answers, and what each refuses."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models
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
