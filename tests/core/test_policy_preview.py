"""What other thresholds would have flagged: the truth lies within what is said, and is it where that is exact."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import cmer_series, errors, intervals, models, policies, policy_preview, redecide
from cmerwatch.policies import Rule
from cmerwatch.policy_preview import Estimate
from tests import factories

# Scores off the edges of bins: what lies on an edge belongs to the bin above it.
scores = st.integers(0, 999).map(lambda number: (number + 0.5) / 1000)
thresholds = st.integers(0, 1000).map(lambda number: number / 1000)
outputs = st.lists(st.tuples(st.floats(0, 1), scores), max_size=40)


def flagged(rule: Rule, seen: list[tuple[float, float]]) -> int:
    return sum(conf > rule.conf_threshold and score < rule.sim_threshold for conf, score in seen)


@given(outputs, thresholds, thresholds, thresholds, thresholds)
def test_the_truth_lies_within_the_bounds(
    seen: list[tuple[float, float]], conf: float, sim: float, new_conf: float, new_sim: float
) -> None:
    was, will = Rule((), conf, sim), Rule((), new_conf, new_sim)
    hist = [0] * intervals.SCORE_BINS
    for one, score in seen:
        hist[intervals.score_bin(score)] += one > conf
    found = policy_preview.compare(was, will, len(seen), flagged(was, seen), hist)
    assert found.least <= flagged(will, seen) <= found.most <= found.n == len(seen)


@given(outputs, thresholds, thresholds, st.integers(0, 100))
def test_it_is_exact_where_only_the_score_threshold_moves_in_hundredths(
    seen: list[tuple[float, float]], conf: float, sim: float, hundredths: int
) -> None:
    was, will = Rule((), conf, sim), Rule((), conf, hundredths / 100)
    hist = [0] * intervals.SCORE_BINS
    for one, score in seen:
        hist[intervals.score_bin(score)] += one > conf
    found = policy_preview.compare(was, will, len(seen), flagged(was, seen), hist)
    assert found.is_exact
    assert found.least == flagged(will, seen)


def test_of_a_cosine_nothing_is_known_but_a_rule_that_stays_is_exact() -> None:
    legacy = Rule((), 0.8, 0.25, "cosine")
    assert policy_preview.compare(Rule((), 0.8, 0.05), legacy, 10, 2, [10] + [0] * 99) == Estimate(10, 2, 0, 10)
    assert policy_preview.compare(legacy, legacy, 10, 2, [10] + [0] * 99) == Estimate(10, 2, 2, 2)


def estimate(session: orm.Session, project: models.Project, rules: list[dict[str, Any]]) -> list[Estimate]:
    now = dt.datetime.now(dt.UTC)
    checker = factories.checker(session)
    return policy_preview.estimate(session, project.id, checker, rules, now - policy_preview.WINDOW, now)


def test_each_output_is_counted_under_the_rule_that_would_decide_it(
    session: orm.Session, project: models.Project
) -> None:
    for endpoint, n in (("/scan", 3), ("/other", 4)):
        factories.ingest_many(session, project.id, n, endpoint=endpoint)
    factories.check_all(session, 0.07)
    rules: list[dict[str, Any]] = [{"match": {}}, {"match": {"endpoint": "/scan"}, "sim_threshold": 0.1}]
    assert estimate(session, project, rules) == [Estimate(4, 0, 0, 0), Estimate(3, 0, 3, 3)]


def test_outputs_of_several_versions_are_each_compared_with_their_own(
    session: orm.Session, project: models.Project
) -> None:
    factories.ingest_many(session, project.id, 2, confidence=0.7)
    factories.check_all(session, 0.02)
    policies.create(session, project.id, [{"conf_threshold": 0.6}], "user:ada")
    factories.ingest_many(session, project.id, 3, confidence=0.7)
    factories.check_all(session, 0.02)
    [found] = estimate(session, project, [{"conf_threshold": 0.6, "sim_threshold": 0.1}])
    assert found == Estimate(5, 3, 3, 5), "of the first two nothing was kept, of the other three everything"


@pytest.mark.parametrize("is_done", [False, True])
def test_what_was_flagged_is_what_the_overview_shows_before_and_after_history_was_decided_again(
    session: orm.Session, project: models.Project, is_done: bool
) -> None:
    for score in (0.01, 0.07, 0.15, 0.6):
        factories.ingest_many(session, project.id, 3)
        factories.check_all(session, score)
    version = policies.create(session, project.id, [{"sim_threshold": 0.1}], "user:ada")
    settled = sa.func.now() - 2 * redecide.SETTLED
    session.execute(
        sa.update(models.PolicyVersion).where(models.PolicyVersion.version == version).values(created_at=settled)
    )
    redecide.start(session, project.id, version, "user:ada")
    while is_done and redecide.step(session, 5):
        pass
    factories.ingest_many(session, project.id, 2)
    factories.check_all(session, 0.07)
    now = dt.datetime.now(dt.UTC)
    [shown] = cmer_series.query(session, project.id, now - policy_preview.WINDOW, now, "all")
    [found] = estimate(session, project, [{"sim_threshold": 0.2}])
    assert (found.before, found.n) == (shown.cmer.successes, shown.cmer.n) == (8 if is_done else 5, 14)
    assert (found.least, found.most) == (11, 11)


def test_rules_that_could_not_be_saved_are_refused(session: orm.Session, project: models.Project) -> None:
    with pytest.raises(errors.Invalid):
        estimate(session, project, [])
