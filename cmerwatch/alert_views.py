"""Reading alerts back: what fires now, what stands where, episodes with their messages, and one episode's history."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_episodes, alert_groups, alert_notices, alert_rules, errors, ids, models, silences
from cmerwatch.alert_states import OPEN
from cmerwatch.shapes import Notice

EPISODE_STATES = (*OPEN, "resolved")
STANDINGS = ("pending", "no_data", "insufficient", "ok")  # a rule stands so for a slice without an episode
STATES = (*EPISODE_STATES, *STANDINGS)
MOST_OPEN = 300  # alerts read of what fires: more than anybody looks at


@dataclass(frozen=True, slots=True)
class Message:
    """A delivery, to the channel as it is called now."""

    delivery: models.Delivery
    channel: str


@dataclass(frozen=True, slots=True)
class Row:
    """A rule's standing for a slice: of an episode, open or ended, or without one (`alert` is None).

    `evidence`: the newest numbers while it is open, those of its end or standing otherwise.
    """

    state: str
    rule: models.AlertRule
    slice: dict[str, str]
    slice_key: str
    since: dt.datetime
    reason: str
    evidence: dict[str, Any]
    alert: models.Alert | None = None
    messages: Sequence[Message] = ()
    silence: models.Silence | None = None

    @property
    def group_id(self) -> uuid.UUID | None:
        return alert_episodes.group_of(self.alert) if self.alert else None

    @property
    def leads(self) -> bool:
        """Whether it opened its group, so that the group's messages bear its id."""
        return self.alert is not None and self.group_id == self.alert.id

    @property
    def severity(self) -> str:
        return self.alert.severity if self.alert else self.rule.severity

    @property
    def worst(self) -> list[list[Any]]:
        return self.alert.evidence.get("worst", []) if self.alert else []

    @property
    def changes(self) -> list[str]:
        return self.alert.evidence.get("changes", []) if self.alert else []

    def notice(self, project: str) -> Notice | None:
        """The links and words that a message about it would carry; None without an episode."""
        if self.alert is None or "window_start" not in self.evidence:
            return None
        return alert_notices.make(self.alert, self.rule, project, self.state, self.evidence)


@dataclass(frozen=True, slots=True)
class Incident:
    """The open alerts of one group, the one that leads first, then the broadest. `also`: the alerts of each less severe
    incident of the same trouble."""

    rows: list[Row]
    group: alert_groups.Open
    also: list[list[Row]] = field(default_factory=list)

    def covers(self, rows: list[Row]) -> bool:
        """Whether those, of another group, are told by this one: what channels are spared of it, a page folds too."""
        own, other = self.rows[0], rows[0]
        if _rank(own.severity) <= _rank(other.severity) or own.rule.metric != other.rule.metric:
            return False
        if (own.rule.kind == "no_data") != (other.rule.kind == "no_data"):
            return False
        return all(alert_groups.covered(row.slice, row.since, self.group) for row in rows)


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Row]
    next_cursor: str | None


def firing(session: orm.Session, project_id: uuid.UUID) -> int:
    """How many incidents are open, those of the same trouble counted once: as many as the alerts page shows cards."""
    return len(_fold([_row(*one) for one in _open(session, project_id)]))


def find(
    session: orm.Session,
    project_id: uuid.UUID,
    state: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
    group: uuid.UUID | None = None,
) -> Page:
    """Episodes, the newest first, of one group where it is named; with one of STANDINGS, the slices that stand so.
    Raises Invalid."""
    if state is not None and state not in STATES:
        raise errors.Invalid(f"`state` must be one of {', '.join(STATES)}.", field="state")
    if state in STANDINGS:
        return _standing(session, project_id, [str(state)], cursor, limit)
    statement = _episodes(project_id).order_by(models.Alert.id.desc()).limit(limit + 1)
    if state == "resolved":
        statement = statement.where(models.Alert.resolved_at.is_not(None))
    elif state is not None:
        statement = statement.where(models.Alert.resolved_at.is_(None), models.AlertState.state == state)
    if group is not None:
        statement = statement.where(sa.or_(models.Alert.group_id == group, models.Alert.id == group))
    if cursor is not None:
        statement = statement.where(models.Alert.id < _uuid(cursor))
    found = session.execute(statement).all()
    rows = _rows(session, project_id, found[:limit])
    last = rows[-1].alert if len(found) > limit else None
    return Page(rows, str(last.id) if last else None)


