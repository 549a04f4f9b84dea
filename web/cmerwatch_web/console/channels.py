"""Settings, channels: where alerts' messages go, how each of them fares, and a button that tries one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any

import fastapi
from fastapi import Depends, Form
from sqlalchemy import orm
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cmerwatch import access, channels, db, deliveries, errors, models, notify
from cmerwatch_web.api import channels as api
from cmerwatch_web.console import auth, pages, settings
from cmerwatch_web.console.settings import Problem

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/channels"
DONE = {
    "saved": "The channel is changed.",
    "enabled": "The channel is on again. Messages that waited go out now, of each alert the newest.",
    "disabled": "The channel is off. Alerts go on without it.",
    "deleted": "The channel is deleted, with its address and keys.",
}
SEVERITIES = {"info": "everything", "warning": "warnings and critical", "critical": "critical only"}

# What each kind asks for: name, label, what it is, whether it is needed.
FIELDS: dict[str, tuple[tuple[str, str, str, bool], ...]] = {
    "slack": (("url", "Webhook URL", "of an incoming webhook, https://hooks.slack.com/services/…", True),),
    "pagerduty": (
        ("routing_key", "Integration key", "32 characters, of an Events API v2 integration", True),
        ("url", "Events URL", "only for another region, such as https://events.eu.pagerduty.com/v2/enqueue", False),
    ),
    "webhook": (
        ("url", "URL", "of your own receiver; messages are signed as Standard Webhooks 1.0", True),
        ("secret", "Signing secret", "leave empty and one is made; it is shown once", False),
    ),
}


def labels(kind: str) -> dict[str, str]:
    """What its form calls each field."""
    return {"name": "Name", "min_severity": "Gets"} | {name: label for name, label, *_ in FIELDS.get(kind, ())}


INTROS = {
    "slack": "Posts a message with the numbers and links.",
    "pagerduty": "Opens one incident for the alerts that belong together, and resolves it with the last of them.",
    "webhook": "Posts signed JSON to an address of yours.",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a form asked for, to show it again when it is refused: never a secret."""

    kind: str = ""
    name: str = ""
    min_severity: str = "info"
    values: dict[str, str] = field(default_factory=dict)


Alerting = Annotated[access.Principal, Depends(auth.allowed("alerts"))]
Text = Annotated[str, Form(max_length=4000)]


def may_alert(request: Request) -> access.Principal:
    """For a route that waits: who is looking, by a transaction of its own that is over before the waiting begins."""
    with db.transaction() as session:
        viewer = auth.signed_in(request, session)
        access.authorize(viewer, "alerts")
        return viewer


@router.get(PATH)
def show_channels(request: Request, session: auth.Session, viewer: Alerting, test: str = "") -> Response:
    return _page(request, session, viewer, tested=_tested(session, viewer, test))


@router.post(PATH)
async def create_channel(request: Request, viewer: Annotated[access.Principal, Depends(may_alert)]) -> Response:
    """Answers with a webhook's secret, which no other page and no reload shows again."""
    form = await settings.form_fields(request)
    return await run_in_threadpool(_create, request, viewer, form)


def _create(request: Request, viewer: access.Principal, form: dict[str, Any]) -> Response:
    kind = str(form.get("kind", ""))
    names = [name for name, *_ in FIELDS.get(kind, ())]
    values = {name: pages.storable(str(form[name])) for name in names if form.get(name)}
    shown = {name: value for name, value in values.items() if name not in ("secret", "routing_key")}
    wish = Wish(kind, pages.storable(str(form.get("name", ""))), str(form.get("min_severity", "info")), shown)
    with settings.attempt() as problem:
        given = channels.looked_up(values, kind)
    with db.transaction() as session:
        if not problem:
            with settings.attempt(session) as problem:
                made = channels.create(session, viewer, kind, wish.name, given, wish.min_severity)
        request.state.session = session
        if problem:
            problem.name_as(labels(kind))
            return _page(request, session, viewer, wish, problem)
        session.refresh(made.channel)
        return _page(request, session, viewer, made=made)


