"""Alert rules in plain words: the list, and one form in minutes and percent that keeps what was typed."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import fastapi
import sqlalchemy as sa
from fastapi import Depends
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, alert_backtest, alert_edits, alert_rules, errors, models
from cmerwatch.alert_backtest import Backtest
from cmerwatch.alert_rules import RuleFields
from cmerwatch.shapes import DIMENSIONS
from cmerwatch_web.console import auth, pages, settings, views

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/alerts/rules"
KINDS = {
    "baseline": "a rate against what is usual",
    "threshold": "a rate against a fixed line",
    "no_data": "silence, or outputs that nobody checks",
}
METRICS = {
    "cmer": "CMER: sure, and poorly supported by the picture",
    "uer": "UER: poorly supported by the picture, sure or not",
}
SCOPES = {"project": "the whole project"} | {
    name: f"each {views.NAMES[name].lower()}" for name in alert_rules.SCOPES if name != "project"
}
DONE = {
    "created": "The rule is saved. It is judged within a quarter of a minute.",
    "changed": "The rule is changed. If it judges otherwise now, what it fired on was closed and is judged anew.",
    "deleted": "The rule is deleted, and what fired under it is closed. Its history stays.",
    "on": "The rule is on.",
    "off": "The rule is off, and what fired under it is closed.",
}

# What the form asks for, and how a number of a rule becomes one of the form: name -> (field of the rule, factor).
NUMBERS = {
    "threshold_percent": ("threshold", 100.0),
    "multiple": ("multiple", 1.0),
    "window_minutes": ("window_seconds", 1 / 60),
    "for_minutes": ("for_seconds", 1 / 60),
    "keep_minutes": ("keep_firing_seconds", 1 / 60),
    "repeat_minutes": ("repeat_seconds", 1 / 60),
    "min_n": ("min_n", 1.0),
    "coverage_percent": ("min_coverage", 100.0),
}
_WHOLE = ("window_seconds", "for_seconds", "keep_firing_seconds", "repeat_seconds", "min_n")
_OPTIONAL = ("threshold", "multiple")

# A refusal by the core speaks of seconds and shares; here it has to speak of what was typed.
WORDS = {
    "threshold": "The line must be over 0 and up to 100 percent.",
    "multiple": "“Times the usual rate” must be over 1 and up to 100.",
    "window_seconds": "The window must be a multiple of 5 minutes, from 5 to 1440.",
    "for_seconds": "“Must hold for” is 0 to 1440 minutes.",
    "keep_firing_seconds": "“Ends after staying under for” is 0 to 1440 minutes.",
    "repeat_seconds": "“Say it again every” is 5 to 10080 minutes.",
    "min_n": "The least number of outputs is a whole number from 1 to 1000000.",
    "min_coverage": "The least coverage must be over 0 and up to 100 percent.",
    "name": f"The name needs 1 to {alert_rules.MAX_NAME} characters.",
    "scopes": "Choose at least one thing to watch.",
}

Alerting = Annotated[access.Principal, Depends(auth.allowed("alerts"))]
Fields = Annotated[dict[str, Any], Depends(settings.form_fields)]


pages.templates.env.globals["rule_words"] = alert_rules.condition


@dataclass(frozen=True, slots=True)
class Typed:
    """The form as it was typed: texts, and the lists of boxes."""

    texts: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    enabled: bool = True

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    @property
    def narrows(self) -> bool:
        return any(self.text(f"match_{name}") for name in DIMENSIONS)


@router.get(PATH)
def list_rules(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    return pages.render(
        request,
        "alert_rules.html",
        viewer=viewer,
        rules=alert_rules.find(session, viewer.project_id),
        open_by_rule=_firing(session, viewer.project_id),
        scopes=SCOPES,
        channels=_channels(session, viewer.project_id),
        done=settings.done(request, DONE),
    )


@router.get(PATH + "/new")
def show_new(request: Request, session: auth.Session, viewer: Alerting) -> Response:
    return _form(request, session, viewer, _typed(RuleFields("", "baseline", multiple=1.5)), None)


@router.get(PATH + "/{rule}")
def show_rule(request: Request, session: auth.Session, viewer: Alerting, rule: uuid.UUID) -> Response:
    found = alert_rules.get(session, viewer.project_id, rule)
    return _form(request, session, viewer, _typed(alert_rules.read(found)), found)


@router.post(PATH)
def create_rule(request: Request, session: auth.Session, viewer: Alerting, fields: Fields) -> Response:
    return _save(request, session, viewer, fields, None)


@router.post(PATH + "/{rule}")
def change_rule(request: Request, session: auth.Session, viewer: Alerting, rule: uuid.UUID, fields: Fields) -> Response:
    found = alert_rules.get(session, viewer.project_id, rule)
    return _save(request, session, viewer, fields, found)


def _save(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    fields: dict[str, Any],
    old: models.AlertRule | None,
) -> Response:
    typed, preview = _read(fields), None
    with settings.attempt(session) as problem:
        wanted = _wanted(typed, alert_rules.read(old) if old else None)
        if fields.get("do") == "preview":
            preview = alert_backtest.run(session, viewer.project_id, wanted)
        elif old is None:
            saved = alert_rules.create(session, viewer.project_id, wanted, viewer.actor)
            _note(session, viewer, "alert_rule.create", saved.id, name=saved.name)
        else:
            saved = alert_edits.change(session, viewer.project_id, old.id, wanted)
            _note(session, viewer, "alert_rule.change", saved.id, name=saved.name, version=saved.version)
    if problem or preview:
        if problem.status == errors.Invalid.status:  # a name that is taken is a Conflict, and says so itself
            problem.message = WORDS.get(problem.field, problem.message)
        return _form(request, session, viewer, typed, old, problem, preview)
    return settings.back(PATH, "changed" if old else "created")


@router.post(PATH + "/{rule}/switch")
def switch_rule(session: auth.Session, viewer: Alerting, rule: uuid.UUID, fields: Fields) -> Response:
    """On or off, as the button said: pressed twice it does the same."""
    turn = str(fields.get("turn"))
    if turn not in ("on", "off"):
        raise errors.Invalid("`turn` must be on or off.", field="turn")
    alert_rules.lock(session, viewer.project_id)  # before the rest of the rule is read: another may be changing it
    old = alert_rules.read(alert_rules.get(session, viewer.project_id, rule))
    alert_edits.change(session, viewer.project_id, rule, replace(old, is_enabled=turn == "on"))
    _note(session, viewer, "alert_rule.change", rule, enabled=turn == "on")
    return settings.back(PATH, turn)


@router.post(PATH + "/{rule}/delete")
def delete_rule(session: auth.Session, viewer: Alerting, rule: uuid.UUID) -> Response:
    alert_edits.delete(session, viewer.project_id, rule)
    _note(session, viewer, "alert_rule.delete", rule)
    return settings.back(PATH, "deleted")


def _form(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    typed: Typed,
    rule: models.AlertRule | None,
    problem: settings.Problem | None = None,
    preview: Backtest | None = None,
) -> Response:
    return pages.render(
        request,
        "alert_rule.html",
        problem.status if problem else 200,
        viewer=viewer,
        typed=typed,
        rule=rule,
        problem=problem,
        preview=preview,
        kinds=KINDS,
        metrics=METRICS,
        severities=alert_rules.SEVERITIES,
        scopes=SCOPES,
        dimensions=DIMENSIONS,
        channels=_channels(session, viewer.project_id),
    )


# Between the form and the rule


def _typed(fields: RuleFields) -> Typed:
    texts = {name: str(getattr(fields, name)) for name in ("name", "kind", "metric", "severity")}
    for name, (of, factor) in NUMBERS.items():
        value = getattr(fields, of)
        texts[name] = "" if value is None else f"{value * factor:.10g}"
    texts |= {f"match_{name}": fields.match.get(name, "") for name in DIMENSIONS}
    return Typed(texts, fields.scopes, tuple(str(one) for one in fields.channel_ids), fields.is_enabled)


def _read(fields: Mapping[str, Any]) -> Typed:
    names = ("name", "kind", "metric", "severity", *NUMBERS, *(f"match_{name}" for name in DIMENSIONS))
    texts = {name: pages.storable(str(fields.get(name, ""))[:2000]) for name in names}
    return Typed(
        texts,
        tuple(str(one) for one in fields.get("scope[]", ())),
        tuple(str(one) for one in fields.get("channel[]", ())),
        str(fields.get("enabled", "")) == "on",
    )


def _wanted(typed: Typed, old: RuleFields | None) -> RuleFields:
    """Raises Invalid naming the rule's field. A match on "has none" ('') has no way into the form and stays."""
    match = {name: "" for name, value in (old.match if old else {}).items() if not value}
    match |= {name: typed.text(f"match_{name}") for name in DIMENSIONS if typed.text(f"match_{name}")}
    numbers = {of: _number(typed.text(name), of, factor) for name, (of, factor) in NUMBERS.items()}
    kind = typed.text("kind")
    if kind == "no_data":
        numbers["threshold"] = None
    if kind != "baseline":
        numbers["multiple"] = None
    return RuleFields(
        name=typed.text("name"),
        kind=kind,
        metric=typed.text("metric"),
        severity=typed.text("severity"),
        scopes=typed.scopes,
        match=match,
        channel_ids=tuple(_channel_id(one) for one in typed.channels),
        is_enabled=typed.enabled,
        **numbers,
    )


