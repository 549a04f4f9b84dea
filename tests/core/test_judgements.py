"""What waits for the judge, what it said, and what a day may cost."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import judgements, models
from cmerwatch.judgements import Opinion, Suspect
from tests import factories


@pytest.fixture
def project_id(session: orm.Session) -> uuid.UUID:
    return factories.project(session)


def rows(session: orm.Session) -> list[models.Judgement]:
    session.expire_all()
    return list(session.scalars(sa.select(models.Judgement).order_by(models.Judgement.event_id)))


def suspicious(session: orm.Session, project_id: uuid.UUID, n: int = 1, **fields: object) -> None:
    """n flagged events that wait for the judge."""
    factories.ingest_many(session, project_id, n, **fields)
    judgements.route(session, factories.check_all(session, score=0.01), below=None)


def claim(session: orm.Session, n: int = 10) -> tuple[uuid.UUID, list[Suspect]]:
    token = uuid.uuid4()
    return token, judgements.claim(session, n, 30, token, questions=8)


def let_time_pass(session: orm.Session) -> None:
    session.execute(
        sa.text("UPDATE judgements SET next_at = now() - interval '1 s', lease_until = now() - interval '1 s'")
    )


def test_what_the_policy_calls_low_waits_for_the_judge(session: orm.Session, project_id: uuid.UUID) -> None:
    low = factories.ingest(session, project_id)
    factories.ingest(session, project_id)
    decided = factories.check_all(session, score=lambda event: 0.01 if event.event_id == low else 0.5)
    assert judgements.route(session, decided, below=None) == 1
    assert judgements.route(session, decided, below=None) == 0, "a completion that is repeated queues nothing twice"
    assert [(row.event_id, row.state) for row in rows(session)] == [(low, "waiting")]


def test_a_wider_share_may_be_judged_than_is_flagged(session: orm.Session, project_id: uuid.UUID) -> None:
    factories.ingest_many(session, project_id, 3)
    scores = iter([0.01, 0.15, 0.5])
    assert judgements.route(session, factories.check_all(session, score=lambda _: next(scores)), below=0.2) == 2


def test_undecided_events_and_those_without_claims_are_not_judged(session: orm.Session, project_id: uuid.UUID) -> None:
    factories.ingest(session, project_id)
    assert judgements.route(session, factories.check_all(session, score=0.01, is_calibrated=False), below=0.9) == 0
    factories.ingest(session, project_id)
    assert judgements.route(session, factories.check_all(session, score=None, outcome="unscorable"), below=0.9) == 0


def test_a_suspect_brings_its_weakest_claims_first(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id, output="A red circle.")
    _, [suspect] = claim(session)
    assert [question.statement for question in suspect.questions] == ["A red circle."]
    assert len(suspect.images) == 1
    assert suspect.attempts == 1


def test_no_two_judges_hold_one_event(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id, 3)
    _, first = claim(session, 2)
    _, second = claim(session)
    held = [suspect.event_id for suspect in (*first, *second)]
    assert len(first) == 2
    assert len(second) == 1
    assert len(set(held)) == 3
    assert claim(session)[1] == []


def test_an_opinion_is_the_lowest_of_its_claims(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    token, [suspect] = claim(session)
    question = suspect.questions[0]
    both = Suspect(suspect.event_id, suspect.checker_id, suspect.project_id, 1, suspect.images, (question, question))
    assert judgements.record(session, token, both, "vlm", Opinion((0.9, 0.2), calls=2, tokens=300))
    [row] = rows(session)
    assert (row.state, row.p_yes, row.judge, row.calls, row.tokens) == ("judged", 0.2, "vlm", 2, 300)
    assert [claim["p_yes"] for claim in row.claims] == [0.9, 0.2]


def test_a_judge_whose_lease_was_taken_writes_nothing(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    stale, [suspect] = claim(session)
    let_time_pass(session)
    token, _ = claim(session)
    assert not judgements.record(session, stale, suspect, "vlm", Opinion((0.9,)))
    assert judgements.record(session, token, suspect, "vlm", Opinion((0.1,)))
    assert [row.p_yes for row in rows(session)] == [0.1]


def test_what_may_pass_is_tried_three_times_and_then_named(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    for attempt in (1, 2, 3):
        token, [suspect] = claim(session)
        assert suspect.attempts == attempt
        judgements.record(session, token, suspect, "vlm", Opinion(reason="timeout", may_pass=True, calls=1))
        assert claim(session)[1] == [], "the next try waits"
        let_time_pass(session)
    assert [(row.state, row.reason, row.calls) for row in rows(session)] == [("failed", "timeout", 3)]


def test_a_judge_that_asks_for_patience_costs_no_attempt(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    for _ in range(5):
        token, [suspect] = claim(session)
        judgements.record(session, token, suspect, "vlm", Opinion(reason="http_429", retry_seconds=30))
        let_time_pass(session)
    assert [(row.state, row.attempts) for row in rows(session)] == [("waiting", 0)]


def test_an_event_that_kills_its_judge_does_not_come_back_for_ever(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    for _ in range(judgements.MAX_ATTEMPTS):
        assert len(claim(session)[1]) == 1
        let_time_pass(session)
    assert claim(session)[1] == []
    assert [(row.state, row.reason) for row in rows(session)] == [("failed", "judge_died")]


def test_what_a_stopping_judge_gives_back_costs_no_attempt_and_is_free_at_once(
    session: orm.Session, project_id: uuid.UUID
) -> None:
    suspicious(session, project_id, 2)
    for _ in range(judgements.MAX_ATTEMPTS + 1):
        token, suspects = claim(session)
        assert len(suspects) == 2
        judgements.give_back(session, token)
    token, [asked, _] = claim(session)
    judgements.record(session, token, asked, "vlm", Opinion((0.1,)))
    judgements.give_back(session, token)
    assert sorted((row.state, row.attempts) for row in rows(session)) == [("judged", 1), ("waiting", 0)]


def test_a_day_has_so_many_calls_and_no_more(session: orm.Session) -> None:
    taken = [judgements.reserve(session, 3, most_calls=10, most_tokens=1000) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert judgements.reserve(session, 1, most_calls=10, most_tokens=1000), "what fits may still be asked"
    assert session.scalar(sa.select(models.JudgeSpend.calls)) == 10


def test_the_first_question_of_a_day_may_be_too_much(session: orm.Session) -> None:
    assert not judgements.reserve(session, 11, most_calls=10, most_tokens=1000)


def test_a_day_that_used_its_tokens_asks_nothing_more(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    token, [suspect] = claim(session)
    judgements.record(session, token, suspect, "vlm", Opinion((0.9,), calls=1, tokens=1000))
    assert not judgements.reserve(session, 1, most_calls=10, most_tokens=1000)
    assert judgements.reserve(session, 1, most_calls=10, most_tokens=1001)


def test_what_a_zombie_spent_is_spent(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    _, [suspect] = claim(session)
    judgements.record(session, uuid.uuid4(), suspect, "vlm", Opinion((0.9,), tokens=500))
    assert session.scalar(sa.select(models.JudgeSpend.tokens)) == 500


def test_what_is_over_the_budget_says_so(session: orm.Session, project_id: uuid.UUID) -> None:
    suspicious(session, project_id)
    token, [suspect] = claim(session)
    judgements.record(session, token, suspect, "vlm", Opinion(reason="over_budget"))
    assert [(row.state, row.reason) for row in rows(session)] == [("skipped", "over_budget")]