def incidents(session: orm.Session, project_id: uuid.UUID) -> list[Incident]:
    """What fires: the most severe first, then the newest; a warning stands within the critical one that it repeats."""
    return _fold(_rows(session, project_id, _open(session, project_id)))


def _open(session: orm.Session, project_id: uuid.UUID) -> Sequence[Any]:
    """The newest of the open alerts."""
    statement = _episodes(project_id).where(models.Alert.resolved_at.is_(None)).order_by(models.Alert.id.desc())
    return session.execute(statement.limit(MOST_OPEN)).all()


def _fold(rows: list[Row]) -> list[Incident]:
    by_group: dict[uuid.UUID, list[Row]] = {}
    for row in rows:
        if row.group_id is not None:
            by_group.setdefault(row.group_id, []).append(row)
    groups = [(group, sorted(together, key=leading_first)) for group, together in by_group.items()]
    found: list[Incident] = []
    for group, together in sorted(groups, key=lambda one: -_rank(one[1][0].severity)):
        within = next((one for one in found if one.covers(together)), None)
        if within is None:
            opened = alert_groups.Open(group, together[0].since, [row.slice for row in together])
            found.append(Incident(together, opened))
        else:
            within.also.append(together)
    return found


def _rank(severity: str) -> int:
    return alert_rules.SEVERITIES.index(severity)


def leading_first(row: Row) -> tuple[bool, int, str]:
    """The order of an incident's slices: the one that leads, then the broadest."""
    return not row.leads, len(row.slice), row.slice_key


def standings(session: orm.Session, project_id: uuid.UUID, *states: str, limit: int = 200) -> list[Row]:
    """Slices without an episode that stand so."""
    return _standing(session, project_id, list(states), None, limit).rows


def not_compared(session: orm.Session, project_id: uuid.UUID) -> tuple[int, str]:
    """How many slices are judged without the baseline of their rule since the policy changed, and why; (0, "")."""
    said = models.AlertState.evidence["not_compared"].astext
    found = session.execute(
        sa.select(sa.func.count(sa.distinct(models.AlertState.slice_key)), sa.func.max(said))
        .join(models.AlertRule, models.AlertRule.id == models.AlertState.rule_id)
        .where(models.AlertState.project_id == project_id, said.is_not(None), models.AlertRule.is_enabled)
    ).one()
    return int(found[0]), str(found[1] or "")


def get(session: orm.Session, project_id: uuid.UUID, alert_id: uuid.UUID) -> Row:
    """One episode. Raises NotFound, for another project's alike."""
    found = session.execute(_episodes(project_id).where(models.Alert.id == alert_id)).all()
    if not found:
        raise errors.NotFound(f"There is no alert {alert_id} in this project.", id=str(alert_id))
    return _rows(session, project_id, found)[0]


def transitions(session: orm.Session, alert: models.Alert) -> list[models.AlertTransition]:
    """The history of an episode, and what led to it within the day before, oldest first."""
    statement = (
        sa.select(models.AlertTransition)
        .where(
            models.AlertTransition.rule_id == alert.rule_id,
            models.AlertTransition.slice_key == alert.slice_key,
            sa.or_(
                models.AlertTransition.alert_id == alert.id,
                sa.and_(
                    models.AlertTransition.alert_id.is_(None),
                    models.AlertTransition.bucket < alert.fired_at,
                    models.AlertTransition.bucket > alert.fired_at - dt.timedelta(days=1),
                ),
            ),
        )
        .order_by(models.AlertTransition.id)
    )
    return list(session.scalars(statement))


