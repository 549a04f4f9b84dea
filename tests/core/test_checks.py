"""Claiming, completing, giving back, quarantining: on a real Postgres, because the claim query is the product."""

from __future__ import annotations

import datetime as dt
import math
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import checks, db, errors, models, rollups
from tests import factories


def work_of(session: orm.Session, event_id: uuid.UUID) -> models.Work:
    return session.scalars(
        sa.select(models.Work).where(models.Work.event_id == event_id).execution_options(populate_existing=True)
    ).one()


def checked_ids(session: orm.Session) -> set[uuid.UUID]:
    return set(session.scalars(sa.select(models.Check.event_id)))


# What a claim hands over


def test_a_claim_carries_all_that_checking_needs(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(
        session, project.id, endpoint="/a", customer="acme", output="Two cats.", prompt="Q?", confidence=0.7
    )
    _, [event] = factories.claim(session)
    row = session.get_one(models.Event, event_id)
    assert (event.event_id, event.project_id, event.attempts) == (event_id, project.id, 1)
    assert (event.slice.endpoint, event.slice.customer, event.slice.model) == ("/a", "acme", "")
    assert (event.prompt, event.output, event.confidence, event.is_late) == ("Q?", "Two cats.", 0.7, False)
    assert event.images == (factories.image(session, project.id),)
    assert event.bucket <= row.received_at < event.bucket + dt.timedelta(minutes=5)


def test_nothing_ready_means_an_empty_claim(session: orm.Session) -> None:
    assert not checks.has_ready(session)
    assert factories.claim(session)[1] == []


def test_the_oldest_come_first_and_no_more_than_asked(session: orm.Session, project: models.Project) -> None:
    made = factories.ingest_many(session, project.id, 5)
    assert [event.event_id for event in factories.claim(session, 3)[1]] == made[:3]
    assert [event.event_id for event in factories.claim(session, 3)[1]] == made[3:]


def test_an_event_whose_body_was_dropped_is_not_handed_over(session: orm.Session, project: models.Project) -> None:
    gone, kept = factories.ingest_many(session, project.id, 2)
    session.execute(sa.delete(models.EventBody).where(models.EventBody.id == gone))
    assert [event.event_id for event in factories.claim(session)[1]] == [kept]


# Leases


def test_a_second_claimer_takes_the_next_rows_without_waiting(committed: str) -> None:
    with db.transaction() as session:
        made = factories.ingest_many(session, factories.project(session), 20)
    with db.SessionLocal() as first, db.SessionLocal() as second:
        mine = {event.event_id for event in factories.claim(first, 10)[1]}  # not committed yet
        theirs = {event.event_id for event in factories.claim(second, 256)[1]}
    assert len(mine) == 10
    assert not mine & theirs
    assert mine | theirs == set(made)


def test_many_claimers_at_once_never_share_a_row(committed: str) -> None:
    with db.transaction() as session:
        made = factories.ingest_many(session, factories.project(session), 200)
    start = threading.Barrier(6)

    def worker() -> list[uuid.UUID]:
        start.wait()
        mine: list[uuid.UUID] = []
        while True:
            with db.transaction() as session:
                batch = factories.claim(session, 7)[1]
            if not batch:
                return mine
            mine += [event.event_id for event in batch]

    with ThreadPoolExecutor(6) as pool:
        taken = [event_id for future in [pool.submit(worker) for _ in range(6)] for event_id in future.result()]
    assert sorted(taken) == made


def test_a_lease_keeps_others_away_until_it_runs_out(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    token, _ = factories.claim(session)
    assert factories.claim(session)[1] == []
    assert not checks.has_ready(session)
    factories.expire(session, token)
    assert checks.has_ready(session)
    [again] = factories.claim(session)[1]
    assert (again.event_id, again.attempts) == (event_id, 2)


def test_extending_renews_what_the_token_still_holds_and_nothing_else(
    session: orm.Session, project: models.Project
) -> None:
    factories.ingest_many(session, project.id, 3)
    mine, _ = factories.claim(session, 2)
    factories.claim(session, 1)
    factories.expire(session)
    assert checks.extend(session, mine, 30) == 2
    assert len(factories.claim(session)[1]) == 1


def test_a_lease_taken_over_cannot_be_extended_released_or_failed(
    session: orm.Session, project: models.Project
) -> None:
    event_id = factories.ingest(session, project.id)
    late, _ = factories.claim(session)
    factories.expire(session)
    owner, _ = factories.claim(session)
    assert checks.extend(session, late, 30) == 0
    assert checks.release(session, late) == 0
    assert checks.fail(session, late, [event_id], "too late") == 0
    assert checks.postpone(session, late, [event_id], 30, "too late") == 0
    row = work_of(session, event_id)
    assert (row.lease_token, row.attempts, row.last_error) == (owner, 2, None)


def test_a_heartbeat_never_waits_for_the_completion_of_its_own_batch(committed: str) -> None:
    """Both touch the same rows in orders of their own: if either waited for the other, they could deadlock."""
    with db.transaction() as session:
        factories.ingest_many(session, factories.project(session), 4)
    with db.transaction() as session:
        checker_id = factories.checker(session)
        token, batch = factories.claim(session)
    with db.SessionLocal() as completing, db.SessionLocal() as beating:
        factories.complete(completing, token, checker_id, [factories.result(event) for event in batch[:2]])
        beating.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
        assert checks.extend(beating, token, 30) == 2
        beating.commit()
        completing.commit()
    with db.transaction() as session:
        assert checks.waiting(session) == 2


def test_release_gives_back_without_counting_the_attempt(session: orm.Session, project: models.Project) -> None:
    made = factories.ingest_many(session, project.id, 3)
    token, _ = factories.claim(session)
    assert checks.release(session, token, made[:1]) == 1
    assert checks.release(session, token) == 2
    assert [event.attempts for event in factories.claim(session)[1]] == [1, 1, 1]


def test_postpone_waits_as_long_as_told_and_counts_nothing(session: orm.Session, project: models.Project) -> None:
    away, here = factories.ingest_many(session, project.id, 2)
    token, _ = factories.claim(session)
    assert checks.postpone(session, token, [away], 3600, "the store is away") == 1
    assert checks.release(session, token) == 1
    assert [event.event_id for event in factories.claim(session)[1]] == [here]
    row = work_of(session, away)
    assert (row.state, row.attempts, row.last_error) == (0, 0, "the store is away")
    waits = row.not_before - session.scalar(sa.select(sa.func.now()))
    assert dt.timedelta(minutes=59) < waits <= dt.timedelta(hours=1)
    factories.expire(session)
    assert [event.attempts for event in factories.claim(session)[1] if event.event_id == away] == [1]


def test_only_a_claim_does_not_wait_for_the_disk(committed: str) -> None:
    """What is completed on the same connection afterwards must."""
    with db.transaction() as session:
        factories.ingest(session, factories.project(session))
    with db.transaction() as session:
        assert len(factories.claim(session)[1]) == 1
        claiming = session.scalar(sa.text("SHOW synchronous_commit"))
        connection = session.scalar(sa.text("SELECT pg_backend_pid()"))
    with db.transaction() as session:
        assert session.scalar(sa.text("SELECT pg_backend_pid()")) == connection
        assert (claiming, session.scalar(sa.text("SHOW synchronous_commit"))) == ("off", "on")


def test_fail_counts_the_attempt_and_waits_a_moment(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    token, _ = factories.claim(session)
    assert checks.fail(session, token, [event_id], "the decoder died") == 1
    assert factories.claim(session)[1] == []
    assert work_of(session, event_id).last_error == "the decoder died"
    factories.expire(session)
    assert factories.claim(session)[1][0].attempts == 2


@pytest.mark.parametrize(
    "text", ["NUL \x00 inside", "half a pair \ud800", "x" * 5000], ids=["nul", "surrogate", "long"]
)
def test_any_error_text_can_be_kept(session: orm.Session, project: models.Project, text: str) -> None:
    event_id = factories.ingest(session, project.id)
    token, _ = factories.claim(session)
    assert checks.fail(session, token, [event_id], text) == 1
    kept = work_of(session, event_id).last_error or ""
    assert kept[:3] == text[:3]
    assert len(kept) <= 500


# Poison


def test_batches_shrink_with_every_death_and_end_in_quarantine(session: orm.Session, project: models.Project) -> None:
    factories.ingest_many(session, project.id, 40)
    sizes = []
    for _ in range(4):
        sizes.append(len(factories.claim(session, 256)[1]))
        factories.expire(session)
    assert sizes == [40, 16, 1, 1]
    first = work_of(session, min(session.scalars(sa.select(models.Work.event_id))))
    assert first.attempts == 4
    factories.claim(session)
    assert [row.event_id for row in checks.quarantined(session, project.id)] == [first.event_id]


def test_retries_of_different_levels_are_never_mixed(session: orm.Session, project: models.Project) -> None:
    factories.ingest_many(session, project.id, 30)
    factories.claim(session, 20)
    factories.expire(session)
    while batch := factories.claim(session)[1]:
        assert len({event.attempts for event in batch}) == 1


@pytest.mark.parametrize("poisoned", [{0}, {17, 300}, {299}], ids=["first", "two", "last"])
def test_only_the_poison_is_quarantined(session: orm.Session, project: models.Project, poisoned: set[int]) -> None:
    """A worker that dies of certain events: everything else is checked, and no attempt of it is its last."""
    made = factories.ingest_many(session, project.id, 301)
    poison = {made[index] for index in poisoned}
    checker_id, deaths, most = factories.checker(session), 0, 0
    while batch := (claim := factories.claim(session, 256))[1]:
        if poison & {event.event_id for event in batch}:
            deaths += 1
            factories.expire(session)
            continue
        most = max(most, *(event.attempts for event in batch))
        factories.complete(session, claim[0], checker_id, [factories.result(event) for event in batch])
    assert {row.event_id for row in checks.quarantined(session, project.id)} == poison
    assert checked_ids(session) == set(made) - poison
    assert deaths <= 4 * len(poison)
    assert most <= 3
    assert checks.waiting(session, project.id) == 0


def test_quarantine_says_why_and_a_replay_starts_afresh(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    first, second = factories.ingest_many(session, project.id, 2)
    session.execute(
        sa.text("UPDATE work SET attempts = 4, last_error = CASE WHEN event_id = :id THEN 'boom' END"), {"id": first}
    )
    assert factories.claim(session)[1] == []
    why = {row.event_id: row.last_error for row in checks.quarantined(session, project.id)}
    assert why[first] == "boom"
    assert "died" in (why[second] or "")
    assert checks.quarantined(session, stranger.id) == []
    assert checks.replay(session, stranger.id) == 0
    assert checks.replay(session, project.id, [first]) == 1
    assert work_of(session, first).last_error is None
    assert [(event.event_id, event.attempts) for event in factories.claim(session)[1]] == [(first, 1)]
    assert checks.replay(session, project.id) == 1


def test_failing_for_the_last_time_leads_to_quarantine(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    for _ in range(4):
        token, [_event] = factories.claim(session)
        checks.fail(session, token, [event_id], "no good")
        factories.expire(session)
    assert checks.has_ready(session), "or no drain would ever come to quarantine it"
    assert factories.claim(session)[1] == []
    assert [row.last_error for row in checks.quarantined(session, project.id)] == ["no good"]


# Exactly once


def test_a_zombie_writes_and_counts_nothing(session: orm.Session, project: models.Project) -> None:
    factories.ingest_many(session, project.id, 3)
    checker_id = factories.checker(session)
    zombie, batch = factories.claim(session)
    factories.expire(session)
    owner, again = factories.claim(session)
    results = [factories.result(event, 0.01) for event in batch]
    assert factories.complete(session, zombie, checker_id, results) == []
    assert checked_ids(session) == set()
    assert len(factories.complete(session, owner, checker_id, [factories.result(e) for e in again])) == 3
    assert factories.complete(session, zombie, checker_id, results) == []
    assert factories.complete(session, owner, checker_id, results) == []
    assert session.scalar(sa.select(sa.func.sum(models.Rollup5m.scored))) == 3
    assert session.scalar(sa.select(sa.func.sum(models.Rollup5m.flagged))) == 0
    assert rollups.differences(session, project.id) == []


def test_of_two_completions_at_once_one_takes_effect(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        factories.ingest_many(session, project_id, 30)
    with db.transaction() as session:
        checker_id = factories.checker(session)
        token, batch = factories.claim(session)
    start = threading.Barrier(4)

    def finish() -> int:
        start.wait()
        with db.transaction() as session:
            return len(factories.complete(session, token, checker_id, [factories.result(event) for event in batch]))

    with ThreadPoolExecutor(4) as pool:
        done = sorted(future.result() for future in [pool.submit(finish) for _ in range(4)])
    assert done == [0, 0, 0, 30]
    with db.transaction() as session:
        assert rollups.differences(session, project_id) == []


def test_a_completion_that_is_rolled_back_leaves_the_work(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        factories.ingest(session, project_id)
    with db.transaction() as session:
        checker_id = factories.checker(session)
        token, batch = factories.claim(session)
    with db.SessionLocal() as session:
        factories.complete(session, token, checker_id, [factories.result(event) for event in batch])
        session.rollback()
    with db.transaction() as session:
        assert checks.waiting(session, project_id) == 1
        assert len(factories.complete(session, token, checker_id, [factories.result(e) for e in batch])) == 1


def test_a_check_keeps_claims_reasons_and_the_thresholds_in_force(
    session: orm.Session, project: models.Project
) -> None:
    factories.ingest(session, project.id)
    [one] = factories.check_all(session, 0.01, similarity=0.123, reasons=("wrong_image",))
    check = session.scalars(sa.select(models.Check)).one()
    decision = session.scalars(sa.select(models.DecisionRow)).one()
    assert (check.event_id, check.outcome, check.similarity, check.score) == (
        one.result.event.event_id,
        "scored",
        0.123,
        0.01,
    )
    assert check.claims == [{"start": 0, "end": 13, "similarity": 0.123, "percentile": 0.01}]
    assert check.reasons == ["wrong_image"]
    assert (decision.flagged, decision.low_similarity) == (True, True)
    assert (decision.conf_threshold, decision.sim_threshold, decision.policy_version) == (0.8, 0.05, 1)


@pytest.mark.parametrize("outcome", ["unscorable", "invalid_image", "model_error"])
def test_what_was_not_scored_has_a_check_and_no_decision(
    session: orm.Session, project: models.Project, outcome: str
) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session, outcome=outcome)
    assert session.scalars(sa.select(models.Check.outcome)).all() == [outcome]
    assert session.scalars(sa.select(models.DecisionRow)).all() == []
    assert rollups.differences(session, project.id) == []


def test_a_checker_without_a_reference_leaves_its_checks_undecided(
    session: orm.Session, project: models.Project
) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session, None, is_calibrated=False)
    assert session.scalars(sa.select(models.Check.score)).all() == [None]
    assert session.scalars(sa.select(models.DecisionRow)).all() == []
    assert session.scalars(sa.select(models.Rollup5m.undecided)).all() == [1]
    assert rollups.differences(session, project.id) == []


@pytest.mark.parametrize("similarity, score", [(math.nan, 0.5), (math.inf, 0.5), (0.3, math.nan), (None, 0.5)], ids=str)
def test_a_scored_check_without_a_number_is_refused_before_anything_is_written(
    session: orm.Session, project: models.Project, similarity: float | None, score: float
) -> None:
    event_id = factories.ingest(session, project.id)
    checker_id = factories.checker(session)
    token, [event] = factories.claim(session)
    with pytest.raises(errors.Invalid, match=str(event_id)):
        factories.complete(session, token, checker_id, [factories.result(event, score, similarity)])
    assert work_of(session, event_id).lease_token == token


def test_registering_a_checker_again_keeps_its_id(session: orm.Session) -> None:
    first = factories.checker(session, "clip:a")
    assert factories.checker(session, "clip:a") == first
    assert factories.checker(session, "clip:b") != first


def test_waiting_is_counted_per_project_and_without_quarantine(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    factories.ingest_many(session, project.id, 3)
    factories.ingest(session, stranger.id)
    session.execute(sa.text("UPDATE work SET state = 9 WHERE event_id = (SELECT min(event_id::text)::uuid FROM work)"))
    assert checks.waiting(session, project.id) == 2
    assert checks.waiting(session) == 3
