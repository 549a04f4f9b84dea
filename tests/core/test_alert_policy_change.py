"""Right after a policy change: fixed lines go on, baselines wait and say why, and a re-decision brings them back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sqlalchemy import orm

from cmerwatch import alert_judging, alert_views, models, rollups
from cmerwatch.alert_judging import Line
from cmerwatch.alert_numbers import Counts
from tests import factories
from tests.core import watched
from tests.core.watched import DAY, END, MINUTES_5

WHY = "the 7 days before are decided under policy 1, the window under 2; decide history again to compare"
RULES: list[dict[str, Any]] = [{"match": {}, "conf_threshold": 0.8, "sim_threshold": 0.6}]


@pytest.fixture
def changed(session: orm.Session, project: models.Project) -> models.Project:
    """A week under policy 1, and then version 2."""
    watched.lay_week(session, project.id)
    session.add(models.PolicyVersion(project_id=project.id, version=2, rules=RULES, created_by="test"))
    session.flush()
    return project


def lay(session: orm.Session, project: models.Project, flagged: int) -> None:
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=flagged, policy_version=2)


def test_a_baseline_of_another_policy_is_not_compared_with_and_the_state_says_so(
    session: orm.Session, changed: models.Project
) -> None:
    rule = watched.rule(session, changed.id, "baseline")
    lay(session, changed, 60)
    watched.tick(session, changed.id)
    state = watched.state(session, rule)
    assert (state.state, state.reason) == ("insufficient", WHY)
    assert alert_views.not_compared(session, changed.id) == (1, WHY)


def test_the_fixed_line_beside_it_fires_right_after_the_change_and_the_missing_half_is_still_named(
    session: orm.Session, changed: models.Project
) -> None:
    rule = watched.rule(session, changed.id, "baseline", threshold=0.15)
    lay(session, changed, 40)
    watched.tick(session, changed.id)
    state = watched.state(session, rule)
    assert (state.state, state.evidence["line"], state.evidence["baseline"]) == ("firing", 0.15, None)
    assert (state.reason, state.evidence["not_compared"]) == ("", WHY)


def test_the_fixed_line_alone_keeps_quiet_under_it(session: orm.Session, changed: models.Project) -> None:
    rule = watched.rule(session, changed.id, "baseline", threshold=0.15)
    lay(session, changed, 10)
    watched.tick(session, changed.id)
    assert (watched.state(session, rule).state, watched.state(session, rule).reason) == ("ok", "")
    assert alert_views.not_compared(session, changed.id) == (1, WHY)


def test_a_threshold_rule_needs_nothing_but_its_own_window(session: orm.Session, changed: models.Project) -> None:
    rule = watched.rule(session, changed.id)
    lay(session, changed, 40)
    watched.tick(session, changed.id)
    state = watched.state(session, rule)
    assert state.state == "firing"
    assert "not_compared" not in state.evidence
    assert alert_views.not_compared(session, changed.id) == (0, "")


def test_a_window_that_both_versions_decided_says_how_many_each(session: orm.Session, changed: models.Project) -> None:
    rule = watched.rule(session, changed.id)
    watched.lay(session, changed.id, END - 2 * MINUTES_5, 70, flagged=40)
    watched.lay(session, changed.id, END - MINUTES_5, 30, flagged=20, policy_version=2)
    watched.tick(session, changed.id)
    state = watched.state(session, rule)
    assert state.reason == (
        "30 outputs with a known confidence, it takes 50 under policy 2; 70 were decided under 1 before"
    )


def test_once_history_is_decided_again_the_baseline_is_back_and_nothing_is_said(
    session: orm.Session, changed: models.Project
) -> None:
    rule = watched.rule(session, changed.id, "baseline")
    lay(session, changed, 60)
    watched.tick(session, changed.id)
    week = [factories.decided(0.01 if i < 2 else 0.5) for i in range(40)]
    checker_id = factories.checker(session)
    for day in range(1, 8):
        at = (END - day * DAY - MINUTES_5).replace(second=0)
        again = [
            dataclasses.replace(
                one,
                checker_id=checker_id,
                result=dataclasses.replace(
                    one.result, event=dataclasses.replace(one.result.event, project_id=changed.id, bucket=at)
                ),
                decision=dataclasses.replace(one.decision, policy_version=2),
            )
            for one in week
        ]
        rollups.add_again(session, again)
    watched.tick(session, changed.id, MINUTES_5)
    state = watched.state(session, rule)
    assert (state.state, state.evidence["baseline"]) == ("firing", 0.05)
    assert alert_views.not_compared(session, changed.id) == (0, "")


@pytest.mark.parametrize(
    ("kind", "line", "week"),
    [
        ("threshold", Line(0.15), Counts(scored=280, undecided=280, outdated=280, outdated_by=1)),
        ("baseline", Line(0.1, 0.05, 280, "slice"), Counts(scored=280, undecided=0, outdated=280, outdated_by=1)),
        ("baseline", None, Counts(scored=10, n=10)),
        ("baseline", None, Counts(scored=10, n=10, outdated=10, outdated_by=1)),
        ("baseline", None, Counts(scored=10, undecided=10)),
    ],
)
def test_a_baseline_that_is_there_or_missing_for_another_reason_is_not_blamed_on_a_change(
    kind: str, line: Line | None, week: Counts
) -> None:
    rule = models.AlertRule(kind=kind, metric="cmer")
    assert alert_judging.not_compared(rule, line, week, 2) == ""
