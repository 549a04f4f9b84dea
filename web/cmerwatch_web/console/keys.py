"""API keys: made and shown once, listed by name and scope, ended at once."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Annotated

import fastapi
from fastapi import Form
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, errors, models, people
from cmerwatch_web.console import auth, pages, settings
from cmerwatch_web.console.settings import Problem

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/keys"
SCOPES = {
    "ingest": "send events and pictures",
    "read": "read rates, events and the ledger",
    "review": "work the review queue, as one named person",
    "admin": "change policies, alerts and channels",
}
LABELS = {"name": "What it is for"}
# A refusal by the core speaks of scopes and users; here it has to speak of what can be chosen.
WORDS = {
    "scopes": "Choose at least one of the things under “It may”.",
    "user": "Choose under “Acts as” a member of this project: a key that may review is that person's.",
}
LIFETIMES = {"": "never", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}
DONE = {"revoked": "The key is revoked. Requests with it are refused from now on, everywhere within a second."}


@dataclass(frozen=True, slots=True)
class Line:
    key: models.ApiKey
    login: str | None
    state: str  # live, revoked, expired


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form asked for, to show it again when it is refused."""

    name: str = ""
    scopes: tuple[str, ...] = ("ingest",)  # what an app needs; it cannot read what it sent
    user: str = ""
    lifetime: str = ""


@router.get(PATH)
def show_keys(request: Request, session: auth.Session, viewer: auth.Admin) -> Response:
    return _page(request, session, viewer, Wish())


def _page(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    wish: Wish,
    problem: Problem | None = None,
    made: str | None = None,
) -> Response:
    return pages.render(
        request,
        "settings_keys.html",
        problem.status if problem else 201 if made else 200,
        viewer=viewer,
        lines=[Line(key, login, _state(key)) for key, login in access.keys(session, viewer.project_id)],
        people=[one for one in people.members(session, viewer.project_id) if one.disabled_at is None],
        scopes=SCOPES,
        lifetimes=LIFETIMES,
        wish=wish,
        problem=problem,
        made=made,
        done=settings.done(request, DONE),
    )


def _state(key: models.ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    is_over = key.expires_at is not None and key.expires_at <= dt.datetime.now(dt.UTC)
    return "expired" if is_over else "live"


@router.post(PATH)
def create_key(
    request: Request,
    session: auth.Session,
    viewer: auth.Admin,
    name: Annotated[str, Form(max_length=1000)] = "",
    scope: Annotated[list[str] | None, Form()] = None,
    user: Annotated[str, Form(max_length=100)] = "",
    lifetime: Annotated[str, Form(max_length=10)] = "",
) -> Response:
    """Answers with the key itself, which no other page and no reload shows again."""
    wish = Wish(name, tuple(scope or ()), user, lifetime)
    with settings.attempt(session) as problem:
        made = access.create_key(
            session, viewer.project_id, name, wish.scopes, _person(user), expires_at=_expiry(lifetime)
        )
    if problem:
        problem.message = WORDS.get(problem.field, problem.message)
        problem.name_as(LABELS)
        return _page(request, session, viewer, wish, problem)
    public = made.split("_")[1]
    access.audit(session, viewer.actor, "key.create", public, viewer.project_id, name=name.strip(), scopes=wish.scopes)
    return _page(request, session, viewer, Wish(scopes=wish.scopes), made=made)


def _person(user: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(user) if user else None
    except ValueError:
        raise errors.Invalid(WORDS["user"], field="user") from None


def _expiry(lifetime: str) -> dt.datetime | None:
    if lifetime not in LIFETIMES:
        raise errors.Invalid("Choose when the key ends from the list.", field="lifetime")
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=int(lifetime)) if lifetime else None


@router.post(PATH + "/{key_id}/revoke")
def revoke_key(session: auth.Session, viewer: auth.Admin, key_id: str) -> Response:
    access.revoke_key(session, viewer.project_id, pages.storable(key_id))
    access.audit(session, viewer.actor, "key.revoke", key_id, viewer.project_id)
    return settings.back(PATH, "revoked")
