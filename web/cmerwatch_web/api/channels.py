"""/v1/channels: where alerts' messages go. A channel's configuration goes in and never comes out again."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from cmerwatch import access, channels, db, deliveries, models
from cmerwatch_web import deps
from cmerwatch_web.api import bodies, schemas

router = APIRouter(prefix="/v1/channels", tags=["channels"])

TEST_SECONDS = 15.0  # a worker looks every second, and a channel answers within seconds or is worth knowing about
LOOK_SECONDS = 0.2


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="body")

    def config(self) -> dict[str, str]:
        named = {name: getattr(self, name) for name in ("url", "routing_key", "secret")}
        return {name: value for name, value in named.items() if value is not None}


class NewChannel(_Body):
    """`url` for slack and webhook; `routing_key` for pagerduty, whose `url` is for other regions only. A webhook
    without a `secret` gets one."""

    kind: str
    name: str
    min_severity: str = "info"
    url: str | None = None
    routing_key: str | None = None
    secret: str | None = None


class Change(_Body):
    """What is given is changed."""

    name: str | None = None
    min_severity: str | None = None
    enabled: bool | None = None
    url: str | None = None
    routing_key: str | None = None
    secret: str | None = None


Body = Annotated[Any, Depends(bodies.value)]


def _of(model: type[_Body]) -> dict[str, Any]:
    """What the OpenAPI page says of a body that is read by hand."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.get("")
def get_channels(principal: deps.MayAlert, session: deps.Session) -> JSONResponse:
    return JSONResponse({"rows": [shown(channel) for channel in channels.listed(session, principal.project_id)]})


@router.post("", openapi_extra=_of(NewChannel))
def post_channel(principal: deps.MayAlert, body: Body, session: deps.Session) -> JSONResponse:
    """A webhook's answer carries the secret its receiver verifies with; no other answer ever does."""
    sent = schemas.read(NewChannel, body)
    given = channels.looked_up(sent.config(), sent.kind)  # while the session has not begun anything yet
    made = channels.create(session, principal, sent.kind, sent.name, given, sent.min_severity)
    session.refresh(made.channel)
    return JSONResponse({**shown(made.channel), **({"secret": made.secret} if made.secret else {})}, 201)


@router.get("/{channel}")
def get_channel(channel: uuid.UUID, principal: deps.MayAlert, session: deps.Session) -> JSONResponse:
    return JSONResponse(shown(channels.get(session, principal.project_id, channel)))


@router.patch("/{channel}", openapi_extra=_of(Change))
def patch_channel(channel: uuid.UUID, principal: deps.MayAlert, body: Body, session: deps.Session) -> JSONResponse:
    """A new address or key enables the channel again."""
    sent = schemas.read(Change, body)
    given = channels.looked_up(sent.config())  # while the session has not begun anything yet
    changed = channels.update(session, principal, channel, name=sent.name, min_severity=sent.min_severity, given=given)
    if sent.enabled is not None:
        changed = (channels.enable if sent.enabled else channels.disable)(session, principal, channel)
    return JSONResponse(shown(changed))


@router.delete("/{channel}")
def delete_channel(channel: uuid.UUID, principal: deps.MayAlert, session: deps.Session) -> Response:
    channels.delete(session, principal, channel)
    return Response(status_code=204)


@router.post("/{channel}/rotate-secret")
def post_rotate(channel: uuid.UUID, principal: deps.MayAlert, session: deps.Session) -> JSONResponse:
    """A webhook's new secret, shown this once; the one before signs beside it for 24 hours."""
    made = channels.rotate_secret(session, principal, channel)
    return JSONResponse({**shown(made.channel), "secret": made.secret})


@router.post("/{channel}/test")
async def post_test(channel: uuid.UUID, principal: deps.MayAlert) -> JSONResponse:
    """Sends one test message through a worker and waits up to 15 seconds for what became of it."""
    delivery = await tested(principal, channel)
    return JSONResponse(
        {
            "delivery": str(delivery.id),
            "state": delivery.state,
            "status": delivery.last_status,
            "error": delivery.last_error or (_NOBODY if delivery.state == "pending" else None),
        }
    )


_NOBODY = f"No worker took the test within {TEST_SECONDS:.0f} seconds; is `cmerwatch worker` running?"


async def tested(principal: access.Principal, channel_id: uuid.UUID) -> models.Delivery:
    """A test message and what became of it within TEST_SECONDS; still pending when no worker sent it."""
    delivery_id = await run_in_threadpool(_begin, principal, channel_id)
    deadline = time.monotonic() + TEST_SECONDS
    while True:
        delivery = await run_in_threadpool(_look, principal.project_id, delivery_id)
        if delivery.state != "pending" or time.monotonic() >= deadline:
            return delivery
        await asyncio.sleep(LOOK_SECONDS)


def _begin(principal: access.Principal, channel_id: uuid.UUID) -> uuid.UUID:
    # Committed before the waiting begins: the worker must see it.
    with db.transaction() as session:
        return channels.test(session, principal, channel_id).id


def _look(project_id: uuid.UUID, delivery_id: uuid.UUID) -> models.Delivery:
    with db.transaction() as session:
        return deliveries.get(session, project_id, delivery_id)


def shown(channel: models.Channel) -> dict[str, Any]:
    """`target` is the part of the configuration that is no secret."""
    times = {name: getattr(channel, name) for name in ("disabled_at", "last_ok_at", "last_error_at", "created_at")}
    return {
        "id": str(channel.id),
        "kind": channel.kind,
        "name": channel.name,
        "target": channel.hint,
        "min_severity": channel.min_severity,
        "enabled": channel.disabled_at is None,
        "disabled_reason": channel.disabled_reason,
        "last_error": channel.last_error,
        **{name: at and at.isoformat() for name, at in times.items()},
    }