def _episodes(project_id: uuid.UUID) -> sa.Select[*tuple[Any, ...]]:
    is_its_own = sa.and_(
        models.AlertState.rule_id == models.Alert.rule_id,
        models.AlertState.slice_key == models.Alert.slice_key,
        models.AlertState.alert_id == models.Alert.id,
    )
    return (
        sa.select(models.Alert, models.AlertRule, models.AlertState)
        .join(models.AlertRule, models.AlertRule.id == models.Alert.rule_id)
        .outerjoin(models.AlertState, is_its_own)
        .where(models.Alert.project_id == project_id)
        .execution_options(populate_existing=True)
    )


def _standing(session: orm.Session, project_id: uuid.UUID, states: list[str], cursor: str | None, limit: int) -> Page:
    statement = (
        sa.select(models.AlertState, models.AlertRule)
        .join(models.AlertRule, models.AlertRule.id == models.AlertState.rule_id)
        .where(models.AlertState.project_id == project_id, models.AlertState.state.in_(states))
        .order_by(models.AlertState.rule_id, models.AlertState.slice_key)
        .limit(limit + 1)
        .execution_options(populate_existing=True)
    )
    if cursor is not None:
        rule, _, key = cursor.partition(" ")
        after = sa.tuple_(models.AlertState.rule_id, models.AlertState.slice_key)
        statement = statement.where(after > (_uuid(rule), key))
    found = session.execute(statement).all()
    rows = [
        Row(state.state, rule, state.slice, state.slice_key, state.since, state.reason, state.evidence)
        for state, rule in found[:limit]
    ]
    return Page(rows, f"{rows[-1].rule.id} {rows[-1].slice_key}" if len(found) > limit else None)


def _rows(session: orm.Session, project_id: uuid.UUID, found: Sequence[Any]) -> list[Row]:
    told = _messages(session, {alert_episodes.group_of(alert) for alert, _, _ in found})
    quiet = silences.lasting(session, project_id, dt.datetime.now(dt.UTC))
    return [
        _row(
            alert,
            rule,
            standing,
            _naming(alert, told.get(alert_episodes.group_of(alert), [])),
            silences.covering(quiet, alert.rule_id, alert.slice),
        )
        for alert, rule, standing in found
    ]


def _row(
    alert: models.Alert,
    rule: models.AlertRule,
    standing: models.AlertState | None,
    messages: Sequence[Message] = (),
    silence: models.Silence | None = None,
) -> Row:
    return Row(
        state="resolved" if alert.resolved_at else (standing.state if standing else "firing"),
        rule=rule,
        slice=alert.slice,
        slice_key=alert.slice_key,
        since=alert.fired_at,
        reason=standing.reason if standing else "",
        evidence=standing.evidence if standing else alert.evidence,
        alert=alert,
        messages=messages,
        silence=silence,
    )


def _naming(alert: models.Alert, messages: list[Message]) -> list[Message]:
    """Those of its group that name it: all where it leads; else from when it joined, once one has named it."""
    if alert.group_id in (None, alert.id):
        return messages
    began = ids.moment(alert.id)
    return [one for one in messages if ids.moment(one.delivery.id) >= began] if alert.told_at else []


def _messages(session: orm.Session, alert_ids: set[uuid.UUID]) -> dict[uuid.UUID, list[Message]]:
    """By the alert that leads the group, oldest first."""
    statement = (
        sa.select(models.Delivery, models.Channel.name)
        .join(models.Channel, models.Channel.id == models.Delivery.channel_id)
        .where(models.Delivery.alert_id.in_(alert_ids))
        .order_by(models.Delivery.sequence)
    )
    found: dict[uuid.UUID, list[Message]] = {}
    for delivery, name in session.execute(statement) if alert_ids else ():
        if delivery.alert_id is not None:
            found.setdefault(delivery.alert_id, []).append(Message(delivery, name))
    return found


def _uuid(cursor: str) -> uuid.UUID:
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise errors.Invalid("cursor is not one this API gave; use next_cursor as it came.", field="cursor") from None
