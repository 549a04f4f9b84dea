"""The alert engine: every rule over every closed bucket, for each of its slices, exactly once however many tick.

Evaluation reads counts only and writes, in the caller's one transaction, states, transitions, episodes and their
messages. It needs nothing but the database, so alerts go out while the broker is away.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import (
    alert_episodes,
    alert_groups,
    alert_judging,
    alert_notices,
    alert_rules,
    alert_steps,
    cmer_series,
    models,
)
from cmerwatch.alert_episodes import Group
from cmerwatch.alert_groups import Fired
from cmerwatch.alert_judging import Judgement
from cmerwatch.alert_messages import Messages
from cmerwatch.alert_notices import Scene
from cmerwatch.alert_numbers import Cells, Numbers
from cmerwatch.alert_steps import Step
from cmerwatch.shapes import BUCKET_SECONDS

BUCKET = dt.timedelta(seconds=BUCKET_SECONDS)
# A bucket is closed so long after its end: by then what it took in is committed and, if a worker keeps up, checked.
SETTLE = dt.timedelta(seconds=15)
# After downtime no more than this is caught up on, and so many buckets of a rule in one transaction.
CATCH_UP = dt.timedelta(hours=24)
MOST_BUCKETS = 36
# Slices of one rule, the biggest first: whoever may send events may invent endpoints without end.
MOST_SLICES = 1000


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`buckets` counts (rule, bucket) pairs; `has_more` asks to be called again at once."""

    buckets: int = 0
    transitions: int = 0
    messages: int = 0
    has_more: bool = False


def projects_to_evaluate(session: orm.Session) -> list[uuid.UUID]:
    """Those with a rule that is on, or with an end still to be told when a silence is over."""
    live = sa.select(models.AlertRule.project_id).where(
        models.AlertRule.deleted_at.is_(None), models.AlertRule.is_enabled
    )
    owing = sa.select(models.Alert.project_id).where(
        models.Alert.resolved_at.is_not(None), models.Alert.evidence.has_key(alert_episodes.OWED)
    )
    return sorted(set(session.scalars(live.union(owing))))


def evaluate(session: orm.Session, project_id: uuid.UUID, now: dt.datetime | None = None) -> Evaluated:
    """Judge every closed bucket not judged yet, tell what is due. Doing it again changes nothing.

    Of several processes one evaluates; the others find the lock taken and leave it to that one. `now` is the
    database's clock, by default.
    """
    if not alert_rules.try_lock(session, project_id):
        return Evaluated()
    now = now or alert_episodes.db_now(session)
    run = _Run(session, project_id, now)
    # The most severe first: whom a critical incident was told is spared the warning about the same.
    for rule in sorted(alert_rules.find(session, project_id), key=_severest_first):
        if rule.is_enabled:
            run.catch_up(rule)
    run.tell_due()
    session.flush()
    return Evaluated(run.buckets, run.transitions, run.messages.count, run.has_more)


def _severest_first(rule: models.AlertRule) -> int:
    return -alert_rules.SEVERITIES.index(rule.severity)


def last_closed(now: dt.datetime) -> dt.datetime:
    """End of the newest closed bucket."""
    return cmer_series.floor(now - SETTLE, BUCKET_SECONDS)


