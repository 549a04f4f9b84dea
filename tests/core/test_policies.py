"""Policies: the most specific rule decides, bad rules are named, versions only grow."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import db, errors, models, policies
from cmerwatch.shapes import ClaimScore, Slice
from tests import factories

RULES: list[dict[str, Any]] = [
    {"match": {}, "conf_threshold": 0.8, "sim_threshold": "auto"},
    {"match": {"endpoint": "/a"}, "conf_threshold": 0.7, "sim_threshold": 0.1},
    {"match": {"endpoint": "/a", "customer": "c"}, "conf_threshold": 0.6, "sim_threshold": 0.2},
]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "to, conf, sim",
    [
        (Slice("/b"), 0.8, 0.05),
        (Slice("/a"), 0.7, 0.1),
        (Slice("/a", customer="c"), 0.6, 0.2),
        (Slice("/b", customer="c"), 0.8, 0.05),
        (Slice("/a", customer="other"), 0.7, 0.1),
    ],
)
def test_the_most_specific_rule_decides_in_whatever_order_they_stand(
    order: int, to: Slice, conf: float, sim: float
) -> None:
    rule = policies.parse(1, RULES[::order]).rule_for(to)
    assert (rule.conf_threshold, rule.sim_threshold) == (conf, sim)


def test_a_rule_may_match_what_is_absent() -> None:
    policy = policies.parse(1, [{}, {"match": {"customer": ""}, "conf_threshold": 0.1}])
    assert policy.rule_for(Slice("/a")).conf_threshold == 0.1
    assert policy.rule_for(Slice("/a", customer="c")).conf_threshold == 0.8


@pytest.mark.parametrize(
    "rules, said",
    [
        ([], 'one rule with "match": {}'),
        ([{"match": {"endpoint": "/a"}}], 'one rule with "match": {}'),
        ([{}, {"match": {"colour": "red"}}], r"rules\[1\]\.match names 'colour'"),
        ([{"conf_threshold": 1.1}], r"rules\[0\]\.conf_threshold must be a number from 0 to 1"),
        ([{"conf_threshold": True}], r"rules\[0\]\.conf_threshold"),
        ([{"conf_threshold": "auto"}], r"rules\[0\]\.conf_threshold"),
        ([{"sim_threshold": math.nan}], r"rules\[0\]\.sim_threshold"),
        ([{"sim_threshold": "low"}], r'rules\[0\]\.sim_threshold must be a number from 0 to 1 or "auto"'),
        ([{"sim_threshold": None}], r"rules\[0\]\.sim_threshold"),
        ([{"sim_treshold": 0.1}], r"rules\[0\] has the field 'sim_treshold'"),
        ([{"match": ["endpoint"]}], r"rules\[0\] must be an object"),
        ([{"match": {"endpoint": 7}}], r"rules\[0\] must be an object"),
        (["auto"], r"rules\[0\] must be an object"),
    ],
)
def test_a_bad_rule_is_named(session: orm.Session, project: models.Project, rules: list[Any], said: str) -> None:
    with pytest.raises(errors.Invalid, match=said):
        policies.create(session, project.id, rules, "user:ada")
    assert policies.current(session, [project.id])[project.id].version == 1


def test_a_project_begins_with_the_default_policy(session: orm.Session, project: models.Project) -> None:
    policy = policies.current(session, [project.id])[project.id]
    assert policy == policies.Policy(1, (policies.Rule((), 0.8, 0.05),))


def test_the_highest_version_is_in_force_and_old_ones_stay(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    assert policies.create(session, project.id, RULES, "user:ada") == 2
    policies.ensure_default(session, project.id)
    found = policies.current(session, [project.id, stranger.id])
    assert (found[project.id].version, found[stranger.id].version) == (2, 1)
    assert len(found[project.id].rules) == 3
    versions = sa.select(models.PolicyVersion.version).where(models.PolicyVersion.project_id == project.id)
    assert sorted(session.scalars(versions)) == [1, 2]


def test_of_two_who_save_at_once_one_is_told(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
    with db.SessionLocal() as first, ThreadPoolExecutor(1) as pool:
        policies.create(first, project_id, RULES, "user:ada")

        def save() -> int:
            with db.transaction() as second:
                return policies.create(second, project_id, RULES, "user:bob")

        waiting = pool.submit(save)
        factories.wait_for_locks(1)
        first.commit()
        with pytest.raises(errors.Conflict, match="version 2"):
            waiting.result(20)


def test_two_starters_may_both_ensure_the_default(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        session.execute(sa.delete(models.PolicyVersion))
    start = threading.Barrier(4)

    def ensure() -> None:
        start.wait()
        with db.transaction() as session:
            policies.ensure_default(session, project_id)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(ensure) for _ in range(4)]:
            future.result()
    with db.transaction() as session:
        assert policies.current(session, [project_id])[project_id].version == 1


def test_a_decision_records_the_thresholds_it_was_made_with() -> None:
    policy = policies.parse(7, RULES)
    made = policy.decide(factories.result(factories.claimed(slice=Slice("/a"), confidence=0.75), 0.09), True)
    assert (made.policy_version, made.conf_threshold, made.sim_threshold) == (7, 0.7, 0.1)
    assert (made.is_decided, made.flagged, made.low_similarity) == (True, True, True)


@pytest.mark.parametrize("outcome", ["unscorable", "invalid_image", "model_error"])
def test_what_was_not_scored_is_not_decided(outcome: str) -> None:
    made = factories.DEFAULT_POLICY.decide(factories.result(factories.claimed(), outcome=outcome), True)
    assert (made.is_decided, made.flagged, made.low_similarity) == (False, False, False)


def test_a_fixed_cosine_leaves_a_right_denial_alone() -> None:
    """“There is no dog” has the cosine of the dog that is not there: low where it is right."""
    legacy = policies.parse(1, [{"measure": "cosine", "sim_threshold": 0.25}])
    stated, denied = (ClaimScore(0, 5, 0.1, 0.5, negated=negated) for negated in (False, True))
    for claims, is_flagged in (((denied,), False), ((stated,), True), ((stated, denied), True)):
        result = factories.result(factories.claimed(), 0.5, 0.1, claims=claims)
        decision = legacy.decide(result, is_calibrated=True)
        assert (decision.is_decided, decision.flagged, decision.low_similarity) == (True, is_flagged, is_flagged)
