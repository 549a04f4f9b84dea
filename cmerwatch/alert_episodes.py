"""Episodes as the tables have them: opened in a group, closed, and the history of states behind them."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_groups, ids, models

OWED = "resolved_untold"  # in a group's first alert's evidence: what its end would have said but for a silence


@dataclass(slots=True)
class Group:
    """An incident: the alert that opened it, its rule, and those of its alerts that fire. Open while there are any."""

    leader: models.Alert
    rule: models.AlertRule
    firing: list[models.Alert]

    @property
    def id(self) -> uuid.UUID:
        return self.leader.id

    def as_open(self) -> alert_groups.Open:
        return alert_groups.Open(self.id, self.leader.fired_at, [alert.slice for alert in self.firing])

    def may_grow(self) -> bool:
        """Not what the release before opened, whose incident has the name of one slice, nor under another severity: a
        critical alert must not hide in what was told as a warning."""
        return self.leader.group_id is not None and self.leader.severity == self.rule.severity


def open_groups(session: orm.Session, project_id: uuid.UUID) -> dict[uuid.UUID, Group]:
    """Everything that fires, by group, the oldest first."""
    statement = sa.select(models.Alert).where(models.Alert.project_id == project_id, models.Alert.resolved_at.is_(None))
    firing = session.scalars(statement.order_by(models.Alert.id)).all()
    known = {alert.id: alert for alert in firing}
    recovered = {group_of(alert) for alert in firing} - known.keys()
    for leader in session.scalars(sa.select(models.Alert).where(models.Alert.id.in_(recovered))) if recovered else ():
        known[leader.id] = leader
    rules = rules_of(session, firing)
    found: dict[uuid.UUID, Group] = {}
    for alert in firing:
        leader = known[group_of(alert)]
        found.setdefault(leader.id, Group(leader, rules[leader.rule_id], [])).firing.append(alert)
    return found


def group_of(alert: models.Alert) -> uuid.UUID:
    return alert.group_id or alert.id


def members(session: orm.Session, leader: models.Alert) -> list[models.Alert]:
    """Every alert the group ever had, oldest first."""
    statement = sa.select(models.Alert).where(sa.or_(models.Alert.group_id == leader.id, models.Alert.id == leader.id))
    return list(session.scalars(statement.order_by(models.Alert.id)))


def open_one(
    session: orm.Session,
    rule: models.AlertRule,
    slice_key: str,
    of: dict[str, str],
    at: dt.datetime,
    evidence: Any,
    group_id: uuid.UUID | None = None,
) -> models.Alert:
    """A new episode, as its rule is now, in that group or one of its own. The unique index on open ones refuses a
    second for the same slice."""
    made = ids.uuid7()
    alert = models.Alert(
        id=made,
        project_id=rule.project_id,
        group_id=group_id or made,
        rule_id=rule.id,
        rule_name=rule.name,
        rule_version=rule.version,
        severity=rule.severity,
        slice_key=slice_key,
        slice=of,
        fired_at=at,
        resolved_at=None,
        last_told_at=None,
        told_at=None,
        told_slices=0,
        evidence=evidence,
    )
    session.add(alert)
    return alert


def note(
    session: orm.Session,
    state: models.AlertState,
    from_state: str,
    to_state: str,
    bucket: dt.datetime,
    alert: models.Alert | None,
    evidence: dict[str, Any],
    reason: str,
) -> models.AlertTransition:
    """One line of history; written with the others of its tick, in one statement."""
    transition = models.AlertTransition(
        id=ids.uuid7(),
        project_id=state.project_id,
        rule_id=state.rule_id,
        slice_key=state.slice_key,
        slice=state.slice,
        alert_id=alert.id if alert else None,
        from_state=from_state,
        to_state=to_state,
        bucket=bucket,
        evidence=evidence,
        reason=reason,
    )
    session.add(transition)
    return transition


def rules_of(session: orm.Session, alerts: Iterable[models.Alert]) -> dict[uuid.UUID, models.AlertRule]:
    wanted = {alert.rule_id for alert in alerts}
    rules = session.scalars(sa.select(models.AlertRule).where(models.AlertRule.id.in_(wanted))) if wanted else ()
    return {rule.id: rule for rule in rules}


def db_now(session: orm.Session) -> dt.datetime:
    """The one clock that every process shares."""
    now: dt.datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return now


def slice_key(of: Mapping[str, str]) -> str:
    """The identity of a slice within its rule: canonical JSON."""
    return json.dumps(dict(of), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def states(session: orm.Session, rule: models.AlertRule) -> Sequence[models.AlertState]:
    """Read past the session's memory: they are written by a statement of their own."""
    statement = sa.select(models.AlertState).where(models.AlertState.rule_id == rule.id)
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def latest(
    session: orm.Session, rule: models.AlertRule, alerts: Sequence[models.Alert]
) -> list[tuple[models.Alert, dict[str, Any]]]:
    """Each with the numbers of the last bucket judged; those of its beginning where the slice is judged no more."""
    keys = [alert.slice_key for alert in alerts]
    statement = sa.select(models.AlertState.slice_key, models.AlertState.evidence, models.AlertState.reason).where(
        models.AlertState.rule_id == rule.id, models.AlertState.slice_key.in_(keys)
    )
    known = {
        key: evidence | {"reason": reason}
        for key, evidence, reason in session.execute(statement)
        if "window_end" in evidence
    }
    return [(alert, known.get(alert.slice_key) or dict(alert.evidence)) for alert in alerts]