def _number(text: str, of: str, factor: float) -> Any:
    """In the rule's unit; None for an empty optional one. Whole where the rule wants whole numbers."""
    text = text.strip().replace(",", ".").removesuffix("%").strip()
    if not text and of in _OPTIONAL:
        return None
    try:
        value = float(text) / factor
    except ValueError:
        raise errors.Invalid("not a number", field=of) from None
    if not math.isfinite(value) or abs(value) > 1e9:
        raise errors.Invalid("not a number", field=of)
    if of in _WHOLE:
        whole = round(value)
        if abs(whole - value) > 1e-6:
            raise errors.Invalid("not a whole number", field=of)
        return whole
    return round(value, 12)  # 15 percent is 0.15, not 0.15000000000000002


def _channel_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.Invalid("Choose the channels from the list.", field="channel_ids") from None


def _channels(session: orm.Session, project_id: uuid.UUID) -> dict[str, str]:
    """Name by id, of those that are not deleted."""
    statement = sa.select(models.Channel.id, models.Channel.name).where(
        models.Channel.project_id == project_id, models.Channel.deleted_at.is_(None)
    )
    return {str(row.id): row.name for row in session.execute(statement.order_by(models.Channel.name))}


def _firing(session: orm.Session, project_id: uuid.UUID) -> dict[uuid.UUID, int]:
    """Open episodes by rule."""
    statement = (
        sa.select(models.Alert.rule_id, sa.func.count())
        .where(models.Alert.project_id == project_id, models.Alert.resolved_at.is_(None))
        .group_by(models.Alert.rule_id)
    )
    return {rule_id: count for rule_id, count in session.execute(statement)}


def _note(session: orm.Session, viewer: access.Principal, action: str, rule: uuid.UUID, **details: Any) -> None:
    access.audit(session, viewer.actor, action, str(rule), viewer.project_id, **details)
