"""What a rule would have done is what it does: the same history, judged afterwards and as it happened."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import orm

from cmerwatch import alert_backtest, alert_rules, errors, models
from cmerwatch.alert_rules import RuleFields
from tests.core import watched
from tests.core.watched import DAY, END, HOUR, MINUTES_5


def lay_history(session: orm.Session, project: models.Project, seed: int) -> None:
    """Two weeks of an hourly hundred, with bad hours, empty ones and failures, drawn once."""
    rng = random.Random(seed)
    for hour in range(14 * 24):
        at = END - 14 * DAY + hour * HOUR + rng.randrange(12) * MINUTES_5
        if rng.random() < 0.1:
            continue
        bad = 0.5 if rng.random() < 0.2 else 0.05
        n = rng.choice([20, 60, 90])
        watched.lay(session, project.id, at, n, sum(rng.random() < bad for _ in range(n)), model_version="v1")
        if rng.random() < 0.05:
            watched.lay(session, project.id, at, 20, outcome="model_error", model_version="v1")


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "threshold", "threshold": 0.2},
        {"kind": "baseline", "multiple": 2.0, "threshold": 0.3, "for_seconds": 600, "scopes": ("project", "endpoint")},
        {"kind": "no_data", "keep_firing_seconds": 0},
        {"kind": "threshold", "threshold": 0.2, "metric": "uer", "window_seconds": 1800, "min_n": 20},
    ],
)
def test_the_backtest_fires_when_the_engine_does(
    session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    monkeypatch.setattr(alert_backtest, "DAYS", 2)
    lay_history(session, project, seed=5)
    fields = RuleFields(**({"name": "watch"} | rule))
    found = alert_backtest.run(session, project.id, fields, END)
    made = alert_rules.create(session, project.id, fields, "test")
    # From the same bucket on as the backtest; the engine looks back `for` when a rule is new.
    began = END - 2 * DAY
    watched.tick(session, project.id, began - END)
    for days in range(2):
        while watched.tick(session, project.id, (days + 1) * DAY + began - END).has_more:
            pass
    assert alert_rules.find(session, project.id) == [made]
    fired = [(one.fired_at, one.resolved_at, one.slice) for one in watched.episodes(session, project.id)]
    since = [one for one in fired if one[0] > began]
    wanted = [(one.fired_at, one.ended_at, one.slice) for one in found.episodes if one.fired_at > began + 2 * HOUR]
    assert sorted(wanted, key=str) == sorted((one for one in since if one[0] > began + 2 * HOUR), key=str)
    assert wanted


def test_only_the_biggest_slices_are_looked_at_and_it_says_so(
    session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_backtest, "MOST_SLICES", 2)
    for number in range(5):
        watched.lay(session, project.id, END - HOUR, 60 + number, 40, endpoint=f"/{number}")
    fields = RuleFields("watch", "threshold", threshold=0.2, scopes=("endpoint",))
    found = alert_backtest.run(session, project.id, fields, END)
    assert (found.slices, found.left_out) == (2, 3)
    assert {one.slice["endpoint"] for one in found.episodes} == {"/3", "/4"}
    assert all(one.ended_at is None for one in found.episodes)


def test_a_rule_that_would_be_refused_is_not_tested(session: orm.Session, project: models.Project) -> None:
    with pytest.raises(errors.Invalid):
        alert_backtest.run(session, project.id, RuleFields("watch", "threshold"))


def test_without_history_nothing_fires(session: orm.Session, project: models.Project) -> None:
    fields = RuleFields("watch", "threshold", threshold=0.2, scopes=("project", "endpoint"))
    found = alert_backtest.run(session, project.id, fields, END)
    assert (found.episodes, found.slices) == ([], 1)
