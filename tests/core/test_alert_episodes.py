"""Silences, edits and deletions while it fires, and who is spared what."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_edits, alert_numbers, alert_rules, alert_views, alerts, errors, models, silences
from tests.core import watched
from tests.core.watched import END, HOUR, MINUTES_5, NOW


@pytest.fixture
def hook(session: orm.Session, project: models.Project) -> models.Channel:
    return watched.channel(session, project.id)


def fire(session: orm.Session, project: models.Project, **rule: Any) -> models.AlertRule:
    made = watched.rule(session, project.id, **rule)
    for back in range(12):
        watched.lay(session, project.id, END - HOUR + back * MINUTES_5, 20, 12)
    watched.tick(session, project.id)
    return made


def hush(session: orm.Session, project: models.Project, hours: float, **fields: Any) -> models.Silence:
    """From before NOW for so long; the clock of these tests stands in the past."""
    made = models.Silence(
        id=uuid.uuid4(),
        project_id=project.id,
        starts_at=NOW - HOUR,
        ends_at=NOW + dt.timedelta(hours=hours),
        reason="planned",
        created_by="user:ada",
        match=fields.pop("match", {}),
        **fields,
    )
    session.add(made)
    session.flush()
    return made


def test_while_silenced_nobody_is_told_and_history_goes_on(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    hush(session, project, hours=1)
    rule = fire(session, project)
    assert watched.state(session, rule).state == "firing"
    assert watched.messages(session, project.id) == []
    [transition] = session.scalars(sa.select(models.AlertTransition))
    assert transition.evidence["silenced_by"] == "user:ada"


def test_a_silence_that_ends_while_it_fires_tells(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    hush(session, project, hours=0.25)
    fire(session, project)
    watched.tick(session, project.id, dt.timedelta(minutes=10))
    assert watched.messages(session, project.id) == []
    watched.tick(session, project.id, dt.timedelta(minutes=15, seconds=15))
    watched.tick(session, project.id, dt.timedelta(minutes=15, seconds=30))
    assert watched.kinds(session, project.id) == ["firing"]


def test_an_end_that_a_silence_covers_is_told_when_the_silence_is_over(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    """An incident that was opened at the pager must not stay open for ever."""
    fire(session, project, window_seconds=300, min_n=10)
    hush(session, project, hours=1)
    watched.lay(session, project.id, END, 60, 1)
    watched.tick(session, project.id, MINUTES_5)
    assert watched.kinds(session, project.id) == ["firing"]
    watched.tick(session, project.id, HOUR + MINUTES_5)
    watched.tick(session, project.id, HOUR + 2 * MINUTES_5)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    resolved = watched.messages(session, project.id)[1]
    assert resolved.notice["resolved_at"] == "2026-03-18T12:05:00Z"
    assert resolved.notice["n"] == 60


def test_the_last_rule_deleted_under_a_silence_still_tells_its_end(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = fire(session, project)
    now = dt.datetime.now(dt.UTC)
    silence = silences.create(
        session, project.id, created_by="user:ada", reason="x", starts_at=now - HOUR, ends_at=now + HOUR
    )
    alert_edits.delete(session, project.id, rule.id)
    assert watched.kinds(session, project.id) == ["firing"]
    assert alerts.projects_to_evaluate(session) == [project.id]
    silences.end(session, project.id, silence.id)
    alerts.evaluate(session, project.id)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    assert alerts.projects_to_evaluate(session) == []


def test_what_fired_and_ended_under_a_silence_is_told_to_nobody(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    hush(session, project, hours=1)
    fire(session, project, window_seconds=300, min_n=10)
    watched.lay(session, project.id, END, 60, 1)
    watched.tick(session, project.id, MINUTES_5)
    watched.tick(session, project.id, 2 * HOUR)
    assert watched.messages(session, project.id) == []
    assert watched.episodes(session, project.id)[0].resolved_at is not None


def test_repeats_wait_for_the_end_of_a_silence(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    fire(session, project, repeat_seconds=300)
    hush(session, project, hours=0.25)
    watched.tick(session, project.id, dt.timedelta(minutes=10))
    assert watched.kinds(session, project.id) == ["firing"]
    watched.tick(session, project.id, dt.timedelta(minutes=16))
    assert watched.kinds(session, project.id) == ["firing", "repeat"]


@pytest.mark.parametrize(
    "match, of, covers",
    [
        ({}, {}, True),
        ({}, {"endpoint": "/a"}, True),
        ({"endpoint": "/a"}, {"endpoint": "/a", "customer": "x"}, True),
        ({"endpoint": "/a"}, {"endpoint": "/b"}, False),
        ({"endpoint": "/a"}, {}, False),
        ({"endpoint": "/a", "customer": "x"}, {"endpoint": "/a"}, False),
        ({"customer": ""}, {}, False),
    ],
)
def test_a_silence_covers_the_slices_within_its_match(match: dict[str, str], of: dict[str, str], covers: bool) -> None:
    silence = models.Silence(match=match, rule_id=None)
    found = silences.covering([silence], uuid.uuid4(), of)
    assert (found is silence) is covers


def test_a_silence_of_one_rule_covers_no_other(session: orm.Session, project: models.Project) -> None:
    rule, other = watched.rule(session, project.id), watched.rule(session, project.id, name="other")
    silence = models.Silence(match={}, rule_id=rule.id)
    assert silences.covering([silence], rule.id, {}) is silence
    assert silences.covering([silence], other.id, {}) is None


def test_ending_a_silence_twice_changes_nothing_and_another_projects_is_not_found(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    made = silences.create(session, project.id, created_by="user:ada", reason="x", ends_at=tomorrow)
    ended = silences.end(session, project.id, made.id).ends_at
    assert silences.end(session, project.id, made.id).ends_at == ended < tomorrow
    with pytest.raises(errors.NotFound):
        silences.end(session, stranger.id, made.id)


# Edits


def test_an_edit_of_what_is_judged_closes_what_fires_and_begins_anew(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = fire(session, project)
    fields = alert_rules.read(rule)
    changed = alert_edits.change(session, project.id, rule.id, replace(fields, threshold=0.9))
    assert changed.version == 2
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    resolved = watched.messages(session, project.id)[1].notice
    assert resolved["reason"] == "closed because the rule was changed; it was not seen to recover"
    [episode] = watched.episodes(session, project.id)
    assert episode.resolved_at is not None
    watched.tick(session, project.id, MINUTES_5)
    assert watched.state(session, changed).state == "ok"


def test_after_an_edit_it_may_fire_again_as_a_new_episode(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = fire(session, project)
    alert_edits.change(session, project.id, rule.id, replace(alert_rules.read(rule), threshold=0.2))
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert watched.kinds(session, project.id) == ["firing", "resolved", "firing"]
    assert len(watched.episodes(session, project.id)) == 2


def test_a_new_name_severity_or_choice_of_channels_closes_nothing(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = fire(session, project)
    told = {"name": "other", "severity": "critical", "repeat_seconds": 600, "channel_ids": (hook.id,)}
    alert_edits.change(session, project.id, rule.id, replace(alert_rules.read(rule), **told))  # type: ignore[arg-type]
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert watched.kinds(session, project.id) == ["firing"]
    assert watched.state(session, rule).state == "firing"


def test_saving_a_rule_as_it_is_changes_nothing(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    rule = fire(session, project)
    assert alert_edits.change(session, project.id, rule.id, alert_rules.read(rule)).version == 1
    assert watched.kinds(session, project.id) == ["firing"]


@pytest.mark.parametrize("way", ["off", "delete"])
def test_a_rule_switched_off_or_deleted_closes_what_fires_and_is_not_judged_again(
    session: orm.Session, project: models.Project, hook: models.Channel, way: str
) -> None:
    rule = fire(session, project)
    if way == "off":
        alert_edits.change(session, project.id, rule.id, replace(alert_rules.read(rule), is_enabled=False))
    else:
        alert_edits.delete(session, project.id, rule.id)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    watched.tick(session, project.id, MINUTES_5)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    assert session.scalars(sa.select(models.AlertState)).all() == []
    [row] = alert_views.find(session, project.id).rows
    assert (row.state, row.rule.name) == ("resolved", "watch")


# Who is spared what


def test_a_channel_told_of_the_critical_alert_is_spared_the_warning(
    session: orm.Session, project: models.Project
) -> None:
    everything = watched.channel(session, project.id)
    warnings_only = watched.channel(session, project.id, name="warnings")
    watched.rule(session, project.id, name="warn", channel_ids=(everything.id, warnings_only.id))
    fire(session, project, name="page", severity="critical", channel_ids=(everything.id,))
    told = {(message.channel_id, message.notice["rule"]) for message in watched.messages(session, project.id)}
    assert told == {(everything.id, "page"), (warnings_only.id, "warn")}


def test_the_warning_is_told_once_the_critical_alert_is_over(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    watched.rule(session, project.id, name="warn", threshold=0.1, window_seconds=300)
    fire(session, project, name="page", severity="critical", threshold=0.4, window_seconds=300, min_n=10)
    watched.lay(session, project.id, END - MINUTES_5, 60, 36)
    watched.lay(session, project.id, END, 100, 60)
    watched.tick(session, project.id, MINUTES_5)
    watched.lay(session, project.id, END + MINUTES_5, 100, 25)
    watched.tick(session, project.id, 2 * MINUTES_5)
    told = [(message.notice["rule"], message.kind) for message in watched.messages(session, project.id)]
    assert told == [("page", "firing"), ("page", "resolved"), ("warn", "firing")]


def test_a_channel_made_while_both_fire_is_told_of_the_critical_alert_alone(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    watched.rule(session, project.id, name="warn")
    fire(session, project, name="page", severity="critical")
    late = watched.channel(session, project.id)
    for seconds in (15, 30):
        watched.tick(session, project.id, dt.timedelta(seconds=seconds))
    told = [(one.channel_id, one.notice["rule"], one.kind) for one in watched.messages(session, project.id)]
    assert sorted(told) == sorted([(hook.id, "page", "firing"), (late.id, "page", "firing")])


def test_a_channel_whose_message_died_is_not_told_again_before_the_repetition(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    watched.channel(session, project.id, name="works")
    fire(session, project)
    for message in watched.messages(session, project.id):
        if message.channel_id == hook.id:
            message.state = "dead"
    session.flush()
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert watched.kinds(session, project.id) == ["firing", "firing"]


def test_a_channel_made_under_a_silence_is_told_when_it_is_over(
    session: orm.Session, project: models.Project, hook: models.Channel
) -> None:
    fire(session, project)
    hush(session, project, hours=1)
    watched.channel(session, project.id)
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert watched.kinds(session, project.id) == ["firing"]
    watched.tick(session, project.id, HOUR + dt.timedelta(seconds=1))
    assert watched.kinds(session, project.id) == ["firing", "firing"]


def test_what_nobody_can_be_told_of_is_not_read_again_at_every_tick(
    session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fires for every endpoint at once, in a project without channels: a tick every 15 s must cost little."""
    watched.rule(session, project.id, scopes=("endpoint",))
    for number in range(5):
        watched.lay(session, project.id, END - MINUTES_5, 60, 40, endpoint=f"/{number}")
    watched.tick(session, project.id)
    assert len(watched.episodes(session, project.id)) == 5
    read = []
    monkeypatch.setattr(alert_numbers.Numbers, "_execute", lambda own, *values: read.append(values))
    watched.tick(session, project.id, dt.timedelta(seconds=15))
    assert read == []
