"""One incident is one page: who is told when slices join, recover and join again, and what is never hidden."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import alert_edits, alert_rules, alert_views, deliveries, models
from cmerwatch.notify import pagerduty
from tests import factories
from tests.core import watched
from tests.core.watched import END, HOUR, MINUTES_5


@pytest.fixture
def hook(session: orm.Session, project: models.Project) -> models.Channel:
    return watched.channel(session, project.id)


@pytest.fixture
def slack(session: orm.Session, project: models.Project) -> models.Channel:
    return watched.channel(session, project.id, kind="slack", name="slack")


def watch(session: orm.Session, project: models.Project, **fields: Any) -> models.AlertRule:
    """Judged bucket by bucket, for the project, each endpoint and each version."""
    known: dict[str, Any] = {"scopes": alert_rules.DEFAULT_SCOPES, "window_seconds": 300, "min_n": 10}
    return watched.rule(session, project.id, **(known | fields))


class Story:
    """Bucket after bucket: flagged outputs of 60 for each endpoint, all of one version unless told otherwise."""

    def __init__(self, session: orm.Session, project: models.Project) -> None:
        self.session, self.project, self.after = session, project, dt.timedelta(0)

    def step(self, wait: dt.timedelta = MINUTES_5, version: str = "v1", **flagged: int) -> list[dict[str, Any]]:
        """Lay the next bucket, judge it, and return the notices of what was written."""
        before = len(watched.messages(self.session, self.project.id))
        for name, count in flagged.items():
            at = END - MINUTES_5 + self.after
            watched.lay(self.session, self.project.id, at, 60, count, endpoint=f"/{name}", model_version=version)
        while watched.tick(self.session, self.project.id, self.after).has_more:
            pass
        self.after += wait
        return [one.notice for one in watched.messages(self.session, self.project.id)[before:]]


@pytest.fixture
def story(session: orm.Session, project: models.Project) -> Story:
    return Story(session, project)


def slices(notice: dict[str, Any]) -> list[dict[str, str]]:
    return [part["slice"] for part in notice["parts"]]


def test_a_regression_that_reaches_five_slices_pages_each_channel_once(
    session: orm.Session, project: models.Project, hook: models.Channel, slack: models.Channel, story: Story
) -> None:
    watch(session, project)
    told = story.step(a=30, b=40, c=50)
    assert [one["status"] for one in told] == ["firing", "firing"]
    assert told[0]["slice"] == {}
    assert slices(told[0])[0] == {"endpoint": "/c"}, "the worst first"
    assert len(slices(told[0])) == told[0]["slices"] == 5
    assert told[0]["worst"] == [], "its slices are listed instead"
    assert "endpoint=%2Fc" in told[0]["parts"][0]["link"]
    assert {str(alert.group_id) for alert in watched.episodes(session, project.id)} == {told[0]["alert_id"]}


def test_an_alert_of_one_slice_still_names_the_worst_within(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("project",))
    [told] = story.step(a=40, b=2)
    assert told["worst"][0][:2] == ["endpoint", "/a"]
    assert (told["slices"], slices(told)) == (1, [{}])


def test_a_slice_that_fires_within_the_hour_joins_and_is_told_as_an_update_not_as_a_page(
    session: orm.Session, project: models.Project, hook: models.Channel, slack: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=0)
    told = story.step(a=30, b=30)
    assert [(one["status"], one["joined"], one["recovered"]) for one in told] == [("update", 1, 0)] * 2
    assert {"endpoint": "/b"} in slices(told[0])
    assert len({one["alert_id"] for one in (message.notice for message in watched.messages(session, project.id))}) == 1


def test_the_slice_that_opened_a_group_heads_its_messages_also_when_a_broader_one_joins(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("project", "endpoint"))
    [first] = story.step(a=30, b=0, c=0, d=0, e=0)
    [update] = story.step(a=30, b=30, c=0, d=0, e=0)
    assert first["slice"] == update["slice"] == {"endpoint": "/a"}
    assert {} in slices(update)


def test_updates_of_a_group_are_at_least_five_minutes_apart(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """The first was written late, so the next bucket closes within five minutes of it."""
    watch(session, project)
    story.step(a=30, b=0)
    session.execute(sa.update(models.Alert).values(last_told_at=END + dt.timedelta(seconds=60)))
    session.expire_all()
    assert story.step(a=30, b=30) == []
    watched.tick(session, project.id, dt.timedelta(minutes=5, seconds=45))
    assert watched.kinds(session, project.id) == ["firing", "update"]


def test_slack_is_not_told_that_a_part_recovered_and_the_others_are(
    session: orm.Session, project: models.Project, hook: models.Channel, slack: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=30)
    told = story.step(a=30, b=0)
    assert [(one["status"], one["joined"], one["recovered"]) for one in told] == [("update", 0, 1)]
    last = watched.messages(session, project.id)[-1]
    assert last.channel_id == hook.id
    assert {"endpoint": "/b"} not in slices(told[0])
    assert story.step(a=30, b=0) == [], "it is told once"


def test_a_group_whose_leader_recovers_stays_open_and_says_what_still_fires(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("project", "endpoint"))
    [first] = story.step(a=30, b=30)
    [update] = story.step(a=30, b=0, c=0, d=0, e=0)
    assert (update["status"], update["slice"], slices(update)) == ("update", {"endpoint": "/a"}, [{"endpoint": "/a"}])
    assert "endpoint=%2Fa" in update["link"]
    assert (update["alert_id"], update["group_id"]) == (first["alert_id"], first["group_id"])
    [resolved] = story.step(a=0, b=0)
    assert (resolved["status"], resolved["slices"]) == ("resolved", 3)
    assert {str(message.alert_id) for message in watched.messages(session, project.id)} == {first["alert_id"]}


def test_the_end_is_told_once_and_only_when_the_last_slice_has_recovered(
    session: orm.Session, project: models.Project, slack: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=30)
    story.step(a=30, b=0)
    assert watched.kinds(session, project.id) == ["firing"]
    story.step(a=0, b=0)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    story.step(a=0, b=0)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]


def test_a_slice_that_recovers_and_fires_again_within_the_hour_is_told_of_once_at_the_end(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project)
    for flagged in (30, 0, 30):
        story.step(a=30, b=flagged)
    [resolved] = story.step(a=0, b=0)
    assert watched.kinds(session, project.id) == ["firing", "update", "update", "resolved"]
    assert len(watched.episodes(session, project.id)) == 5
    assert slices(resolved).count({"endpoint": "/b"}) == 1
    assert resolved["slices"] == 4


def test_a_second_endpoint_that_breaks_the_next_day_pages(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """Although the first fires on: nobody has seen that it recovered."""
    watch(session, project)
    story.step(a=30, b=0, wait=20 * HOUR)
    told = story.step(a=30, b=30)
    assert [(one["status"], one["slice"]) for one in told if one["status"] == "firing"] == [
        ("firing", {"endpoint": "/b"})
    ]


def test_an_endpoint_that_breaks_while_only_another_fires_pages(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("endpoint",))
    story.step(a=30, b=0)
    [told] = story.step(a=30, b=30)
    assert (told["status"], told["slice"]) == ("firing", {"endpoint": "/b"})


def test_the_repetition_is_the_groups_and_names_all_that_fires(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, repeat_seconds=600)
    story.step(a=30, b=30)
    assert story.step(a=30, b=30) == []
    [told] = story.step(a=30, b=30)
    assert (told["status"], told["slices"]) == ("repeat", 4)


def test_a_channel_made_while_it_fires_hears_of_the_group_once_and_the_others_still_of_what_joined(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=0)
    late = watched.channel(session, project.id, name="late")
    told = story.step(a=30, b=30)
    assert sorted(one["status"] for one in told) == ["firing", "update"]
    [firing] = [one for one in watched.messages(session, project.id) if one.channel_id == late.id]
    assert len(firing.notice["parts"]) == 4


def test_telling_a_new_channel_takes_no_update_from_the_others(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """It is made in the minutes in which the others still wait for theirs."""
    watch(session, project)
    story.step(a=30, b=0)
    session.execute(sa.update(models.Alert).values(last_told_at=END + dt.timedelta(seconds=60)))
    session.expire_all()
    watched.channel(session, project.id, name="late")
    assert [one["status"] for one in story.step(a=30, b=30)] == ["firing"]
    watched.tick(session, project.id, dt.timedelta(minutes=5, seconds=45))
    assert watched.kinds(session, project.id)[:3] == ["firing", "firing", "update"]


RATES = st.fixed_dictionaries(dict.fromkeys("abc", st.sampled_from([0, 40])))
WAITS = st.sampled_from([MINUTES_5, 7 * MINUTES_5, 13 * MINUTES_5])


@given(script=st.lists(st.tuples(RATES, st.sampled_from(["v1", "v2"]), WAITS), min_size=1, max_size=5))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
def test_whatever_comes_and_goes_a_receiver_knows_exactly_what_fires(
    session: orm.Session, script: list[tuple[dict[str, int], str, dt.timedelta]]
) -> None:
    """And was paged once per group, and told its end once."""
    project = session.get_one(models.Project, factories.project(session, f"p{uuid.uuid4().hex}"))
    watched.channel(session, project.id)
    watch(session, project)
    story = Story(session, project)
    for flagged, version, wait in script:
        story.step(wait=wait, version=version, **flagged)
    said: dict[uuid.UUID | None, list[models.Delivery]] = {}
    for message in watched.messages(session, project.id):
        said.setdefault(message.alert_id, []).append(message)
    members: dict[uuid.UUID | None, list[models.Alert]] = {}
    for alert in watched.episodes(session, project.id):
        members.setdefault(alert.group_id, []).append(alert)
    assert said.keys() == members.keys()
    for group, alerts in members.items():
        firing = [alert.slice for alert in alerts if alert.resolved_at is None]
        kinds = [message.kind for message in said[group]]
        assert (kinds[0], kinds.count("firing")) == ("firing", 1)
        assert (kinds[-1] == "resolved", kinds.count("resolved")) == (not firing, int(not firing))
        told = slices(said[group][-1].notice)
        assert sorted(told, key=str) == sorted(firing or unique(alert.slice for alert in alerts), key=str)
        opened = min(alert.fired_at for alert in alerts)
        assert all(alert.fired_at - opened < HOUR for alert in alerts)


def unique(some: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """A slice that recovered and fired again is two alerts of one group."""
    return [dict(items) for items in {tuple(sorted(of.items())) for of in some}]


# Silences


def hush(
    session: orm.Session,
    project: models.Project,
    until: dt.timedelta,
    rule_id: uuid.UUID | None = None,
    **match: str,
) -> None:
    values = {"starts_at": END - HOUR, "ends_at": END + until, "reason": "planned", "created_by": "user:ada"}
    session.add(models.Silence(id=uuid.uuid4(), project_id=project.id, rule_id=rule_id, match=match, **values))
    session.flush()


def test_a_silenced_slice_is_not_named_and_joins_in_words_when_the_silence_is_over(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    hush(session, project, dt.timedelta(minutes=7), endpoint="/b")
    watch(session, project)
    [first] = story.step(a=30, b=30)
    assert {"endpoint": "/b"} not in slices(first)
    [hushed] = [row for row in alert_views.find(session, project.id).rows if row.slice == {"endpoint": "/b"}]
    assert hushed.messages == [], "none has named it"
    assert story.step(a=30, b=30) == []
    [update] = story.step(a=30, b=30)
    assert (update["status"], update["joined"]) == ("update", 1)
    assert {"endpoint": "/b"} in slices(update)


def test_the_end_waits_for_a_silence_of_every_slice_and_of_no_single_one(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=30)
    hush(session, project, HOUR, endpoint="/b")
    story.step(a=0, b=0)
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    story.step(a=30, b=30)
    hush(session, project, dt.timedelta(minutes=18))
    story.step(a=0, b=0)
    assert watched.kinds(session, project.id) == ["firing", "resolved", "firing"]
    story.step(a=0, b=0)
    last = watched.messages(session, project.id)[-1]
    assert (last.kind, last.notice["slices"], len(last.notice["parts"])) == ("resolved", 4, 4)


def test_an_end_that_a_silence_kept_back_is_told_before_what_fires_since(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("endpoint",))
    story.step(a=30)
    hush(session, project, dt.timedelta(minutes=12))
    for flagged in (0, 30, 30, 30):
        story.step(a=flagged)
    first, end, last = watched.messages(session, project.id)
    assert [one.kind for one in (first, end, last)] == ["firing", "resolved", "firing"]
    assert first.alert_id == end.alert_id != last.alert_id


# Critical and warning


def test_a_critical_slice_that_only_a_silence_knows_of_spares_nobody_the_warning(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """It joined an incident that was told; once the others have recovered, nobody has heard of it."""
    watch(session, project, name="warn", threshold=0.1, scopes=("endpoint",))
    page = watch(session, project, name="page", severity="critical", threshold=0.4)
    hush(session, project, HOUR, rule_id=page.id, endpoint="/b")
    assert told_of(story.step(a=50, b=50, c=50)) == [("page", "firing")]
    [warning] = story.step(a=0, b=50, c=0)
    assert (warning["rule"], warning["status"], warning["slice"]) == ("warn", "firing", {"endpoint": "/b"})


def told_of(notices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["rule"], one["status"]) for one in notices]


def test_a_critical_incident_spares_the_warnings_of_all_slices_it_overlaps(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """The warning reaches an endpoint that is not critical itself: it is the same hour and the same traffic."""
    watch(session, project, name="warn", threshold=0.1)
    watch(session, project, name="page", severity="critical", threshold=0.4, scopes=("project",))
    assert told_of(story.step(a=50, b=20, c=50)) == [("page", "firing")]
    assert story.step(a=50, b=20, c=50) == []


def test_a_warning_elsewhere_is_told_beside_a_critical_incident(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, name="warn", threshold=0.1, scopes=("endpoint",))
    watch(session, project, name="page", severity="critical", threshold=0.6, scopes=("endpoint",))
    assert told_of(story.step(a=55, b=20)) == [("page", "firing"), ("warn", "firing")]
    [warning] = [one.notice for one in watched.messages(session, project.id) if one.notice["rule"] == "warn"]
    assert slices(warning) == [{"endpoint": "/b"}]


def test_a_warning_of_which_only_a_part_is_critical_is_told_whole(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """The version that warns overlaps the critical endpoint; the other endpoint does not."""
    watch(session, project, name="warn", threshold=0.1, scopes=("endpoint", "model_version"))
    watch(session, project, name="page", severity="critical", threshold=0.6, scopes=("endpoint",))
    told = story.step(a=55, b=20)
    assert told_of(told) == [("page", "firing"), ("warn", "firing")]
    assert len(slices(told[1])) == 3


def test_a_warning_an_hour_into_a_critical_incident_is_told(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, name="warn", threshold=0.1, scopes=("endpoint",))
    watch(
        session, project, name="page", severity="critical", threshold=0.2, scopes=("project",), keep_firing_seconds=7200
    )
    assert told_of(story.step(a=50, b=0, wait=HOUR)) == [("page", "firing")]
    told = story.step(a=50, b=30)
    assert ("warn", "firing") in told_of(told)
    [warning] = [one for one in told if one["rule"] == "warn"]
    assert {"endpoint": "/b"} in slices(warning)


def test_a_critical_incident_pages_whatever_warning_came_before_it(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, name="warn", threshold=0.1)
    watch(session, project, name="page", severity="critical", threshold=0.5)
    assert told_of(story.step(a=15, b=15)) == [("warn", "firing")]
    assert told_of(story.step(a=55, b=55)) == [("page", "firing")]


def test_what_becomes_critical_by_an_edit_opens_a_group_of_its_own(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """A critical slice must not hide in a group that was told as a warning."""
    rule = watch(session, project)
    story.step(a=30, b=0)
    alert_edits.change(session, project.id, rule.id, replace(alert_rules.read(rule), severity="critical"))
    told = story.step(a=30, b=30)
    assert [(one["status"], one["severity"], slices(one)) for one in told] == [
        ("firing", "critical", [{"endpoint": "/b"}])
    ]


# Edits, and what the release before left


def test_a_rule_changed_while_its_group_fires_tells_one_end_with_the_reason(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    rule = watch(session, project)
    story.step(a=30, b=30)
    alert_edits.change(session, project.id, rule.id, replace(alert_rules.read(rule), threshold=0.9))
    assert watched.kinds(session, project.id) == ["firing", "resolved"]
    resolved = watched.messages(session, project.id)[1].notice
    assert resolved["reason"] == "closed because the rule was changed; it was not seen to recover"
    assert resolved["slices"] == 4


def test_an_alert_of_the_release_before_is_joined_by_nothing_and_ends_under_its_old_key(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project, scopes=("project", "endpoint"))
    [first] = story.step(a=30, b=30, c=30, d=30)
    session.execute(sa.update(models.Alert).values(group_id=None, told_at=None, told_slices=0))
    session.expire_all()
    firsts = {alert.id for alert in watched.episodes(session, project.id)}
    story.step(a=30, b=30, c=30, d=30, e=30)
    [joined] = [alert for alert in watched.episodes(session, project.id) if alert.id not in firsts]
    assert joined.group_id == joined.id
    story.step(a=0, b=0, c=0, d=0, e=0)
    [end] = [one for one in watched.messages(session, project.id) if one.kind == "resolved" and not one.notice["slice"]]
    assert end.notice["group_id"] == ""
    triggered = deliveries.notice_of(first | {"group_id": ""})
    assert pagerduty.dedup_key(deliveries.notice_of(end.notice)) == pagerduty.dedup_key(triggered)


# What is read back


def test_whoever_asks_for_one_slice_sees_the_messages_that_named_it(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=0)
    story.step(a=30, b=30)
    story.step(a=0, b=0)
    rows = {row.slice_key: row for row in alert_views.find(session, project.id).rows}
    kinds = {key: [message.delivery.kind for message in row.messages] for key, row in rows.items()}
    assert kinds["{}"] == ["firing", "update", "resolved"]
    assert kinds['{"endpoint":"/a"}'] == ["firing", "update", "resolved"]
    assert kinds['{"endpoint":"/b"}'] == ["update", "resolved"]
    assert len({row.group_id for row in rows.values()}) == 1


def test_the_count_beside_alerts_is_of_incidents(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    watch(session, project)
    story.step(a=30, b=30)
    assert alert_views.firing(session, project.id) == 1


def test_the_history_of_a_bucket_is_written_in_one_statement(
    session: orm.Session, project: models.Project, hook: models.Channel, story: Story
) -> None:
    """Hundreds of slices may change at once, and the project's lock is held meanwhile."""
    watch(session, project)
    written = []

    def see(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "INSERT INTO alert_transitions" in statement:
            written.append(statement)

    engine = session.get_bind().engine
    sa.event.listen(engine, "before_cursor_execute", see)
    try:
        story.step(a=30, b=40, c=50)
    finally:
        sa.event.remove(engine, "before_cursor_execute", see)
    assert len(written) == 1
    assert len(session.scalars(sa.select(models.AlertTransition)).all()) == 5
