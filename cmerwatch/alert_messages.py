"""Who is told of a group of alerts, and when: one message where it opens, one where it changed, one with its end.

Written in the transaction of the transitions they tell of. A channel hears `firing` once, `repeat` while it goes on,
`update` when slices joined or recovered, and `resolved` when the last of them has, if it ever heard that it fires.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_episodes, alert_groups, alert_notices, alert_rules, ids, models, notify, silences
from cmerwatch.alert_episodes import OWED, Group

UPDATE_EVERY = dt.timedelta(minutes=5)

# Of an alert and its newest numbers: the worst within and what else moved. Asked only when somebody is told.
Look = Callable[[models.AlertRule, models.Alert, Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _News:
    """What of a group is not told yet: slices that fire, and slices that were said to and no longer do."""

    joined: int
    recovered: int


@dataclass(frozen=True, slots=True)
class _Severe:
    """Open groups more severe than some other, all of them and by each slice that is or will be told of."""

    groups: list[alert_groups.Open] = field(default_factory=list)
    by_slice: dict[str, list[alert_groups.Open]] = field(default_factory=dict)

    def add(self, group: Group, named: Sequence[models.Alert]) -> None:
        made = alert_groups.Open(group.id, group.leader.fired_at, [alert.slice for alert in named])
        self.groups.append(made)
        for alert in named:
            self.by_slice.setdefault(alert.slice_key, []).append(made)


class Messages:
    """The open groups of a project, and what each channel was written of them; read once for one evaluation."""

    def __init__(self, session: orm.Session, project_id: uuid.UUID, now: dt.datetime) -> None:
        self.session, self.project_id, self.now = session, project_id, now
        self.quiet = silences.lasting(session, project_id, now)
        self.groups = alert_episodes.open_groups(session, project_id)
        self.count = 0
        self._written = _written(session, list(self.groups))
        self._listeners: dict[uuid.UUID, list[models.Channel]] = {}
        self._severe: dict[tuple[str, str, bool], _Severe] = {}
        self._project = session.get_one(models.Project, project_id).slug

    def silence(self, alert: models.Alert) -> models.Silence | None:
        return silences.covering(self.quiet, alert.rule_id, alert.slice)

    def due(self) -> list[Group]:
        """The most severe first, so that a channel hears of those before it is spared the others."""
        return sorted(self.groups.values(), key=lambda group: -_rank(group.leader.severity))

    def tell(self, group: Group, look: Look, transition: models.AlertTransition | None = None) -> None:
        """Write to each channel what is due to it, if anything: only of slices that no silence covers.

        A channel made while it fires hears of it at once. One whose message died is tried again with the repetition.
        """
        loud = [alert for alert in group.firing if self.silence(alert) is None]
        if not loud:
            return
        news = _news(group, loud)
        kinds = {one.id: kind for one in self._channels(group.rule) if (kind := self._kind(group, one, news))}
        for spared in self._spared(group, loud, kinds):
            del kinds[spared]
        if not kinds:
            return
        evidence = self._evidence(group, loud, look) | dataclasses.asdict(news)
        for channel_id, kind in kinds.items():
            self._write(group.leader, group.rule, channel_id, kind, evidence, transition)
        self._mark(group, loud, kinds.values())
        self.session.flush()  # now: `sequence` is the order in which messages were decided

    def close(self, group: Group, transition: models.AlertTransition | None, reason: str) -> None:
        """The last slice has recovered: tell those, and only those, who were told that it fires.

        A silence of all its slices puts that off to its own end: an incident that was opened elsewhere must not stay
        open for ever.
        """
        self.groups.pop(group.id, None)
        heard = _live(self.session, [channel for channel, heard in self._written.get(group.id, {}).items() if heard])
        if not heard:
            return
        # A slice that recovered and fired again within the group is two of its alerts, but one thing to tell of.
        everyone = list(
            {alert.slice_key: alert for alert in alert_episodes.members(self.session, group.leader)}.values()
        )
        listed = alert_episodes.latest(self.session, group.rule, everyone)
        evidence = _leading(listed, group.leader) | {"reason": reason}
        evidence |= {name: group.leader.evidence.get(name, []) for name in ("worst", "changes")}
        evidence |= alert_notices.listed(group.rule, self._project, listed)
        if all(self.silence(alert) is not None for alert in everyone):
            group.leader.evidence = group.leader.evidence | {OWED: evidence}
            return
        for channel_id in heard:
            self._write(group.leader, group.rule, channel_id, "resolved", evidence, transition)
        self.session.flush()

    def tell_owed(self) -> None:
        """The ends of groups that a silence kept back, once it is over."""
        statement = sa.select(models.Alert).where(
            models.Alert.project_id == self.project_id,
            models.Alert.resolved_at.is_not(None),
            models.Alert.evidence.has_key(OWED),
        )
        ended = self.session.scalars(statement).all()
        rules = alert_episodes.rules_of(self.session, ended)
        for leader in ended:
            if all(self.silence(alert) is not None for alert in alert_episodes.members(self.session, leader)):
                continue
            evidence = leader.evidence[OWED]
            leader.evidence = {name: value for name, value in leader.evidence.items() if name != OWED}
            written = _written(self.session, [leader.id]).get(leader.id, {})
            for channel_id in _live(self.session, [channel for channel, heard in written.items() if heard]):
                self._write(leader, rules[leader.rule_id], channel_id, "resolved", evidence, None)

    def _kind(self, group: Group, channel: models.Channel, news: _News) -> str | None:
        """What this channel is to be sent of the group now; None is nothing."""
        told_at = group.leader.last_told_at
        is_due = told_at is None or self.now - told_at >= dt.timedelta(seconds=group.rule.repeat_seconds)
        heard = self._written.get(group.id, {}).get(channel.id)
        if not heard:
            return "firing" if heard is None or is_due else None
        if is_due:
            return "repeat"
        hears_it = news.joined or (news.recovered and notify.KINDS[channel.kind].hears_recoveries)
        return "update" if hears_it and told_at is not None and self.now - told_at >= UPDATE_EVERY else None

    def _mark(self, group: Group, loud: list[models.Alert], kinds: Iterable[str]) -> None:
        """What was told. A channel that only now joined was told alone: the others still wait for their update."""
        if group.leader.last_told_at is not None and not {"repeat", "update"} & set(kinds):
            return
        group.leader.last_told_at = self.now
        for alert in loud:
            alert.told_at = alert.told_at or self.now
        group.leader.told_slices = sum(_is_told(alert) for alert in group.firing)

    def _spared(self, group: Group, loud: list[models.Alert], channels: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """Those that know of all of it from more severe groups of the same metric: it is the same trouble."""
        severe = self._more_severe(group) if channels else _Severe()
        return [channel for channel in channels if all(self._knows(channel, alert, severe) for alert in loud)]

    def _knows(self, channel: uuid.UUID, alert: models.Alert, severe: _Severe) -> bool:
        likely = severe.by_slice.get(alert.slice_key, [])  # first: a thousand slices may be critical and warn at once
        return any(
            self._written.get(other.id, {}).get(channel) and alert_groups.covered(alert.slice, alert.fired_at, other)
            for other in itertools.chain(likely, severe.groups)
        )

    def _more_severe(self, group: Group) -> _Severe:
        """Looked up once: rules are judged the most severe first, so these change no more when a lesser one is told."""
        kind = (group.leader.severity, group.rule.metric, group.rule.kind == "no_data")
        if kind not in self._severe:
            self._severe[kind] = found = _Severe()
            for other in self.groups.values():
                if _is_worse(other, group):
                    # A slice that a silence has kept from everybody spares nobody the warning about it.
                    found.add(other, [one for one in other.firing if _is_told(one) or self.silence(one) is None])
        return self._severe[kind]

    def _channels(self, rule: models.AlertRule) -> list[models.Channel]:
        """The channels that may be told of it now, read once per rule: a thousand slices may fire at every tick."""
        if rule.id not in self._listeners:
            self._listeners[rule.id] = channels(self.session, rule)
        return self._listeners[rule.id]

    def _evidence(self, group: Group, loud: list[models.Alert], look: Look) -> dict[str, Any]:
        """Of the slice that leads, or the broadest that still fires, with the list of all."""
        listed = alert_episodes.latest(self.session, group.rule, loud)
        lead = group.leader if group.leader in loud else min(loud, key=lambda one: (len(one.slice), one.id))
        evidence = _leading(listed, lead)
        evidence |= {"slice": dict(lead.slice), **look(group.rule, lead, evidence)}
        if len(loud) > 1:
            evidence["worst"] = []  # the slices of the incident are
        return evidence | alert_notices.listed(group.rule, self._project, listed)

    def _write(
        self,
        leader: models.Alert,
        rule: models.AlertRule,
        channel_id: uuid.UUID,
        kind: str,
        evidence: dict[str, Any],
        transition: models.AlertTransition | None,
    ) -> None:
        notice = alert_notices.make(leader, rule, self._project, kind, evidence)
        self.session.add(
            models.Delivery(
                id=ids.uuid7(),
                project_id=leader.project_id,
                channel_id=channel_id,
                alert_id=leader.id,
                transition_id=transition.id if transition else None,
                kind=kind,
                notice=dataclasses.asdict(notice),
            )
        )
        self._written.setdefault(leader.id, {})[channel_id] = True
        self.count += 1


def channels(session: orm.Session, rule: models.AlertRule) -> list[models.Channel]:
    """The live channels of a rule, those whose least severity it reaches."""
    statement = sa.select(models.Channel).where(
        models.Channel.project_id == rule.project_id,
        models.Channel.deleted_at.is_(None),
        models.Channel.disabled_at.is_(None),
    )
    if rule.channel_ids:
        statement = statement.where(models.Channel.id.in_(rule.channel_ids))
    found = session.scalars(statement.order_by(models.Channel.id))
    return [channel for channel in found if _rank(rule.severity) >= _rank(channel.min_severity)]


def _rank(severity: str) -> int:
    return alert_rules.SEVERITIES.index(severity)


def _is_worse(other: Group, group: Group) -> bool:
    return (
        _rank(other.leader.severity) > _rank(group.leader.severity)
        and other.rule.metric == group.rule.metric
        and (other.rule.kind == "no_data") == (group.rule.kind == "no_data")
    )


def _is_told(alert: models.Alert) -> bool:
    return alert.told_at is not None or (alert.group_id is None and alert.last_told_at is not None)


def _news(group: Group, loud: list[models.Alert]) -> _News:
    still = sum(_is_told(alert) for alert in group.firing)
    return _News(sum(not _is_told(alert) for alert in loud), max(0, group.leader.told_slices - still))


def _leading(listed: list[tuple[models.Alert, dict[str, Any]]], lead: models.Alert) -> dict[str, Any]:
    [evidence] = [evidence for alert, evidence in listed if alert.slice_key == lead.slice_key]
    return dict(evidence)


def _written(session: orm.Session, group_ids: list[uuid.UUID]) -> dict[uuid.UUID, dict[uuid.UUID, bool]]:
    """By group and channel: whether it heard that it fires, or will; False where every such message is dead."""
    is_heard = models.Delivery.kind.in_(("firing", "repeat", "update")) & (models.Delivery.state != "dead")
    statement = (
        sa.select(models.Delivery.alert_id, models.Delivery.channel_id, sa.func.bool_or(is_heard))
        .where(models.Delivery.alert_id.in_(group_ids))
        .group_by(models.Delivery.alert_id, models.Delivery.channel_id)
    )
    found: dict[uuid.UUID, dict[uuid.UUID, bool]] = {}
    for group_id, channel_id, heard in session.execute(statement) if group_ids else ():
        if group_id is not None:
            found.setdefault(group_id, {})[channel_id] = heard
    return found


def _live(session: orm.Session, channel_ids: list[uuid.UUID]) -> list[uuid.UUID]:
    """Those of the channels that were not deleted."""
    statement = sa.select(models.Channel.id).where(
        models.Channel.id.in_(channel_ids), models.Channel.deleted_at.is_(None)
    )
    return list(session.scalars(statement.order_by(models.Channel.id))) if channel_ids else []
