"""In whatever order checks stay undecided, are decided and policies change: each is counted once, where it was."""

from __future__ import annotations

import dataclasses
import uuid

import hypothesis
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import check_rows, db, models, policies, references, reviews, rollups
from cmerwatch.shapes import ClaimScore, Sample
from tests import factories

SCORES = st.sampled_from([0.01, 0.5])


class Calibrating(stateful.RuleBasedStateMachine):
    """A checker that scores with and without a reference, beside what a person would count."""

    def __init__(self) -> None:
        super().__init__()
        self.session: orm.Session = db.SessionLocal()
        self.session.execute(sa.delete(models.Work))  # of the example before
        self.project_id = factories.project(self.session)
        name = f"clip:{uuid.uuid4()}"
        self.checker_id = factories.checker(self.session, name)
        self.waiting = self.decided = 0

    def teardown(self) -> None:
        self.session.close()

    @stateful.rule(
        endpoint=st.sampled_from("ab"), confidence=st.sampled_from([None, 0.5, 0.9]), score=SCORES | st.none()
    )
    def check(self, endpoint: str, confidence: float | None, score: float | None) -> None:
        factories.ingest(self.session, self.project_id, endpoint=endpoint, confidence=confidence)
        factories.check_all(self.session, score, checker_id=self.checker_id, is_calibrated=score is not None)
        self.waiting += score is None
        self.decided += score is not None

    @stateful.rule(n=st.integers(1, 4), score=SCORES)
    def decide(self, n: int, score: float) -> None:
        found = references.undecided(self.session, self.checker_id, n)
        assert len(found) == min(n, self.waiting)
        known = policies.at(self.session, {(result.event.project_id, version) for result, version in found})
        pairs = []
        for result, version in found:
            judged = dataclasses.replace(result, score=score)
            pairs.append((judged, known[result.event.project_id, version].decide(judged, True)))
        decided = references.settle(self.session, self.checker_id, pairs)
        rollups.settle(self.session, decided)
        reviews.route(self.session, decided, 0.3)
        self.waiting -= len(decided)
        self.decided += len(decided)

    @stateful.rule(threshold=st.sampled_from([0.2, 0.8]))
    def change_the_policy(self, threshold: float) -> None:
        rules = [{"match": {}, "conf_threshold": threshold, "sim_threshold": 0.05}]
        policies.create(self.session, self.project_id, rules, "someone")

    @stateful.invariant()
    def rollups_equal_a_recount(self) -> None:
        assert rollups.differences(self.session, self.project_id) == []

    @stateful.invariant()
    def every_check_is_undecided_or_decided_once(self) -> None:
        of_ours = models.DecisionRow.project_id == self.project_id
        events = self.session.scalars(sa.select(models.DecisionRow.event_id).where(of_ours)).all()
        assert len(events) == len(set(events)) == self.decided
        undecided = sa.select(sa.func.sum(models.Rollup5m.undecided)).where(
            models.Rollup5m.project_id == self.project_id
        )
        assert (self.session.scalar(undecided) or 0) == self.waiting
        below = sa.select(sa.func.min(models.Rollup1h.undecided)).where(models.Rollup1h.project_id == self.project_id)
        assert (self.session.scalar(below) or 0) >= 0


def test_whatever_happens_each_check_is_decided_once_under_the_policy_it_was_counted_with(
    session: orm.Session,
) -> None:
    stateful.run_state_machine_as_test(
        Calibrating,
        settings=hypothesis.settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


def test_checks_whose_events_are_gone_hold_up_none_of_the_others(session: orm.Session, project: models.Project) -> None:
    checker_id = factories.checker(session)
    factories.ingest_many(session, project.id, 7)
    factories.check_all(session, None, checker_id=checker_id, is_calibrated=False)
    gone = sorted(session.scalars(sa.select(models.Event.id)))[:5]
    session.execute(sa.delete(models.Event).where(models.Event.id.in_(gone)))  # as when their day's partition goes
    left = []
    while found := references.undecided(session, checker_id, 1):
        [(result, _)] = found
        judged = dataclasses.replace(result, score=0.5)
        left += references.settle(session, checker_id, [(judged, factories.DEFAULT_POLICY.decide(judged, True))])
    assert len(left) == 2
    assert gone[-1] not in {one.result.event.event_id for one in left}


def test_samples_add_up_by_prompt_type_and_the_same_content_counts_once(session: orm.Session) -> None:
    checker_id = factories.checker(session)
    first = Sample(uuid.UUID(int=1), "a", (0.1, 0.2), (0.0,))
    references.collect(session, checker_id, [first, Sample(uuid.UUID(int=2), "b", (0.3,), ())])
    references.collect(session, checker_id, [first])
    assert references.counts(session, checker_id) == {"a": (2, 1), "b": (1, 0)}
    assert references.collected(session, checker_id)[0] == first


def test_a_frozen_reference_stays_and_its_samples_go(session: orm.Session) -> None:
    session.execute(sa.text("INSERT INTO checkers (name, label, is_demo) VALUES ('clip', 'clip', false)"))
    checker_id = session.scalars(sa.text("SELECT id FROM checkers WHERE name = 'clip'")).one()
    references.collect(session, checker_id, [Sample(uuid.UUID(int=1), "a", (0.1,), ())])
    assert references.load(session, checker_id) is None
    assert references.lock_calibrating(session, checker_id)
    references.freeze(session, checker_id, "v1", {"own": {}})
    assert not references.lock_calibrating(session, checker_id)
    references.freeze(session, checker_id, "v2", {"own": {"other": []}})
    assert references.load(session, checker_id) == {"own": {}}
    assert references.counts(session, checker_id) == {}


@hypothesis.given(
    st.builds(
        ClaimScore,
        start=st.integers(0, 9),
        end=st.integers(10, 19),
        similarity=st.floats(-1, 1),
        percentile=st.none() | st.floats(0, 1),
        statement=st.none() | st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
        negated=st.booleans(),
        images=st.lists(st.floats(-1, 1), max_size=3).map(tuple),
        contrast=st.none() | st.floats(-50, 0),
    )
)
def test_a_claim_is_read_as_it_was_stored(claim: ClaimScore) -> None:
    assert check_rows.read(check_rows.stored(claim)) == claim
