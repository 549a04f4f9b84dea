"""The engine: closed buckets, honest intervals, one transaction, and nothing twice."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_rules, alerts, db, errors, models
from tests import factories
from tests.core import watched
from tests.core.watched import DAY, END, HOUR, MINUTES_5, MINUTES_10


@pytest.fixture
def hook(session: orm.Session, project: models.Project) -> models.Channel:
    return watched.channel(session, project.id)


def test_a_rate_whose_interval_lies_over_the_line_fires_and_is_told(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=40)
    done = watched.tick(session, project.id)
    assert (done.transitions, done.messages) == (1, 1)
    state = watched.state(session, rule)
    assert state.state == "firing"
    assert state.since == END
    assert state.evidence["n"] == 100
    assert state.evidence["low"] > 0.15
    [alert] = watched.episodes(session, project.id)
    assert (alert.fired_at, alert.resolved_at, state.alert_id) == (END, None, alert.id)
    [message] = watched.messages(session, project.id)
    assert (message.kind, message.channel_id, message.state) == ("firing", hook.id, "pending")
    assert message.notice["value"] == 0.4
    [transition] = session.scalars(sa.select(models.AlertTransition))
    assert (transition.from_state, transition.to_state, transition.bucket) == ("ok", "firing", END)
    assert message.transition_id == transition.id


def test_a_rate_over_the_line_whose_interval_reaches_under_it_does_not_fire(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 60, flagged=12)  # 20 %, from 11.8 %
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "ok"
    assert watched.messages(session, project.id) == []


def test_the_open_bucket_is_not_judged(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END, 100, flagged=100)
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "no_data"
    watched.tick(session, project.id, MINUTES_5)
    assert watched.state(session, rule).state == "firing"


def test_a_bucket_is_judged_once_it_had_time_to_settle(session: orm.Session, project: models.Project) -> None:
    assert alerts.last_closed(END + alerts.SETTLE) == END
    assert alerts.last_closed(END + alerts.SETTLE - dt.timedelta(seconds=1)) == END - MINUTES_5


def test_three_of_four_is_insufficient(session: orm.Session, project: models.Project, hook: models.Channel) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 4, flagged=3)
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert state.state == "insufficient"
    assert state.reason == "4 outputs with a known confidence, it takes 50"


def test_low_coverage_is_no_data_with_the_reason_and_never_ok(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 80)
    watched.wait(session, project.id, END - MINUTES_5, 20)
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert state.state == "no_data"
    assert state.reason == "only 80% was looked at (20 waiting); it takes 95%"


def test_missing_data_keeps_an_alert_firing_and_says_why(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = watched.rule(session, project.id, window_seconds=300)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=60)
    watched.tick(session, project.id)
    watched.wait(session, project.id, END, 30)
    watched.lay(session, project.id, END, 60)
    watched.tick(session, project.id, MINUTES_5)
    state = watched.state(session, rule)
    assert state.state == "firing"
    assert state.reason.startswith("only 66.7% was looked at")
    watched.tick(session, project.id, MINUTES_10)
    state = watched.state(session, rule)
    assert (state.state, state.reason) == ("firing", "nothing arrived in the window")
    assert watched.kinds(session, project.id) == ["firing"]


def test_a_rate_back_under_the_line_is_resolved_after_the_time_asked_for(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = watched.rule(session, project.id, window_seconds=300, keep_firing_seconds=600)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=60)
    for later in range(4):
        watched.lay(session, project.id, END + later * MINUTES_5, 100, flagged=5)
    watched.tick(session, project.id)
    states = []
    for later in range(1, 4):
        watched.tick(session, project.id, later * MINUTES_5)
        states.append(watched.state(session, rule).state)
    assert states == ["recovering", "recovering", "ok"]
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    [alert] = watched.episodes(session, project.id)
    assert alert.resolved_at == END + 3 * MINUTES_5
    assert watched.messages(session, project.id)[1].notice["resolved_at"] == "2026-03-18T12:15:00Z"
    assert watched.state(session, rule).alert_id is None


def test_for_is_waited_out(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, window_seconds=300, for_seconds=600)
    watched.tick(session, project.id)
    states = []
    for later in range(4):
        watched.lay(session, project.id, END + later * MINUTES_5, 100, flagged=60)
        watched.tick(session, project.id, (later + 1) * MINUTES_5)
        states.append(watched.state(session, rule).state)
    assert states == ["pending", "pending", "firing", "firing"]


def test_a_new_rule_fires_on_what_has_held_for_long_enough_already(
    session: orm.Session, project: models.Project
) -> None:
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=60)
    rule = watched.rule(session, project.id, for_seconds=300)
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "firing"


def test_late_outputs_are_left_out_of_the_rate(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=5)
    watched.lay(session, project.id, END - HOUR, 100, flagged=100, is_late=True)
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert (state.state, state.evidence["n"], state.evidence["hits"]) == ("ok", 100, 5)


def test_uer_counts_outputs_of_unknown_confidence(session: orm.Session, project: models.Project) -> None:
    cmer = watched.rule(session, project.id)
    uer = watched.rule(session, project.id, metric="uer", name="uer")
    watched.lay(session, project.id, END - HOUR, 100, flagged=60, confidence=None)
    watched.tick(session, project.id)
    assert watched.state(session, cmer).state == "insufficient"
    assert watched.state(session, uer).state == "firing"


def test_outputs_decided_by_an_older_policy_do_not_count(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    rules: list[dict[str, Any]] = [{"match": {}, "conf_threshold": 0.9, "sim_threshold": 0.01}]
    session.add(models.PolicyVersion(project_id=project.id, version=2, rules=rules, created_by="test"))
    session.flush()
    watched.tick(session, project.id)
    state = watched.state(session, rule)
    assert (state.state, state.evidence["n"], state.evidence["coverage"]) == ("insufficient", 0, 1.0)
    assert state.reason == "100 scored, none decided by the policy in force; what it decides from now on counts"


def test_a_checker_that_calibrates_is_told_as_the_reason(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, is_calibrated=False)
    watched.tick(session, project.id)
    assert watched.state(session, rule).reason.startswith("100 scored, none decided: the checker is calibrating, or")


def test_each_value_of_a_scope_is_judged_on_its_own(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, scopes=("project", "endpoint", "model_version"))
    watched.lay(session, project.id, END - HOUR, 300, endpoint="/good", model_version="v1")
    watched.lay(session, project.id, END - HOUR, 60, flagged=40, endpoint="/bad", model_version="v2")
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "ok"
    assert watched.state(session, rule, endpoint="/good").state == "ok"
    assert watched.state(session, rule, endpoint="/bad").state == "firing"
    assert watched.state(session, rule, model_version="v2").state == "firing"


def test_match_narrows_every_scope(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, scopes=("project", "endpoint"), match={"customer": "acme"})
    watched.lay(session, project.id, END - HOUR, 100, flagged=80, endpoint="/a", customer="acme")
    watched.lay(session, project.id, END - HOUR, 100, flagged=80, endpoint="/b", customer="other")
    watched.tick(session, project.id)
    slices = session.scalars(sa.select(models.AlertState.slice).order_by(models.AlertState.slice_key)).all()
    assert slices == [{"customer": "acme", "endpoint": "/a"}, {"customer": "acme"}]
    assert watched.state(session, rule, customer="acme").evidence["n"] == 100


def test_an_absent_dimension_is_no_slice(session: orm.Session, project: models.Project) -> None:
    watched.rule(session, project.id, scopes=("customer",))
    watched.lay(session, project.id, END - HOUR, 100)
    watched.tick(session, project.id)
    assert session.scalars(sa.select(models.AlertState)).all() == []


def test_a_second_tick_changes_nothing(session: orm.Session, project: models.Project, hook: models.Channel) -> None:
    watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id)
    again = watched.tick(session, project.id, dt.timedelta(seconds=30))
    assert again == alerts.Evaluated()
    assert watched.kinds(session, project.id) == ["firing"]


def test_what_fires_is_told_again_after_the_time_asked_for(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    watched.rule(session, project.id, repeat_seconds=1800)
    for back in range(12):
        watched.lay(session, project.id, END - HOUR + back * MINUTES_5, 20, flagged=12)
    watched.tick(session, project.id)
    watched.tick(session, project.id, MINUTES_10)
    assert watched.kinds(session, project.id) == ["firing"]
    watched.tick(session, project.id, dt.timedelta(minutes=30))
    watched.tick(session, project.id, dt.timedelta(minutes=31))
    assert watched.kinds(session, project.id) == ["firing", "repeat"]
    first, repeat = watched.messages(session, project.id)
    assert repeat.notice["window_end"] == "2026-03-18T12:30:00Z"
    assert repeat.notice["n"] == 120
    assert first.notice["n"] == 240
    assert repeat.transition_id is None


def test_buckets_missed_while_nobody_ticked_are_caught_up(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = watched.rule(session, project.id, window_seconds=300)
    watched.tick(session, project.id)
    watched.lay(session, project.id, END + HOUR, 100, flagged=60)
    watched.lay(session, project.id, END + HOUR + MINUTES_5, 100, flagged=2)
    rounds = 1
    while watched.tick(session, project.id, 6 * HOUR).has_more:
        rounds += 1
    assert rounds == 2  # 72 buckets
    assert watched.state(session, rule).evaluated_bucket == END + 6 * HOUR
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    [alert] = watched.episodes(session, project.id)
    assert (alert.fired_at, alert.resolved_at) == (END + HOUR + MINUTES_5, END + HOUR + MINUTES_10)


def test_no_more_than_a_day_is_caught_up(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, window_seconds=300)
    watched.tick(session, project.id)
    watched.lay(session, project.id, END + HOUR, 100, flagged=60)
    while watched.tick(session, project.id, 10 * DAY).has_more:
        pass
    assert watched.state(session, rule).evaluated_bucket == END + 10 * DAY
    assert watched.episodes(session, project.id) == []


def test_a_slice_without_enough_outputs_for_a_day_is_closed_without_a_claim_that_it_recovered(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    watched.rule(session, project.id, window_seconds=300)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=60)
    watched.tick(session, project.id)
    while watched.tick(session, project.id, DAY).has_more:
        pass
    [alert] = watched.episodes(session, project.id)
    assert alert.resolved_at is None
    watched.tick(session, project.id, DAY + MINUTES_5)
    assert alert.resolved_at == END + DAY + MINUTES_5
    resolved = watched.messages(session, project.id)[-1]
    assert resolved.kind == "resolved"
    assert resolved.notice["reason"].startswith("closed after a day without enough outputs to tell")


def test_resolved_is_written_only_where_firing_was(session: orm.Session, project: models.Project) -> None:
    quiet = watched.channel(session, project.id, min_severity="critical")
    heard = watched.channel(session, project.id)
    dead = watched.channel(session, project.id)
    watched.rule(session, project.id, window_seconds=300)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=60)
    watched.lay(session, project.id, END, 100, flagged=1)
    watched.tick(session, project.id)
    for message in watched.messages(session, project.id):
        if message.channel_id == dead.id:
            message.state = "dead"
    session.flush()
    late = watched.channel(session, project.id)
    watched.tick(session, project.id, MINUTES_5)
    told = [(message.channel_id, message.kind) for message in watched.messages(session, project.id)]
    assert (heard.id, "resolved") in told
    assert {channel for channel, kind in told if kind == "resolved"} == {heard.id}
    assert not {channel for channel, _ in told} & {quiet.id, late.id}


def test_only_live_channels_of_the_rule_are_told(session: orm.Session, project: models.Project) -> None:
    wanted, other = watched.channel(session, project.id), watched.channel(session, project.id)
    disabled = watched.channel(session, project.id, disabled_at=END)
    watched.channel(session, project.id, deleted_at=END)
    watched.rule(session, project.id, channel_ids=(wanted.id, disabled.id))
    watched.rule(session, project.id, name="all")
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id)
    assert sorted(str(message.channel_id) for message in watched.messages(session, project.id)) == sorted(
        str(channel) for channel in (wanted.id, wanted.id, other.id)
    )


def test_a_channel_made_while_it_fires_hears_firing_first(session: orm.Session, project: models.Project) -> None:
    watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id)
    watched.channel(session, project.id)
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert watched.kinds(session, project.id) == ["firing"]


def test_another_projects_outputs_and_channels_stay_out(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    watched.channel(session, stranger.id)
    watched.rule(session, project.id)
    watched.lay(session, stranger.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id)
    assert watched.episodes(session, project.id) == []
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id, MINUTES_5)
    assert watched.messages(session, stranger.id) == []


def test_of_two_ticks_at_once_one_evaluates(committed: str) -> None:
    """Each holds its transaction open until the other has had its turn."""
    with db.transaction() as session:
        project_id = factories.project(session)
        watched.channel(session, project_id)
        watched.rule(session, project_id)
        watched.lay(session, project_id, END - HOUR, 100, flagged=60)
    both = threading.Barrier(2, timeout=60)
    found: list[alerts.Evaluated] = []

    def evaluate() -> None:
        with db.transaction() as session:
            both.wait()
            found.append(alerts.evaluate(session, project_id, watched.NOW))
            both.wait()

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.buckets for one in found) == [0, 1]
    with db.transaction() as session:
        assert watched.kinds(session, project_id) == ["firing"]
        assert len(watched.episodes(session, project_id)) == 1


def test_a_tick_that_was_overtaken_writes_nothing(
    session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock keeps evaluations apart; were it lost, the comparison in the write itself still would."""
    rule = watched.rule(session, project.id)
    watched.lay(session, project.id, END - HOUR, 100, flagged=60)
    watched.tick(session, project.id)
    monkeypatch.setattr("cmerwatch.alert_episodes.states", lambda *_: [])  # what a stale reader saw
    watched.tick(session, project.id)
    assert len(watched.episodes(session, project.id)) == 1
    assert watched.state(session, rule).state == "firing"


