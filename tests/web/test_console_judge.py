"""The second opinion on the event page and in the API: beside the checker, never mixed with it."""

from __future__ import annotations

import uuid

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import blobs, judgements, models
from cmerwatch.judgements import Opinion
from tests import factories


@pytest.fixture
def flagged(session: orm.Session, project: models.Project, blob_store: blobs.BlobStore) -> uuid.UUID:
    """An event that waits for the judge."""
    factories.ingest(session, project.id)
    done = factories.check_all(session, score=0.01)
    judgements.route(session, done, below=None)
    session.commit()
    return done[0].result.event.event_id


def say(session: orm.Session, opinion: Opinion) -> None:
    token = uuid.uuid4()
    [suspect] = judgements.claim(session, 1, 30, token, questions=8)
    assert judgements.record(session, token, suspect, "<b>vlm</b>", opinion)
    session.commit()


def test_what_the_judge_said_stands_beside_the_checkers_numbers(
    console: TestClient, session: orm.Session, flagged: uuid.UUID
) -> None:
    say(session, Opinion((0.125,), calls=1))
    page = console.get(f"/events/{flagged}").text
    assert "12.5% true" in page
    assert "second opinion" in page
    assert "<b>vlm</b>" not in page


@pytest.mark.parametrize(
    "opinion, words",
    [
        (Opinion(reason="over_budget"), "budget for it is spent"),
        (Opinion(reason="no_logprobs"), "no log-probabilities"),
        (Opinion(reason="timeout", may_pass=True), "is asked again"),
        (Opinion(reason="http_418"), "http 418"),
    ],
)
def test_a_judge_without_an_opinion_says_why(
    console: TestClient, session: orm.Session, flagged: uuid.UUID, opinion: Opinion, words: str
) -> None:
    # The sentence belongs to the table of claims, which a check without percentiles has too.
    say(session, opinion)
    assert words in console.get(f"/events/{flagged}").text


def test_the_api_answers_the_opinion_beside_the_check(
    http: TestClient, read: dict[str, str], session: orm.Session, flagged: uuid.UUID
) -> None:
    assert http.get(f"/v1/events/{flagged}", headers=read).json()["judge"]["state"] == "waiting"
    say(session, Opinion((0.25,), calls=1))
    found = http.get(f"/v1/events/{flagged}", headers=read).json()
    assert found["judge"]["p_yes"] == 0.25
    assert found["judge"]["reason"] is None
    assert found["check"]["score"] == pytest.approx(0.01)


def test_an_event_nobody_judged_says_nothing_of_a_judge(
    console: TestClient, http: TestClient, read: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    event = factories.ingest(session, project.id)
    factories.check_all(session, score=0.5)
    session.commit()
    assert http.get(f"/v1/events/{event}", headers=read).json()["judge"] is None
    assert "judge" not in console.get(f"/events/{event}").text.lower()
