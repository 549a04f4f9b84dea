"""What fires, what stands where, one episode whole, and the silences: for whoever is on call."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Annotated

import fastapi
import markupsafe
import sqlalchemy as sa
from fastapi import Depends, Form
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import (
    access,
    alert_episodes,
    alert_rules,
    alert_views,
    blindness,
    cmer_series,
    errors,
    intervals,
    models,
    silences,
)
from cmerwatch.alert_views import Message, Row
from cmerwatch.shapes import Notice
from cmerwatch_web import alert_charts, charts
from cmerwatch_web.console import auth, pages, settings
from cmerwatch_web.console.views import View

router = fastapi.APIRouter(route_class=pages.Page)

BEFORE, AFTER = dt.timedelta(hours=6), dt.timedelta(hours=1)  # of an episode, around it in its chart
LONGEST_CHART = dt.timedelta(hours=48)
ENDED_SHOWN = 20
CHARTED = 20  # cards with a chart: each reads its slice, and of a hundred that fire at once nobody looks at every one
MOST_STANDING = 200  # slices listed under one state; the API pages through all of them
DURATIONS = {"1h": "1 hour", "4h": "4 hours", "1d": "1 day", "1w": "1 week"}
_SECONDS = {"1h": 3600, "4h": 14_400, "1d": 86_400, "1w": 604_800}
LATE = dt.timedelta(seconds=60)  # without a tick; they come every 15 s

Silencing = Annotated[access.Principal, Depends(auth.allowed("silence"))]
Text = Annotated[str, Form(max_length=20_000)]


@dataclass(frozen=True, slots=True)
class Card:
    """One incident as a page shows it: the slice that leads, the words and links of its message, its chart, its last
    messages, and the other slices that fire with it."""

    row: Row
    notice: Notice | None
    chart: markupsafe.Markup | None
    told: list[Message]  # the newest to each channel
    view: View
    link: str
    events_link: str
    others: list[Row] = field(default_factory=list)
    also: list[list[Row]] = field(default_factory=list)  # less severe incidents that it covers


def firing(request: Request, viewer: access.Principal) -> str:
    """The number beside Alerts, as many as the page has cards; empty when nothing fires."""
    session: orm.Session = request.state.session
    return str(alert_views.firing(session, viewer.project_id) or "")


pages.templates.env.globals["alerts_firing"] = firing
pages.templates.env.filters["span"] = alert_rules.duration


@router.get("/alerts")
def list_alerts(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    ended = alert_views.find(session, viewer.project_id, "resolved", limit=ENDED_SHOWN)
    return pages.render(
        request,
        "alerts.html",
        viewer=viewer,
        cards=_cards(session, viewer),
        is_kept=blindness.keeps(session, viewer, None),
        pending=alert_views.standings(session, viewer.project_id, "pending"),
        missing=alert_views.standings(session, viewer.project_id, "no_data", limit=MOST_STANDING),
        few=alert_views.standings(session, viewer.project_id, "insufficient", limit=MOST_STANDING),
        not_compared=alert_views.not_compared(session, viewer.project_id),
        is_decided_again=cmer_series.redecided_under(session, viewer.project_id)
        == cmer_series.current_policy_version(session, viewer.project_id),
        ended=ended.rows,
        has_rules=any(rule.is_enabled for rule in alert_rules.find(session, viewer.project_id)),
        late=_late(session),
        has_channels=_has_channels(session, viewer.project_id),
        durations=DURATIONS,
        done=settings.done(request, DONE),
    )


@router.get("/alerts/ended")
def list_episodes(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    """Every ended episode, page by page."""
    page = alert_views.find(session, viewer.project_id, "resolved", request.query_params.get("cursor"), ENDED_SHOWN)
    return pages.render(
        request,
        "alert_episodes.html",
        viewer=viewer,
        rows=page.rows,
        older=page.next_cursor,
        is_first="cursor" not in request.query_params,
    )


def _cards(session: orm.Session, viewer: access.Principal) -> list[Card]:
    found: list[Card] = []
    for incident in alert_views.incidents(session, viewer.project_id):
        made = card(session, viewer, incident.rows[0], with_chart=len(found) < CHARTED)
        made.others.extend(incident.rows[1:])
        made.also.extend(incident.also)
        found.append(made)
    return found


def card(
    session: orm.Session,
    viewer: access.Principal,
    row: Row,
    height: int = 64,
    with_axes: bool = False,
    with_chart: bool = True,
) -> Card:
    view = _view(row)
    newest = {message.delivery.channel_id: message for message in row.messages}
    show = "flagged" if row.rule.metric == "cmer" and row.rule.kind != "no_data" else "all"
    return Card(
        row,
        row.notice(viewer.project_slug),
        _chart(session, viewer.project_id, row, height, with_axes) if with_chart else None,
        list(newest.values()),
        view,
        view.link(),
        view.link("/events", show=show),
    )


def _view(row: Row) -> View:
    """The window that its numbers are of, and its slice."""
    start, end = (dt.datetime.fromisoformat(row.evidence[name]) for name in ("window_start", "window_end"))
    return View(start, end, None, tuple(row.slice.items()))


def _chart(session: orm.Session, project_id: uuid.UUID, row: Row, height: int, with_axes: bool) -> markupsafe.Markup:
    """From some hours before it fired to an hour after its end; of a long episode the newest two days."""
    now = cmer_series.floor(dt.datetime.now(dt.UTC), 300)
    over = row.alert.resolved_at if row.alert else None
    end = min(now, cmer_series.floor(over, 300) + AFTER) if over else now
    start = max(row.since - BEFORE, end - LONGEST_CHART)
    window = dt.timedelta(seconds=row.rule.window_seconds)
    readings = _readings(session, project_id, row, start, end, window)
    line = row.evidence.get("line")
    said = f"{row.rule.metric.upper()} over {alert_rules.duration(row.rule.window_seconds)} windows"
    known = [one for one in readings if one.rate is not None]
    if known:
        said += f", last {charts.percent(known[-1].rate)} of {known[-1].n:,}"
    if line is not None:
        said += f"; the line is at {charts.percent(line)}"
    marks = [row.since] + ([over] if over else [])
    return alert_charts.draw(readings, line, row.rule.min_n, marks, said, height, with_axes)


def _readings(
    session: orm.Session, project_id: uuid.UUID, row: Row, start: dt.datetime, end: dt.datetime, window: dt.timedelta
) -> list[alert_charts.Reading]:
    rows = cmer_series.query(
        session,
        project_id,
        start - window,
        end,
        "5m",
        (),
        row.slice,
        policy_version=cmer_series.current_policy_version(session, project_id),
        histograms=False,
    )
    rates = [(one.start, one.cmer if row.rule.metric == "cmer" else one.uer) for one in rows]
    counts = [(at, rate.successes, rate.n) for at, rate in rates]
    return [
        alert_charts.Reading(at, n, hits / n if n else None, *intervals.wilson(hits, n))
        for at, hits, n in alert_charts.sliding(counts, start, end, window)
    ]


def _late(session: orm.Session) -> dt.datetime | None:
    """When rules were last evaluated, where that is too long ago; the beginning of time when never."""
    beat = session.scalar(sa.select(models.Heartbeat.at).where(models.Heartbeat.name == "alerts"))
    if beat is None:
        return dt.datetime.min.replace(tzinfo=dt.UTC)
    return beat if alert_episodes.db_now(session) - beat > LATE else None


def _has_channels(session: orm.Session, project_id: uuid.UUID) -> bool:
    live = sa.select(models.Channel.id).where(
        models.Channel.project_id == project_id,
        models.Channel.deleted_at.is_(None),
        models.Channel.disabled_at.is_(None),
    )
    return session.scalar(live.limit(1)) is not None


# Silences

DONE = {
    "silenced": "Silenced: nobody is told until the silence ends. States and history go on.",
    "ended": "The silence is over. What still fires is told at once.",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A silence as it was typed, to be shown again when it is refused."""

    rule: str = ""
    dimension: str = ""
    value: str = ""
    duration: str = "4h"
    until: str = ""
    reason: str = ""