@router.post(PATH + "/{channel}")
def change_channel(
    request: Request,
    viewer: Annotated[access.Principal, Depends(may_alert)],
    channel: uuid.UUID,
    name: Text = "",
    min_severity: Text = "",
    url: Text = "",
    routing_key: Text = "",
    secret: Text = "",
) -> Response:
    """Empty secret fields keep what is there."""
    entered = {"url": url, "routing_key": routing_key, "secret": secret}
    config = {key: pages.storable(value.strip()) for key, value in entered.items() if value.strip()}
    with settings.attempt() as problem:
        given = channels.looked_up(config)
    with db.transaction() as session:
        request.state.session = session
        kind = channels.get(session, viewer.project_id, channel).kind
        if not problem:
            with settings.attempt(session) as problem:
                channels.update(
                    session, viewer, channel, name=pages.storable(name), min_severity=min_severity, given=given
                )
        if problem:
            problem.name_as(labels(kind))
            return _page(request, session, viewer, problem=problem, editing=channel)
    return settings.back(PATH, "saved")


@router.post(PATH + "/{channel}/test")
async def test_channel(channel: uuid.UUID, viewer: Annotated[access.Principal, Depends(may_alert)]) -> Response:
    """Waits for the worker, so that the page it leads to shows the result without a script."""
    delivery = await api.tested(viewer, channel)
    return RedirectResponse(f"{PATH}?test={delivery.id}", 303)


@router.post(PATH + "/{channel}/enable")
def enable_channel(session: auth.Session, viewer: Alerting, channel: uuid.UUID) -> Response:
    channels.enable(session, viewer, channel)
    return settings.back(PATH, "enabled")


@router.post(PATH + "/{channel}/disable")
def disable_channel(session: auth.Session, viewer: Alerting, channel: uuid.UUID) -> Response:
    channels.disable(session, viewer, channel)
    return settings.back(PATH, "disabled")


@router.post(PATH + "/{channel}/delete")
def delete_channel(session: auth.Session, viewer: Alerting, channel: uuid.UUID) -> Response:
    channels.delete(session, viewer, channel)
    return settings.back(PATH, "deleted")


@router.post(PATH + "/{channel}/rotate")
def rotate_secret(request: Request, session: auth.Session, viewer: Alerting, channel: uuid.UUID) -> Response:
    """Answers with the new secret, once."""
    with settings.attempt(session) as problem:
        made = channels.rotate_secret(session, viewer, channel)
    if problem:
        return _page(request, session, viewer, problem=problem, editing=channel)
    return _page(request, session, viewer, made=made, rotated=True)


def _tested(session: orm.Session, viewer: access.Principal, test: str) -> models.Delivery | None:
    try:
        return deliveries.get(session, viewer.project_id, uuid.UUID(test))
    except (ValueError, errors.NotFound):
        return None


def _page(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    wish: Wish | None = None,
    problem: Problem | None = None,
    made: channels.Made | None = None,
    rotated: bool = False,
    tested: models.Delivery | None = None,
    editing: uuid.UUID | None = None,
) -> Response:
    listed = channels.listed(session, viewer.project_id)
    return pages.render(
        request,
        "settings_channels.html",
        problem.status if problem else 200,
        viewer=viewer,
        channels=listed,
        recent=deliveries.recent(session, viewer.project_id, 30),
        kinds=notify.KINDS,
        fields=FIELDS,
        intros=INTROS,
        severities=SEVERITIES,
        wish=wish or Wish(),
        problem=problem,
        made=made,
        rotated=rotated,
        tested=tested,
        tested_kind=next((one.kind for one in listed if tested and one.id == tested.channel_id), None),
        editing=editing,
        wait_seconds=int(api.TEST_SECONDS),
        sink=request.app.state.settings.demo_sink,
        done=settings.done(request, DONE),
    )
