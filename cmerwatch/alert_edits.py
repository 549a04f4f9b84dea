"""Changing rules while they fire: what an edit or a deletion ends is closed, told and kept in the history."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_episodes, alert_rules, models
from cmerwatch.alert_messages import Messages
from cmerwatch.alert_rules import RuleFields


def change(session: orm.Session, project_id: uuid.UUID, rule_id: uuid.UUID, fields: RuleFields) -> models.AlertRule:
    """Save an edit. One that judges otherwise ends what fires, says so, and begins anew: the next tick may fire again
    under the new line. Raises NotFound, Invalid, and Conflict for a name that is taken."""
    alert_rules.lock(session, project_id)
    rule = alert_rules.get(session, project_id, rule_id)
    old, fields = alert_rules.read(rule), alert_rules.checked(fields)
    alert_rules.require_channels(session, project_id, fields.channel_ids)
    if fields == old:
        return rule
    if fields.name.casefold() != old.name.casefold():
        alert_rules.require_free_name(session, project_id, fields.name)
    if alert_rules.judges_otherwise(old, fields):
        _begin_anew(session, rule, "the rule was changed" if fields.is_enabled else "the rule was switched off")
    alert_rules.write(rule, fields)
    rule.version += 1
    rule.updated_at = sa.func.now()
    session.flush()
    session.refresh(rule)
    return rule


def delete(session: orm.Session, project_id: uuid.UUID, rule_id: uuid.UUID) -> None:
    """Its episodes end with a message that says why, and stay in the history. Raises NotFound."""
    alert_rules.lock(session, project_id)
    rule = alert_rules.get(session, project_id, rule_id)
    _begin_anew(session, rule, "the rule was deleted")
    rule.deleted_at = sa.func.now()
    session.flush()


def _begin_anew(session: orm.Session, rule: models.AlertRule, why: str) -> None:
    reason = f"closed because {why}; it was not seen to recover"
    now = alert_episodes.db_now(session)
    messages = Messages(session, rule.project_id, now)
    last: dict[uuid.UUID, models.AlertTransition] = {}
    for state in alert_episodes.states(session, rule):
        alert = session.get(models.Alert, state.alert_id) if state.alert_id else None
        if alert is not None:
            evidence = state.evidence | {"reason": reason}
            last[alert_episodes.group_of(alert)] = alert_episodes.note(
                session, state, state.state, "ok", state.evaluated_bucket, alert, evidence, reason
            )
            alert.resolved_at = max(now, alert.fired_at)
    for group_id, transition in last.items():
        messages.close(messages.groups[group_id], transition, reason)
    session.flush()
    session.execute(sa.delete(models.AlertState).where(models.AlertState.rule_id == rule.id))
    session.expire_all()
