"""Episodes and their messages: opened and closed with the transition, told to the channels in the same transaction."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_notices, alert_rules, ids, models, silences

OWED = "resolved_untold"  # in an ended episode's evidence: what its end would have said but for a silence


def open_one(
    session: orm.Session, rule: models.AlertRule, slice_key: str, of: dict[str, str], at: dt.datetime, evidence: Any
) -> models.Alert:
    """A new episode, as its rule is now. The unique index on open ones refuses a second for the same slice."""
    alert = models.Alert(
        id=ids.uuid7(),
        project_id=rule.project_id,
        rule_id=rule.id,
        rule_name=rule.name,
        rule_version=rule.version,
        severity=rule.severity,
        slice_key=slice_key,
        slice=of,
        fired_at=at,
        resolved_at=None,
        last_told_at=None,
        evidence=evidence,
    )
    session.add(alert)
    session.flush()
    return alert


def tell(
    session: orm.Session,
    alert: models.Alert,
    rule: models.AlertRule,
    now: dt.datetime,
    evidence: dict[str, Any],
    quiet: Sequence[models.Silence],
    transition: models.AlertTransition | None = None,
) -> int:
    """Write the message that it fires to every channel of the rule; returns to how many.

    Nothing while a silence covers it, which the transition notes; `last_told_at` then stays as it was, so that the
    end of the silence finds it due. A channel that has not heard of this episode gets `firing`, the others `repeat`.
    A channel that was told of a more severe alert of the same slice is spared this one: it is the same trouble.
    """
    silence = silences.covering(quiet, alert.rule_id, alert.slice)
    if silence is not None:
        if transition is not None:
            transition.evidence = transition.evidence | {"silenced_by": silence.created_by}
        return 0
    heard, spared = _channels_that_heard(session, alert), _channels_told_worse(session, alert)
    told = 0
    for channel in channels(session, rule):
        if channel.id in spared:
            continue
        kind = "repeat" if channel.id in heard else "firing"
        _write(session, alert, rule, channel.id, kind, evidence, transition)
        told += 1
    if told:
        alert.last_told_at = now
    return told


def tell_newcomers(
    session: orm.Session,
    alert: models.Alert,
    rule: models.AlertRule,
    evidence: Callable[[], dict[str, Any]],
    quiet: Sequence[models.Silence],
) -> int:
    """`firing` to the rule's channels that were never written to about it, such as one made since; returns how many.

    Without this a new channel would hear at once of a warning that the others were spared, and of the critical alert
    only at its next repetition. One whose message died is no newcomer: it was tried.
    """
    if silences.covering(quiet, alert.rule_id, alert.slice) is not None:
        return 0
    statement = sa.select(models.Delivery.channel_id).where(models.Delivery.alert_id == alert.id)
    addressed = set(session.scalars(statement)) | _channels_told_worse(session, alert)
    found = [channel for channel in channels(session, rule) if channel.id not in addressed]
    for channel in found:
        _write(session, alert, rule, channel.id, "firing", evidence(), None)
    return len(found)


def written_to(session: orm.Session, alerts: Sequence[models.Alert]) -> dict[uuid.UUID | None, set[uuid.UUID]]:
    """Of each alert the channels with any message about it."""
    statement = (
        sa.select(models.Delivery.alert_id, models.Delivery.channel_id)
        .where(models.Delivery.alert_id.in_([alert.id for alert in alerts]))
        .distinct()
    )
    found: dict[uuid.UUID | None, set[uuid.UUID]] = {}
    for alert_id, channel_id in session.execute(statement) if alerts else ():
        found.setdefault(alert_id, set()).add(channel_id)
    return found


def close(
    session: orm.Session,
    alert: models.Alert,
    rule: models.AlertRule,
    at: dt.datetime,
    evidence: dict[str, Any],
    quiet: Sequence[models.Silence],
    transition: models.AlertTransition | None = None,
) -> int:
    """End the episode and tell those, and only those, who were told that it fires; returns how many.

    A silence puts that off to its own end: an incident that was opened elsewhere must not stay open for ever.
    """
    alert.resolved_at = max(at, alert.fired_at)
    heard = _channels_that_heard(session, alert)
    silence = silences.covering(quiet, alert.rule_id, alert.slice)
    if silence is not None:
        if transition is not None:
            transition.evidence = transition.evidence | {"silenced_by": silence.created_by}
        if heard:
            alert.evidence = alert.evidence | {OWED: evidence}
        return 0
    for channel_id in sorted(heard):
        _write(session, alert, rule, channel_id, "resolved", evidence, transition)
    return len(heard)


def tell_owed(session: orm.Session, project_id: uuid.UUID, quiet: Sequence[models.Silence]) -> int:
    """The ends of episodes that a silence kept back, once it is over; returns how many messages."""
    ended = session.scalars(
        sa.select(models.Alert).where(
            models.Alert.project_id == project_id,
            models.Alert.resolved_at.is_not(None),
            models.Alert.evidence.has_key(OWED),
        )
    ).all()
    told, rules = 0, rules_of(session, ended)
    for alert in ended:
        if silences.covering(quiet, alert.rule_id, alert.slice) is None:
            evidence = alert.evidence[OWED]
            alert.evidence = {name: value for name, value in alert.evidence.items() if name != OWED}
            for channel_id in sorted(_channels_that_heard(session, alert)):
                _write(session, alert, rules[alert.rule_id], channel_id, "resolved", evidence, None)
                told += 1
    return told


def channels(session: orm.Session, rule: models.AlertRule) -> list[models.Channel]:
    """The live channels of a rule, those whose least severity it reaches."""
    statement = sa.select(models.Channel).where(
        models.Channel.project_id == rule.project_id,
        models.Channel.deleted_at.is_(None),
        models.Channel.disabled_at.is_(None),
    )
    if rule.channel_ids:
        statement = statement.where(models.Channel.id.in_(rule.channel_ids))
    rank = alert_rules.SEVERITIES.index
    found = session.scalars(statement.order_by(models.Channel.id))
    return [channel for channel in found if rank(rule.severity) >= rank(channel.min_severity)]


def _channels_that_heard(session: orm.Session, alert: models.Alert) -> set[uuid.UUID]:
    """Those with a message that it fires, sent or still to be sent; a dead one told nobody."""
    statement = (
        sa.select(models.Delivery.channel_id)
        .join(models.Channel, models.Channel.id == models.Delivery.channel_id)
        .where(
            models.Delivery.alert_id == alert.id,
            models.Delivery.kind.in_(("firing", "repeat")),
            models.Delivery.state != "dead",
            models.Channel.deleted_at.is_(None),
        )
    )
    return set(session.scalars(statement))


def _channels_told_worse(session: orm.Session, alert: models.Alert) -> set[uuid.UUID]:
    """Those that know of an open episode of this slice under a more severe rule of the same metric."""
    worse = alert_rules.SEVERITIES[alert_rules.SEVERITIES.index(alert.severity) + 1 :]
    other, own = orm.aliased(models.AlertRule), orm.aliased(models.AlertRule)
    episodes = (
        sa.select(models.Alert)
        .join(other, other.id == models.Alert.rule_id)
        .join(own, own.id == alert.rule_id)
        .where(
            models.Alert.project_id == alert.project_id,
            models.Alert.slice_key == alert.slice_key,
            models.Alert.resolved_at.is_(None),
            models.Alert.severity.in_(worse),
            other.metric == own.metric,
            (other.kind == "no_data") == (own.kind == "no_data"),
        )
    )
    found: set[uuid.UUID] = set()
    for episode in session.scalars(episodes) if worse else ():
        found |= _channels_that_heard(session, episode)
    return found


def _write(
    session: orm.Session,
    alert: models.Alert,
    rule: models.AlertRule,
    channel_id: uuid.UUID,
    kind: str,
    evidence: dict[str, Any],
    transition: models.AlertTransition | None,
) -> None:
    project = session.get_one(models.Project, alert.project_id)
    notice = alert_notices.make(alert, rule, project.slug, kind, evidence)
    session.add(
        models.Delivery(
            id=ids.uuid7(),
            project_id=alert.project_id,
            channel_id=channel_id,
            alert_id=alert.id,
            transition_id=transition.id if transition else None,
            kind=kind,
            notice=dataclasses.asdict(notice),
        )
    )
    session.flush()


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
    """One line of history."""
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
    session.flush()
    return transition


def still_open(session: orm.Session, project_id: uuid.UUID) -> list[models.Alert]:
    """The most severe first, so that a channel hears of those before it is spared the others."""
    found = session.scalars(
        sa.select(models.Alert)
        .where(models.Alert.project_id == project_id, models.Alert.resolved_at.is_(None))
        .order_by(models.Alert.id)
    )
    return sorted(found, key=lambda alert: -alert_rules.SEVERITIES.index(alert.severity))


def rules_of(session: orm.Session, alerts: Iterable[models.Alert]) -> dict[uuid.UUID, models.AlertRule]:
    wanted = {alert.rule_id for alert in alerts}
    rules = session.scalars(sa.select(models.AlertRule).where(models.AlertRule.id.in_(wanted)))
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