def test_a_rolled_back_tick_leaves_nothing_behind(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        watched.channel(session, project_id)
        watched.rule(session, project_id)
        watched.lay(session, project_id, END - HOUR, 100, flagged=60)
    with db.SessionLocal() as session:
        assert alerts.evaluate(session, project_id, watched.NOW).messages == 1
        session.rollback()
    with db.transaction() as session:
        assert session.scalars(sa.select(models.AlertState)).all() == []
        assert watched.messages(session, project_id) == []
        assert alerts.evaluate(session, project_id, watched.NOW).messages == 1


def test_slices_that_showed_nothing_for_a_week_are_forgotten(session: orm.Session, project: models.Project) -> None:
    rule = watched.rule(session, project.id, scopes=("project", "endpoint"))
    watched.lay(session, project.id, END - MINUTES_5, 5, endpoint="/old")
    watched.tick(session, project.id)
    for days in range(1, 10):
        while watched.tick(session, project.id, days * DAY).has_more:
            pass
    assert [state.slice for state in session.scalars(sa.select(models.AlertState))] == [{}]
    assert watched.state(session, rule).state == "no_data"


def test_a_silence_rule_forgets_slices_that_are_gone_too(session: orm.Session, project: models.Project) -> None:
    """Whoever may send events may invent endpoints without end; each would be judged for ever."""
    watched.rule(session, project.id, "no_data", scopes=("project", "endpoint"))
    watched.lay(session, project.id, END - MINUTES_5, 5, endpoint="/old")
    watched.tick(session, project.id)
    assert len(session.scalars(sa.select(models.AlertState)).all()) == 2
    for days in range(1, 10):
        while watched.tick(session, project.id, days * DAY).has_more:
            pass
    assert [state.slice for state in session.scalars(sa.select(models.AlertState))] == [{}]


def test_an_alert_is_not_held_to_the_line_of_a_policy_that_is_gone(
    session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "baseline")
    watched.lay_week(session, project.id)
    watched.lay(session, project.id, END - MINUTES_5, 100, flagged=40)
    watched.tick(session, project.id)
    assert watched.state(session, rule).state == "firing"
    old_line = watched.state(session, rule).evidence["line"]
    rules: list[dict[str, Any]] = [{"match": {}, "conf_threshold": 0.8, "sim_threshold": 0.6}]
    session.add(models.PolicyVersion(project_id=project.id, version=2, rules=rules, created_by="test"))
    session.flush()
    watched.tick(session, project.id, MINUTES_5)
    state = watched.state(session, rule)
    assert old_line is not None
    assert (state.state, state.evidence["line"]) == ("firing", None), "nothing is known yet of the new policy"


def test_projects_without_rules_are_not_evaluated(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    watched.rule(session, project.id)
    watched.rule(session, stranger.id, is_enabled=False)
    assert alerts.projects_to_evaluate(session) == [project.id]


def test_a_project_begins_with_the_default_pack_once(session: orm.Session, project: models.Project) -> None:
    alert_rules.ensure_default(session, project.id)
    alert_rules.ensure_default(session, project.id)
    rules = alert_rules.find(session, project.id)
    assert [(rule.kind, rule.severity, rule.is_default) for rule in rules] == [
        ("baseline", "warning", True),
        ("baseline", "critical", True),
        ("no_data", "warning", True),
    ]


def test_of_two_rules_made_at_once_under_one_name_one_is_refused(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
    together, refused = threading.Barrier(2), list[errors.Conflict]()

    def make() -> None:
        together.wait()
        try:
            with db.transaction() as session:
                watched.rule(session, project_id)
        except errors.Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.transaction() as session:
        assert len(alert_rules.find(session, project_id)) == 1
    assert len(refused) == 1
