"""/v1/alert-rules, /v1/alerts and /v1/silences: what is watched, what fires, and what nobody is to be told of."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from cmerwatch import (
    access,
    alert_backtest,
    alert_edits,
    alert_rules,
    alert_views,
    blindness,
    deliveries,
    errors,
    models,
    silences,
)
from cmerwatch.alert_rules import RuleFields
from cmerwatch_web import deps
from cmerwatch_web.api import bodies, events, schemas, times

router = APIRouter(prefix="/v1", tags=["alerts"])

Body = Annotated[Any, Depends(bodies.value)]


class RuleBody(pydantic.BaseModel):
    """Times in seconds, shares in (0, 1]. What is left out keeps its default, or, in a change, what it was."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="body")

    name: str | None = None
    kind: str | None = None
    severity: str | None = None
    metric: str | None = None
    scopes: list[str] | None = None
    match: dict[str, str] | None = None
    threshold: float | None = None
    multiple: float | None = None
    window_seconds: int | None = None
    for_seconds: int | None = None
    keep_firing_seconds: int | None = None
    repeat_seconds: int | None = None
    min_n: int | None = None
    min_coverage: float | None = None
    channel_ids: list[str] | None = None
    enabled: bool | None = None

    def over(self, fields: dict[str, Any]) -> RuleFields:
        """These values over those; a threshold or multiple given as null is taken away."""
        given = self.model_dump(include=self.model_fields_set)
        if "enabled" in given:
            given["is_enabled"] = given.pop("enabled")
        if given.get("channel_ids") is not None:
            given["channel_ids"] = tuple(_uuid("channel_ids", one) for one in given["channel_ids"])
        if given.get("scopes") is not None:
            given["scopes"] = tuple(given["scopes"])
        for name, value in given.items():
            if value is None and name not in ("threshold", "multiple"):
                raise errors.Invalid(f"`{name}` is null; leave it out instead.", field=name)
        for name in ("name", "kind"):
            if name not in given and name not in fields:
                raise errors.Invalid(f"`{name}` is missing.", field=name)
        return RuleFields(**(fields | given))


