"""The reviewer's page over plain HTTP, as a browser without a script uses it."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, models
from tests.web import seeded

Sender = Callable[..., uuid.UUID]
Person = Callable[..., TestClient]


@pytest.fixture
def person(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> Person:
    """A browser in which somebody of this role is signed in."""

    def make(login: str = "rita", role: str = "reviewer", of: models.Project | None = None) -> TestClient:
        user = access.create_user(session, (of or project).id, login, login.title(), role, password="correct horse bat")
        cookie = access.open_console_session(session, user.id)
        session.commit()
        return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})

    return make


@pytest.fixture
def rita(person: Person) -> TestClient:
    return person()


@pytest.fixture
def flagged(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Sender:
    """The review item of a fresh flagged event."""

    def make(judge: seeded.Judge | None = None, audit_rate: float = 0.0, **details: object) -> uuid.UUID:
        event = seeded.event(session, blob_store, project.id, **details)  # type: ignore[arg-type]
        seeded.check(session, judge or seeded.scored(0.12, 0.004), audit_rate=audit_rate)
        session.commit()
        return session.scalars(sa.select(models.ReviewItem.id).where(models.ReviewItem.event_id == event)).one()

    return make


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def lease(page: str) -> str:
    found = re.search(r'name="lease_token" value="([0-9a-f-]{36})"', page)
    assert found, words(page)
    return found[1]


def start(browser: TestClient) -> tuple[str, str]:
    """Take the next item: its address and its lease."""
    answer = browser.post("/review/next")
    assert answer.status_code == 303
    address = answer.headers["location"]
    return address, lease(browser.get(address).text)


def test_opening_the_queue_takes_nothing(rita: TestClient, flagged: Sender, session: orm.Session) -> None:
    flagged()
    page = words(rita.get("/review").text)
    assert "1 item waits for a verdict" in page
    session.expire_all()
    assert session.scalars(sa.select(models.ReviewItem.state)).all() == ["open"]


def test_a_verdict_is_stored_and_leads_straight_to_the_next_item(
    rita: TestClient, flagged: Sender, session: orm.Session
) -> None:
    flagged(), flagged()
    first, token = start(rita)
    said = {"verdict": "hallucinated", "error_types": ["object", "count"], "note": "there is no dog"}
    answer = rita.post(f"{first}/verdict", data={"lease_token": token, **said})
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/review/")
    assert answer.headers["location"] != first
    review = session.scalars(sa.select(models.Review)).one()
    assert (review.verdict, review.error_types, review.note) == ("hallucinated", ["object", "count"], "there is no dog")
    assert "Marked hallucinated." in words(rita.get(answer.headers["location"]).text)
