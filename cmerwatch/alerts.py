"""The alert engine: every rule over every closed bucket, for each of its slices, exactly once however many tick.

Evaluation reads counts only and writes, in the caller's one transaction, states, transitions, episodes and their
messages. It needs nothing but the database, so alerts go out while the broker is away.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_episodes, alert_judging, alert_notices, alert_rules, cmer_series, models, silences
from cmerwatch.alert_judging import Judgement
from cmerwatch.alert_notices import Scene
from cmerwatch.alert_numbers import Cells, Numbers
from cmerwatch.alert_states import Standing, next_state
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
    # The most severe first: whom a critical alert was told is spared the warning about the same slice.
    for rule in sorted(alert_rules.find(session, project_id), key=_severest_first):
        if rule.is_enabled:
            run.catch_up(rule)
    run.tell_due()
    session.flush()
    return Evaluated(run.buckets, run.transitions, run.messages, run.has_more)


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
        self.quiet = silences.lasting(session, project_id, now)
        self.listeners: dict[uuid.UUID, set[uuid.UUID]] = {}  # the channels of a rule
        self.buckets = self.transitions = self.messages = 0
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
            steps.append(_step(rule, scene, judged, state, self.numbers.judged_by))
        _forget(self.session, rule, states, {step.key for step in steps})
        moved = _write_states(self.session, rule, at, steps)
        for step in steps:
            if step.key in moved:
                self._apply(rule, step, states)

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
        return alert_judging.judge(rule, scene.window.total, line)

    def _kept_line(self, state: models.AlertState) -> alert_judging.Line | None:
        """Not one of another checker's or policy's numbers: theirs lie elsewhere, and the alert might never end."""
        judged_by = state.evidence.get("judged_by", list(self.numbers.judged_by))
        return alert_judging.kept_line(state.evidence) if judged_by == list(self.numbers.judged_by) else None

    def _same_hours(self, rule: models.AlertRule, scene: Scene) -> list[Any]:
        found = self.numbers.same_hours(scene.start, scene.end)
        return [cells.within(rule.match).within(scene.slice).total for cells in found]

    def _apply(self, rule: models.AlertRule, step: _Step, states: dict[str, models.AlertState]) -> None:
        """The consequences of a state that was written: history, the episode, its messages."""
        state = step.row(rule, states.get(step.key))
        states[step.key] = state
        if step.after.state == step.before.state:
            return
        self.transitions += 1
        alert = self.session.get(models.Alert, state.alert_id) if state.alert_id else None
        opens = step.after.is_open and not step.before.is_open
        if opens:
            evidence = step.evidence | alert_notices.evidence_of(step.scene, rule.metric)
            alert = alert_episodes.open_one(
                self.session, rule, step.key, dict(step.scene.slice), step.scene.end, evidence
            )
        transition = alert_episodes.note(
            self.session, state, step.before.state, step.after.state, step.scene.end, alert, step.evidence, step.reason
        )
        if alert is None:
            return
        if opens:
            self.messages += alert_episodes.tell(
                self.session, alert, rule, self.now, alert.evidence, self.quiet, transition
            )
        elif not step.after.is_open:
            self.messages += alert_episodes.close(
                self.session, alert, rule, step.scene.end, _of_end(step, alert), self.quiet, transition
            )
        _link(self.session, state, alert if step.after.is_open else None)

    def tell_due(self) -> None:
        """What fires and nobody or a new channel has not been told of, and what is to be told again."""
        alerts = alert_episodes.still_open(self.session, self.project_id)
        rules = alert_episodes.rules_of(self.session, alerts)
        written = alert_episodes.written_to(self.session, alerts)
        for alert in alerts:
            rule = rules[alert.rule_id]
            wanted = self._wanted(alert, rule)
            if wanted and self._is_due(alert, rule):
                evidence = self._evidence_now(rule, alert)
                self.messages += alert_episodes.tell(self.session, alert, rule, self.now, evidence, self.quiet)
            elif wanted - written.get(alert.id, set()):
                latest = functools.partial(self._evidence_now, rule, alert)
                self.messages += alert_episodes.tell_newcomers(self.session, alert, rule, latest, self.quiet)
        self.messages += alert_episodes.tell_owed(self.session, self.project_id, self.quiet)

    def _is_due(self, alert: models.Alert, rule: models.AlertRule) -> bool:
        repeat = dt.timedelta(seconds=rule.repeat_seconds)
        return alert.last_told_at is None or self.now - alert.last_told_at >= repeat

    def _wanted(self, alert: models.Alert, rule: models.AlertRule) -> set[uuid.UUID]:
        """The channels that may be told of it now, read once per rule: a thousand slices may fire at every tick."""
        if rule.id not in self.listeners:
            self.listeners[rule.id] = {channel.id for channel in alert_episodes.channels(self.session, rule)}
        is_silenced = silences.covering(self.quiet, alert.rule_id, alert.slice) is not None
        return set() if is_silenced else self.listeners[rule.id]

    def _evidence_now(self, rule: models.AlertRule, alert: models.Alert) -> dict[str, Any]:
        """The numbers of the last bucket judged, for a message long after the first."""
        state = self.session.get(models.AlertState, (rule.id, alert.slice_key))
        if state is None or "window_end" not in state.evidence:
            return dict(alert.evidence)
        start, end = (dt.datetime.fromisoformat(state.evidence[name]) for name in ("window_start", "window_end"))
        window, week = self.numbers.window(start, end), self.numbers.week_before(start)
        scene = Scene(alert.slice, start, end, window.within(alert.slice), week.within(alert.slice))
        return state.evidence | {"reason": state.reason} | alert_notices.evidence_of(scene, rule.metric)


@dataclass(frozen=True, slots=True)
class _Step:
    """One slice in one bucket: where it stood, where it stands, and on what numbers."""

    key: str
    scene: Scene
    before: Standing
    after: Standing
    evidence: dict[str, Any]
    reason: str

    def row(self, rule: models.AlertRule, old: models.AlertState | None) -> models.AlertState:
        """The state as the statement has written it; not added to the session, which would write it again."""
        return models.AlertState(
            rule_id=rule.id,
            slice_key=self.key,
            project_id=rule.project_id,
            slice=dict(self.scene.slice),
            state=self.after.state,
            since=self.after.since,
            evaluated_bucket=self.scene.end,
            alert_id=old.alert_id if old else None,
            evidence=self.evidence,
            reason=self.reason,
        )


def _step(
    rule: models.AlertRule,
    scene: Scene,
    judged: Judgement,
    state: models.AlertState | None,
    judged_by: tuple[int | None, int],
) -> _Step:
    before = _standing(state) if state else Standing("ok", scene.end)
    after = next_state(
        before,
        judged.verdict,
        scene.end,
        dt.timedelta(seconds=rule.for_seconds),
        dt.timedelta(seconds=rule.keep_firing_seconds),
    )
    reason = judged.reason
    if before.is_open and not after.is_open and judged.verdict in ("few", "silent"):
        reason = f"closed after a day without enough outputs to tell ({reason}); it was not seen to recover"
    evidence = judged.evidence | {
        "window_start": scene.start.isoformat(),
        "window_end": scene.end.isoformat(),
        "missing_since": after.missing_since.isoformat() if after.missing_since else None,
        "reason": reason,
        "judged_by": list(judged_by),
    }
    return _Step(alert_episodes.slice_key(scene.slice), scene, before, after, evidence, reason)


def _standing(state: models.AlertState) -> Standing:
    missing = state.evidence.get("missing_since")
    return Standing(state.state, state.since, dt.datetime.fromisoformat(missing) if missing else None)


def _of_end(step: _Step, alert: models.Alert) -> dict[str, Any]:
    """What the last message says: the numbers now, and from when the worst slices were known."""
    return step.evidence | {name: alert.evidence.get(name, []) for name in ("worst", "changes")}


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


_WRITE = sa.text(
    """
    INSERT INTO alert_states AS s (rule_id, slice_key, project_id, slice, state, since, evaluated_bucket, evidence,
        reason)
    SELECT :rule, slice_key, :project, slice, state, since, :bucket, evidence, reason
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r(slice_key text, slice jsonb, state text, since timestamptz, evidence jsonb, reason text)
    ORDER BY slice_key
    ON CONFLICT (rule_id, slice_key) DO UPDATE SET state = excluded.state, since = excluded.since,
        evaluated_bucket = excluded.evaluated_bucket, evidence = excluded.evidence, reason = excluded.reason
        WHERE s.evaluated_bucket < excluded.evaluated_bucket
    RETURNING slice_key
    """
)
_FORGET = sa.text(
    "DELETE FROM alert_states WHERE rule_id = :rule AND alert_id IS NULL AND slice_key = ANY(CAST(:gone AS text[]))"
)


def _forget(session: orm.Session, rule: models.AlertRule, states: dict[str, models.AlertState], kept: set[str]) -> None:
    """A slice that has shown nothing for as long as a baseline is no longer worth a row, nor being judged."""
    gone = [key for key in states if key not in kept]
    if gone:
        session.execute(_FORGET, {"rule": rule.id, "gone": gone})
    for key in gone:
        del states[key]


def _write_states(session: orm.Session, rule: models.AlertRule, at: dt.datetime, steps: Sequence[_Step]) -> set[str]:
    """Compare and set on evaluated_bucket; the keys that were not already judged so far."""
    rows = [
        {
            "slice_key": step.key,
            "slice": dict(step.scene.slice),
            "state": step.after.state,
            "since": step.after.since.isoformat(),
            "evidence": step.evidence,
            "reason": step.reason,
        }
        for step in steps
    ]
    values = {"rule": rule.id, "project": rule.project_id, "bucket": at, "rows": json.dumps(rows)}
    return set(session.scalars(_WRITE, values))


def _link(session: orm.Session, state: models.AlertState, alert: models.Alert | None) -> None:
    state.alert_id = alert.id if alert else None
    session.execute(
        sa.update(models.AlertState)
        .where(models.AlertState.rule_id == state.rule_id, models.AlertState.slice_key == state.slice_key)
        .values(alert_id=state.alert_id)
        .execution_options(synchronize_session=False)
    )