class SilenceBody(pydantic.BaseModel):
    """`ends_at`, or `seconds` from now. Without a rule and a match it hushes the whole project."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="body")

    reason: str
    rule_id: str | None = None
    match: dict[str, str] | None = None
    starts_at: str | None = None
    ends_at: str | None = None
    seconds: int | None = pydantic.Field(None, ge=60, le=int(silences.LONGEST.total_seconds()))


def _of(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


def _uuid(field: str, text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.Invalid(f"`{field}` holds {text[:60]!r}, which is no id.", field=field) from None


# Rules


@router.get("/alert-rules")
def get_rules(principal: deps.MaySeeAlerts, session: deps.Session) -> JSONResponse:
    """All of them, oldest first; there are few."""
    return JSONResponse({"rows": [shown_rule(rule) for rule in alert_rules.find(session, principal.project_id)]})


@router.post("/alert-rules", openapi_extra=_of(RuleBody))
def post_rule(principal: deps.MayAlert, body: Body, session: deps.Session) -> JSONResponse:
    fields = schemas.read(RuleBody, body).over({})
    rule = alert_rules.create(session, principal.project_id, fields, principal.actor)
    session.refresh(rule)
    _note(session, principal, "alert_rule.create", rule.id, name=rule.name)
    return JSONResponse(shown_rule(rule), 201)


@router.post("/alert-rules/backtest", openapi_extra=_of(RuleBody))
def post_backtest(principal: deps.MaySeeAlerts, body: Body, session: deps.Session) -> JSONResponse:
    """When such a rule would have fired within the last seven days; nothing is saved."""
    blindness.require_previews(session, principal)
    found = alert_backtest.run(session, principal.project_id, schemas.read(RuleBody, body).over({}))
    episodes = [
        {
            "slice": one.slice,
            "fired_at": one.fired_at.isoformat(),
            "ended_at": one.ended_at.isoformat() if one.ended_at else None,
        }
        for one in found.episodes
    ]
    return JSONResponse(
        {
            "from": found.start.isoformat(),
            "to": found.end.isoformat(),
            "fired": len(episodes),
            "episodes": episodes,
            "slices": found.slices,
            "slices_left_out": found.left_out,
        }
    )


@router.get("/alert-rules/{rule}")
def get_rule(rule: uuid.UUID, principal: deps.MaySeeAlerts, session: deps.Session) -> JSONResponse:
    return JSONResponse(shown_rule(alert_rules.get(session, principal.project_id, rule)))


@router.patch("/alert-rules/{rule}", openapi_extra=_of(RuleBody))
def patch_rule(rule: uuid.UUID, principal: deps.MayAlert, body: Body, session: deps.Session) -> JSONResponse:
    """An edit of what is judged ends what fires under the rule, and says so to whoever was told."""
    sent = schemas.read(RuleBody, body)
    alert_rules.lock(session, principal.project_id)  # before what is not sent is read: another may be changing it
    old = alert_rules.read(alert_rules.get(session, principal.project_id, rule))
    fields = sent.over({name: getattr(old, name) for name in RuleFields.__dataclass_fields__})
    changed = alert_edits.change(session, principal.project_id, rule, fields)
    _note(session, principal, "alert_rule.change", rule, name=changed.name, version=changed.version)
    return JSONResponse(shown_rule(changed))


@router.delete("/alert-rules/{rule}")
def delete_rule(rule: uuid.UUID, principal: deps.MayAlert, session: deps.Session) -> Response:
    """What fires under it ends, with a message that says why."""
    alert_edits.delete(session, principal.project_id, rule)
    _note(session, principal, "alert_rule.delete", rule)
    return Response(status_code=204)


def shown_rule(rule: models.AlertRule) -> dict[str, Any]:
    fields = alert_rules.read(rule)
    values = {name: getattr(fields, name) for name in RuleFields.__dataclass_fields__ if name != "is_enabled"}
    return {
        "id": str(rule.id),
        **values,
        "scopes": list(fields.scopes),
        "channel_ids": [str(one) for one in fields.channel_ids],
        "enabled": rule.is_enabled,
        "version": rule.version,
        "condition": alert_rules.condition(rule),
        "created_by": rule.created_by,
        "created_at": rule.created_at.isoformat(),
        "updated_at": rule.updated_at.isoformat(),
    }


# Alerts


@router.get("/alerts")
def get_alerts(
    request: Request,
    principal: deps.MaySeeAlerts,
    session: deps.Session,
    state: str | None = None,
    group: uuid.UUID | None = None,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JSONResponse:
    """Episodes, newest first: firing, recovering, resolved. `state` may also be pending, no_data, insufficient or ok,
    which lists the slices that stand so. `group`: only the alerts of that incident."""
    events.require_known(request, ("state", "group", "cursor", "limit"))
    page = alert_views.find(session, principal.project_id, state, cursor, limit, group)
    rows = [shown_alert(row, principal.project_slug) for row in page.rows]
    return JSONResponse({"rows": rows, "next_cursor": page.next_cursor})


@router.get("/alerts/{alert}")
def get_alert(alert: uuid.UUID, principal: deps.MaySeeAlerts, session: deps.Session) -> JSONResponse:
    """One episode, with its history."""
    row = alert_views.get(session, principal.project_id, alert)
    history = alert_views.transitions(session, row.alert) if row.alert else []
    return JSONResponse({**shown_alert(row, principal.project_slug), "history": [_transition(one) for one in history]})


NUMBERS = ("value", "low", "high", "n", "coverage", "baseline", "baseline_of", "line", "window_start", "window_end")


def shown_alert(row: alert_views.Row, project: str) -> dict[str, Any]:
    notice = row.notice(project)
    return {
        "id": str(row.alert.id) if row.alert else None,
        "group": str(row.group_id) if row.group_id else None,
        "leads": row.leads,
        "state": row.state,
        "rule": row.alert.rule_name if row.alert else row.rule.name,
        "rule_id": str(row.rule.id),
        "kind": row.rule.kind,
        "metric": row.rule.metric,
        "condition": alert_rules.condition(row.rule),
        "slice": row.slice,
        "since": row.since.isoformat(),
        "resolved_at": row.alert.resolved_at.isoformat() if row.alert and row.alert.resolved_at else None,
        "severity": row.severity,
        "reason": row.reason,
        **{name: row.evidence.get(name) for name in NUMBERS},
        "worst": [dict(zip(("dimension", "value", "rate", "n"), one, strict=True)) for one in row.worst],
        "changes": row.changes,
        "silenced_until": row.silence.ends_at.isoformat() if row.silence else None,
        "link": notice.link if notice else None,
        "events_link": notice.events_link if notice else None,
        "deliveries": [_message(one) for one in row.messages],
    }


def _message(message: alert_views.Message) -> dict[str, Any]:
    delivery = message.delivery
    return {
        "id": str(delivery.id),
        "channel": message.channel,
        "kind": delivery.kind,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "error": delivery.last_error,
        "delivered_at": delivery.delivered_at.isoformat() if delivery.delivered_at else None,
    }


@router.get("/deliveries")
def get_deliveries(
    request: Request,
    principal: deps.MaySeeAlerts,
    session: deps.Session,
    state: str | None = None,
    cursor: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JSONResponse:
    """Messages to channels, newest first, with what became of each: pending, delivered, dead or superseded."""
    events.require_known(request, ("state", "cursor", "limit"))
    found = deliveries.recent(session, principal.project_id, limit + 1, state=state, before=cursor)
    rows = [_delivery(delivery, channel) for delivery, channel in found[:limit]]
    return JSONResponse({"rows": rows, "next_cursor": rows[-1]["id"] if len(found) > limit else None})


def _delivery(delivery: models.Delivery, channel: str) -> dict[str, Any]:
    return {
        "id": str(delivery.id),
        "channel": channel,
        "kind": delivery.kind,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "error": delivery.last_error,
        "group": str(delivery.alert_id) if delivery.alert_id else None,
        "rule": delivery.notice.get("rule"),
        "slice": delivery.notice.get("slice"),
        "slices": delivery.notice.get("slices", 1),
        "created_at": delivery.created_at.isoformat(),
        "delivered_at": delivery.delivered_at.isoformat() if delivery.delivered_at else None,
    }


def _transition(one: models.AlertTransition) -> dict[str, Any]:
    return {
        "from": one.from_state,
        "to": one.to_state,
        "bucket": one.bucket.isoformat(),
        "reason": one.reason,
        **{name: one.evidence.get(name) for name in NUMBERS[:8]},
        "silenced_by": one.evidence.get("silenced_by"),
    }


# Silences


@router.get("/silences")
def get_silences(principal: deps.MaySeeAlerts, session: deps.Session) -> JSONResponse:
    """Those that last, those to come, and what ended within a week."""
    return JSONResponse({"rows": [shown_silence(one) for one in silences.find(session, principal.project_id)]})


@router.post("/silences", openapi_extra=_of(SilenceBody))
def post_silence(principal: deps.MaySilence, body: Body, session: deps.Session) -> JSONResponse:
    sent = schemas.read(SilenceBody, body)
    if (sent.ends_at is None) == (sent.seconds is None):
        raise errors.Invalid("Give either `ends_at` or `seconds`.", field="ends_at")
    starts_at = times.moment(sent.starts_at, "starts_at") or dt.datetime.now(dt.UTC)
    ends_at = times.moment(sent.ends_at, "ends_at") or starts_at + dt.timedelta(seconds=sent.seconds or 0)
    made = silences.create(
        session,
        principal.project_id,
        created_by=principal.actor,
        reason=sent.reason,
        starts_at=starts_at,
        ends_at=ends_at,
        rule_id=_uuid("rule_id", sent.rule_id) if sent.rule_id is not None else None,
        match=sent.match,
    )
    session.refresh(made)
    _note(session, principal, "silence.create", made.id, ends_at=made.ends_at.isoformat())
    return JSONResponse(shown_silence(made), 201)


@router.delete("/silences/{silence}")
def delete_silence(silence: uuid.UUID, principal: deps.MaySilence, session: deps.Session) -> JSONResponse:
    """Ends it now; it stays in the list for a week."""
    ended = silences.end(session, principal.project_id, silence)
    _note(session, principal, "silence.end", silence)
    return JSONResponse(shown_silence(ended))


def shown_silence(silence: models.Silence) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    return {
        "id": str(silence.id),
        "rule_id": str(silence.rule_id) if silence.rule_id else None,
        "match": silence.match,
        "starts_at": silence.starts_at.isoformat(),
        "ends_at": silence.ends_at.isoformat(),
        "lasts": silence.starts_at <= now < silence.ends_at,
        "reason": silence.reason,
        "created_by": silence.created_by,
    }


def _note(session: Any, principal: access.Principal, action: str, target: uuid.UUID, **details: Any) -> None:
    access.audit(session, principal.actor, action, str(target), principal.project_id, **details)