@router.get("/alerts/silences")
def list_silences(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    return _silences(request, session, viewer, Wish())


def _silences(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    wish: Wish,
    problem: settings.Problem | None = None,
) -> Response:
    rules = alert_rules.find(session, viewer.project_id)
    return pages.render(
        request,
        "alert_silences.html",
        problem.status if problem else 200,
        viewer=viewer,
        silences=silences.find(session, viewer.project_id),
        rules=rules,
        rule_names={rule.id: rule.name for rule in rules},
        now=dt.datetime.now(dt.UTC),
        durations=DURATIONS,
        wish=wish,
        problem=problem,
        done=settings.done(request, DONE),
    )


@router.post("/alerts/silences")
def create_silence(
    request: Request,
    session: auth.Session,
    viewer: Silencing,
    rule: Text = "",
    dimension: Text = "",
    value: Text = "",
    duration: Text = "",
    until: Text = "",
    reason: Text = "",
) -> Response:
    wish = Wish(rule, dimension, pages.storable(value), duration, until, pages.storable(reason))
    with settings.attempt(session) as problem:
        made = silences.create(
            session,
            viewer.project_id,
            created_by=viewer.actor,
            reason=wish.reason,
            ends_at=_until(duration, until),
            rule_id=_rule_id(rule),
            match=_match(dimension, wish.value),
        )
        _note(session, viewer, "silence.create", made)
    if problem:
        if problem.field == "ends_at":
            problem.message = f"A silence ends in the future, at most {silences.LONGEST.days} days from now."
        problem.name_as({"until": "or until (UTC)", "reason": "Why", "match": "Only where"})
        return _silences(request, session, viewer, wish, problem)
    return settings.back("/alerts/silences", "silenced")


@router.post("/alerts/{alert}/silence")
def silence_alert(
    session: auth.Session,
    viewer: Silencing,
    alert: uuid.UUID,
    duration: Text = "",
    reason: Text = "",
    back: Text = "",
) -> Response:
    """This rule, for this slice and whatever lies within it, for so long."""
    row = alert_views.get(session, viewer.project_id, alert)
    if row.rule.deleted_at is not None:  # a silence without a rule would hush every other one
        raise errors.Conflict("The rule of this alert was deleted, so there is nothing left to silence.")
    made = silences.create(
        session,
        viewer.project_id,
        created_by=viewer.actor,
        reason=pages.storable(reason) or "silenced from the alert",
        ends_at=_until(duration, ""),
        rule_id=row.rule.id,
        match=row.slice,
    )
    _note(session, viewer, "silence.create", made)
    return settings.back("/alerts" if back == "list" else f"/alerts/{alert}", "silenced")


@router.post("/alerts/silences/{silence}/end")
def end_silence(session: auth.Session, viewer: Silencing, silence: uuid.UUID, back: Text = "") -> Response:
    ended = silences.end(session, viewer.project_id, silence)
    _note(session, viewer, "silence.end", ended)
    return settings.back("/alerts" if back == "list" else "/alerts/silences", "ended")


@router.get("/alerts/{alert}")
def show_alert(request: Request, session: auth.Session, viewer: auth.Viewer, alert: uuid.UUID) -> Response:
    row = alert_views.get(session, viewer.project_id, alert)
    assert row.alert is not None
    together = alert_views.find(session, viewer.project_id, group=row.group_id, limit=MOST_STANDING).rows
    return pages.render(
        request,
        "alert.html",
        viewer=viewer,
        card=card(session, viewer, row, height=180, with_axes=True),
        is_kept=blindness.keeps(session, viewer, None),
        history=alert_views.transitions(session, row.alert),
        together=sorted(together, key=alert_views.leading_first) if len(together) > 1 else [],
        durations=DURATIONS,
        done=settings.done(request, DONE),
    )


def _until(duration: str, until: str) -> dt.datetime:
    """A moment typed as the browser's field gives it (UTC, unless it names its zone) wins over a duration."""
    if until.strip():
        try:
            typed = dt.datetime.fromisoformat(until.strip())
            return typed.astimezone(dt.UTC) if typed.tzinfo else typed.replace(tzinfo=dt.UTC)
        except (ValueError, OverflowError):
            raise errors.Invalid("`until` must be a time such as 2026-11-24T09:00, in UTC.", field="until") from None
    if duration not in _SECONDS:
        raise errors.Invalid("Choose how long from the list, or give a time.", field="duration")
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=_SECONDS[duration])


def _match(dimension: str, value: str) -> dict[str, str]:
    """A value without its dimension must not silence everything, nor a dimension without a value nothing."""
    if value.strip() and not dimension:
        raise errors.Invalid(
            f"Choose what “{value[:60]}” is, or leave it empty to silence everything.", field="dimension"
        )
    if dimension and not value.strip():
        raise errors.Invalid("Enter the value to silence, or choose “anything”.", field="value")
    return {dimension: value} if dimension else {}


def _rule_id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        raise errors.Invalid("Choose the rule from the list.", field="rule") from None


def _note(session: orm.Session, viewer: access.Principal, action: str, silence: models.Silence) -> None:
    access.audit(session, viewer.actor, action, str(silence.id), viewer.project_id, ends_at=silence.ends_at.isoformat())