class _Run:
    """One evaluation of one project: what it has read, and how much it did."""

    def __init__(self, session: orm.Session, project_id: uuid.UUID, now: dt.datetime) -> None:
        self.session, self.project_id, self.now = session, project_id, now
        self.numbers = Numbers(session, project_id)
        self.messages = Messages(session, project_id, now)
        self.buckets = self.transitions = 0
        self.has_more = False

    def catch_up(self, rule: models.AlertRule) -> None:
        states = {state.slice_key: state for state in alert_episodes.states(self.session, rule)}
        at = self._first_bucket(rule, states.values())
        for _ in range(MOST_BUCKETS):
            if at > last_closed(self.now):
                return
            self._judge_bucket(rule, states, at)
            self.buckets += 1
            at += BUCKET
        self.has_more = at <= last_closed(self.now)

    def _first_bucket(self, rule: models.AlertRule, states: Any) -> dt.datetime:
        """End of the first bucket to judge. A new rule begins `for` ago: what has held for that long fires now."""
        newest = last_closed(self.now)
        done = max((state.evaluated_bucket for state in states), default=None)
        if done is None:
            return cmer_series.floor(newest - dt.timedelta(seconds=rule.for_seconds), BUCKET_SECONDS)
        caught_up: dt.datetime = max(done + BUCKET, newest - CATCH_UP)
        return caught_up

    def _judge_bucket(self, rule: models.AlertRule, states: dict[str, models.AlertState], at: dt.datetime) -> None:
        start = at - dt.timedelta(seconds=rule.window_seconds)
        window = self.numbers.window(start, at).within(rule.match)
        week = self.numbers.week_before(start).within(rule.match)
        steps = []
        for of in _slices(rule, window, week, states):
            scene = Scene(of, start, at, window.within(of), week.within(of))
            state = states.get(alert_episodes.slice_key(of))
            judged = self._judge(rule, scene, week, state)
            steps.append(alert_steps.take(rule, scene, judged, state, self.numbers.judged_by))
        alert_steps.forget(self.session, rule, states, {step.key for step in steps})
        moved = alert_steps.write(self.session, rule, at, steps)
        self._apply(rule, at, [step for step in steps if step.key in moved], states)

    def _judge(
        self, rule: models.AlertRule, scene: Scene, project_week: Cells, state: models.AlertState | None
    ) -> Judgement:
        is_open = state is not None and state.alert_id is not None
        if rule.kind == "no_data":
            return alert_judging.judge_no_data(
                rule, scene.window.total, scene.week.total, lambda: self._same_hours(rule, scene), is_open
            )
        line = self._kept_line(state) if state is not None and is_open else None
        line = line or alert_judging.line_of(rule, scene.week.total, project_week.total, scene.start)
        missing = alert_judging.not_compared(rule, line, project_week.total, self.numbers.judged_by[1])
        return alert_judging.judge(rule, scene.window.total, line, missing)

    def _kept_line(self, state: models.AlertState) -> alert_judging.Line | None:
        """Not one of another checker's or policy's numbers: theirs lie elsewhere, and the alert might never end."""
        judged_by = state.evidence.get("judged_by", list(self.numbers.judged_by))
        return alert_judging.kept_line(state.evidence) if judged_by == list(self.numbers.judged_by) else None

    def _same_hours(self, rule: models.AlertRule, scene: Scene) -> list[Any]:
        found = self.numbers.same_hours(scene.start, scene.end)
        return [cells.within(rule.match).within(scene.slice).total for cells in found]

    def _apply(
        self, rule: models.AlertRule, at: dt.datetime, steps: Sequence[Step], states: dict[str, models.AlertState]
    ) -> None:
        """The consequences of states that were written: episodes, history, messages.

        What fires joins before what recovers leaves: an incident that moves on to another slice stays the same one.
        """
        for step in steps:
            states[step.key] = step.row(rule, states.get(step.key))
        changed = [step for step in steps if step.after.state != step.before.state]
        opened = self._open(rule, at, [step for step in changed if step.opens], states)
        transitions = {step.key: self._note(step, states[step.key]) for step in changed}
        for group, step in self._close([step for step in changed if step.closes], states):
            self.messages.close(group, transitions[step.key], step.reason)
        for group in opened:
            self.messages.tell(group, _first_look, transitions[group.leader.slice_key])
        alert_steps.link(self.session, [states[step.key] for step in changed if step.opens or step.closes])

    def _open(
        self, rule: models.AlertRule, at: dt.datetime, steps: Sequence[Step], states: Mapping[str, models.AlertState]
    ) -> list[Group]:
        """New episodes, each in its group; returns the groups that they open."""
        known = {step.key: step for step in steps}
        of_rule = [group for group in self.messages.groups.values() if group.rule.id == rule.id and group.may_grow()]
        fired = [Fired(step.scene.slice, step.scene.window.total.accepted) for step in steps]
        opened = []
        for incident in alert_groups.arrange(fired, at, [group.as_open() for group in of_rule]):
            group = self.messages.groups[incident.joins] if incident.joins else None
            for of in incident.slices:
                step = known[alert_episodes.slice_key(of)]
                evidence = step.evidence | alert_notices.evidence_of(step.scene, rule.metric)
                alert = alert_episodes.open_one(
                    self.session, rule, step.key, dict(of), at, evidence, group.id if group else None
                )
                if group is None:
                    group = self.messages.groups[alert.id] = Group(alert, rule, [])
                    opened.append(group)
                group.firing.append(alert)
                states[step.key].alert_id = alert.id
        return opened

    def _close(self, steps: Sequence[Step], states: Mapping[str, models.AlertState]) -> list[tuple[Group, Step]]:
        """Ended episodes; returns the groups of which nothing fires any more, each with what ended last."""
        ended = {}
        for step in steps:
            state = states[step.key]
            alert = self.session.get_one(models.Alert, state.alert_id)
            alert.resolved_at = max(step.scene.end, alert.fired_at)
            state.alert_id = None
            group = self.messages.groups[alert_episodes.group_of(alert)]
            group.firing.remove(alert)
            if not group.firing:
                ended[group.id] = (group, step)
        return list(ended.values())

    def _note(self, step: Step, state: models.AlertState) -> models.AlertTransition:
        self.transitions += 1
        alert = self.session.get(models.Alert, state.alert_id) if state.alert_id else None
        evidence = step.evidence
        silence = self.messages.silence(alert) if alert is not None and (step.opens or step.closes) else None
        if silence is not None:
            evidence = evidence | {"silenced_by": silence.created_by}
        return alert_episodes.note(
            self.session, state, step.before.state, step.after.state, step.scene.end, alert, evidence, step.reason
        )

    def tell_due(self) -> None:
        """What fires and nobody or a new channel has not been told of, what has changed, what is to be told again.

        Ends that are owed come first: after the page of a slice that fires again, its old end would sound like its own.
        """
        self.messages.tell_owed()
        for group in self.messages.due():
            self.messages.tell(group, self._look_now)

    def _look_now(self, rule: models.AlertRule, alert: models.Alert, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """For a message long after the first: the worst and the changes in the window of the newest numbers."""
        start, end = (dt.datetime.fromisoformat(evidence[name]) for name in ("window_start", "window_end"))
        window, week = self.numbers.window(start, end), self.numbers.week_before(start)
        scene = Scene(alert.slice, start, end, window.within(alert.slice), week.within(alert.slice))
        return alert_notices.evidence_of(scene, rule.metric)


def _first_look(rule: models.AlertRule, alert: models.Alert, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What was seen as it fired."""
    return {name: alert.evidence.get(name, []) for name in ("worst", "changes")}


def _slices(
    rule: models.AlertRule, window: Cells, week: Cells, states: Mapping[str, models.AlertState]
) -> list[dict[str, str]]:
    """Every slice of the rule's scopes with outputs in the window or the week before, and those that still fire.

    Of more than MOST_SLICES also those that were among them and still have outputs.
    """
    found: dict[str, dict[str, str]] = {}
    for scope in rule.scopes:
        if scope == "project" or scope in rule.match:
            found[alert_episodes.slice_key(rule.match)] = dict(rule.match)
            continue
        now, before = window.by(scope), week.by(scope)
        sizes = {
            value: sum(part[value].accepted for part in (now, before) if value in part)
            for value in now.keys() | before.keys()
            if value  # an absent dimension is no slice; the project's rate has these outputs
        }
        for value in sorted(sizes, key=lambda value: (-sizes[value], value))[:MOST_SLICES]:
            of = {**rule.match, scope: value}
            found[alert_episodes.slice_key(of)] = of
    for key, state in states.items():
        if key not in found and (state.alert_id or any(part.within(state.slice).cells for part in (window, week))):
            found[key] = dict(state.slice)
    return list(found.values())
