"""Where the line lies: floors, baselines, usual hours; and that a lasting fault does not become its own measure."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import alert_judging, alert_rules, models
from cmerwatch.alert_judging import BASELINE_FLOOR, BASELINE_MIN_N, Line
from cmerwatch.alert_numbers import Counts
from tests.core import watched
from tests.core.watched import DAY, END, HOUR, MINUTES_5

START = END - HOUR
OLD = START - 3 * DAY


def baseline(multiple: float = 2.0, threshold: float | None = None) -> models.AlertRule:
    return models.AlertRule(
        kind="baseline", metric="cmer", multiple=multiple, threshold=threshold, min_n=50, min_coverage=0.95
    )


def counts(n: int, flagged: int, first: dt.datetime = OLD) -> Counts:
    return Counts(scored=n, n=n, flagged=flagged, first=first)


def test_the_line_is_a_multiple_of_the_slices_own_week() -> None:
    line = alert_judging.line_of(baseline(), counts(1000, 50), counts(9000, 900), START)
    assert line == Line(0.1, 0.05, 1000, "slice")


def test_a_baseline_of_nothing_is_taken_as_the_floor() -> None:
    line = alert_judging.line_of(baseline(), counts(1000, 0), counts(9000, 900), START)
    assert line is not None
    assert line.at == 2 * BASELINE_FLOOR
    assert line.baseline == 0


def test_a_slice_too_new_or_too_small_is_compared_with_the_project() -> None:
    project = counts(9000, 900)
    for own in (counts(5000, 2500, START - HOUR), counts(BASELINE_MIN_N - 1, 0), Counts()):
        assert alert_judging.line_of(baseline(), own, project, START) == Line(0.2, 0.1, 9000, "project")


def test_the_lower_of_two_lines_counts() -> None:
    assert alert_judging.line_of(baseline(threshold=0.15), counts(1000, 300), Counts(), START) == Line(
        0.15, 0.3, 1000, "slice"
    )
    assert alert_judging.line_of(baseline(threshold=0.15), Counts(), Counts(), START) == Line(0.15)


def test_without_any_baseline_a_rule_cannot_tell(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, "baseline")
    watched.lay(session, project.id, END - HOUR, 100, flagged=90)
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert (state.state, state.reason[:15]) == ("insufficient", "no baseline yet")


@given(st.integers(50, 5000), st.floats(0, 1), st.floats(0.001, 1))
def test_over_is_exactly_where_the_whole_interval_lies_over_the_line(n: int, share: float, at: float) -> None:
    judged = alert_judging.judge(baseline(), counts(n, int(n * share)), Line(at))
    assert (judged.verdict == "over") == (judged.evidence["low"] > at)
    assert judged.verdict in ("over", "under")


def test_a_line_over_everything_says_that_it_cannot_fire() -> None:
    judged = alert_judging.judge(baseline(), counts(1000, 1000), Line(1.2))
    assert (judged.verdict, "cannot fire" in judged.reason) == ("under", True)


def test_a_version_that_is_bad_from_its_first_hour_is_compared_with_what_was_before_it(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "baseline", scopes=("model_version",))
    watched.lay_week(session, project.id, model_version="v1")
    for back in range(12):
        watched.lay(session, project.id, END - HOUR + back * MINUTES_5, 30, 14, model_version="v2")
    watched.tick(session, project.id)
    state = watched.state(session, rule, model_version="v2")
    assert state.state == "firing"
    assert state.evidence["baseline_of"] == "project"
    assert state.evidence["baseline"] == pytest.approx(0.05)


def test_a_slice_is_as_new_as_the_policy_that_decides_it(session: orm.Session, project: models.Project) -> None:
    """Hours of a fault under a policy of today are no baseline of their own, however old the slice is."""
    rule = watched.rule(session, project.id, "baseline", scopes=("endpoint",), min_n=50)
    watched.lay_week(session, project.id)
    rules: list[dict[str, Any]] = [{"match": {}, "conf_threshold": 0.8, "sim_threshold": "auto"}]
    session.add(models.PolicyVersion(project_id=project.id, version=2, rules=rules, created_by="test"))
    session.flush()
    for hours in (4, 3, 2, 1):
        watched.lay(session, project.id, END - hours * HOUR, 100, 40, policy_version=2)
    watched.tick(session, project.id)
    assert watched.state(session, rule, endpoint="/describe").evidence["baseline_of"] == "project"


def test_the_line_stays_while_it_fires_however_long_the_fault_lasts(
    session: orm.Session, project: models.Project
) -> None:
    """After days of 40 % the week before holds more 40 % than 5 %, and twice that would be no line at all."""
    rule = watched.rule(session, project.id, "baseline", keep_firing_seconds=0)
    watched.lay_week(session, project.id)
    for hour in range(24 * 6):
        watched.lay(session, project.id, END - HOUR + hour * HOUR, 60, 24)
    watched.tick(session, project.id)
    line = watched.state(session, rule).evidence["line"]
    for day in range(1, 6):
        while watched.tick(session, project.id, day * DAY).has_more:
            pass
    state = watched.state(session, rule)
    assert (state.state, state.evidence["line"]) == ("firing", line)
    assert len(watched.episodes(session, project.id)) == 1


# Silence


STEADY = [40] * 14


@pytest.mark.parametrize(
    "days, usual",
    [
        (STEADY, True),
        ([0] * 14, False),
        ([40] + [0] * 13, False),  # a single burst, yesterday
        ([40, 40] + [0] * 12, True),  # it began the day before yesterday
        ([40, 40, 0, 0, 0, 0, 0, 40] + [0] * 6, False),  # most days have nothing at this hour
        ([40, 40, 40, 40, 40, 0, 0, 40, 40, 40, 40, 40, 0, 0], False),  # a Saturday of office hours
        ([0, 0, 40, 40, 40, 40, 40, 0, 0, 40, 40, 40, 40, 40], True),  # their Monday
        ([9] * 14, False),  # a trickle
    ],
)
def test_nights_and_weekends_are_not_silence(days: list[int], usual: bool) -> None:
    assert alert_judging.is_usual_hour(days) is usual


def test_silence_at_a_usual_hour_fires_and_is_over_when_outputs_come(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "no_data", scopes=("project", "endpoint"))
    watched.lay_week(session, project.id)
    watched.tick(session, project.id)
    for of in ({}, {"endpoint": "/describe"}):
        state = watched.state(session, rule, **of)
        assert (state.state, state.reason) == ("firing", "nothing arrived; usually about 40 outputs do")
    watched.lay(session, project.id, END, 3)
    watched.tick(session, project.id, MINUTES_5)
    assert watched.state(session, rule).state == "ok"


def test_an_outage_is_not_over_because_the_night_came(session: orm.Session, project: models.Project) -> None:
    """Office hours end while nothing arrives: that it is quiet now, as always, does not say that outputs come again."""
    rule = watched.rule(session, project.id, "no_data")
    watched.lay_week(session, project.id)
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "firing"
    while watched.tick(session, project.id, 6 * HOUR).has_more:
        pass
    state = watched.state(session, rule)
    assert (state.state, state.reason) == ("firing", "nothing arrived, as often at this hour")
    watched.lay(session, project.id, END + 6 * HOUR, 3)
    watched.tick(session, project.id, 6 * HOUR + MINUTES_5)
    assert watched.state(session, rule).state == "ok"


def test_an_endpoint_that_is_gone_for_good_is_closed_without_calling_it_recovered(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "no_data")
    watched.lay_week(session, project.id)
    for days in range(10):
        while watched.tick(session, project.id, days * DAY).has_more:
            pass
    (episode,) = watched.episodes(session, project.id)
    assert episode.resolved_at is not None
    (said,) = session.scalars(
        sa.select(models.AlertTransition.reason).where(
            models.AlertTransition.rule_id == rule.id, models.AlertTransition.from_state == "firing"
        )
    )
    assert "not seen to recover" in said


def test_silence_at_an_hour_that_is_usually_silent_is_no_alert(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, "no_data")
    watched.lay_week(session, project.id, before=END + 6 * HOUR)
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "ok"


def test_outputs_that_nobody_checks_fire_and_a_single_bad_one_does_not(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "no_data", scopes=("endpoint",))
    watched.wait(session, project.id, END - MINUTES_5, 8, endpoint="/stuck")
    watched.lay(session, project.id, END - MINUTES_5, 9, endpoint="/fine")
    watched.wait(session, project.id, END - MINUTES_5, 1, state=models.QUARANTINED, endpoint="/fine")
    watched.tick(session, project.id)
    stuck = watched.state(session, rule, endpoint="/stuck")
    assert (stuck.state, stuck.reason) == ("firing", "only 0% was looked at (8 waiting); it takes 95%")
    assert watched.state(session, rule, endpoint="/fine").state == "ok"


def test_an_app_whose_pictures_mostly_cannot_be_read_fires_although_its_coverage_is_whole(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "no_data", scopes=("endpoint",))
    watched.lay(session, project.id, END - MINUTES_5, 10, outcome="invalid_image", endpoint="/expired")
    watched.lay(session, project.id, END - MINUTES_5, 1, endpoint="/expired")
    watched.lay(session, project.id, END - MINUTES_5, 5, outcome="invalid_image", endpoint="/half")
    watched.lay(session, project.id, END - MINUTES_5, 5, endpoint="/half")
    watched.tick(session, project.id)
    expired = watched.state(session, rule, endpoint="/expired")
    assert (expired.state, expired.evidence["coverage"]) == ("firing", 1.0)
    assert expired.reason.startswith("the pictures of 90.9% of the outputs cannot be read (10 of 11)")
    assert watched.state(session, rule, endpoint="/half").state == "ok"


def test_failed_checks_are_not_looked_at(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - MINUTES_5, 90)
    watched.lay(session, project.id, END - MINUTES_5, 10, outcome="model_error")
    watched.lay(session, project.id, END - MINUTES_5, 50, outcome="unscorable")
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert (state.state, state.reason) == (
        "no_data",
        "only 93.3% was looked at (10 failed in the checker); it takes 95%",
    )


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0%"), (0.0507, "5.1%"), (0.9486, "94.9%"), (0.4, "40%"), (0.0002, "<0.1%"), (0.9999, ">99.9%"), (1, "100%")],
)
def test_a_measured_share_is_said_to_a_tenth(share: float, shown: str) -> None:
    assert alert_rules.percent(share) == shown
