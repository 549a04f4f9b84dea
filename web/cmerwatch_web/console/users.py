"""The people of a project: who they are, their roles, and a way in for who has none."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated

import fastapi
from fastapi import Form
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, errors, invitations, people
from cmerwatch_web.console import auth, pages, settings
from cmerwatch_web.console.settings import Problem

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/people"
LABELS = {"login": "Login", "name": "Name", "role": "Role"}
ROLES = {
    "viewer": "looks at everything, changes nothing",
    "reviewer": "works the review queue",
    "lead": "also settles disputed reviews, changes policies, silences alerts",
    "engineer": "works the queue, policies, alerts, channels and the quarantine",
    "admin": "everything, people and keys too",
}
DONE = {
    "role": "The role is changed, from their next page on.",
    "disabled": "The account is disabled: every session, link and key of theirs ended.",
    "enabled": "The account works again; keys that act as them too. They sign in anew.",
    "withdrawn": "The invitation is withdrawn; its link no longer works.",
    "removed": "They are out of this project. What they did stays in the log under their name.",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form asked for, to show it again when it is refused."""

    login: str = ""
    name: str = ""
    role: str = "reviewer"


@dataclass(frozen=True, slots=True)
class Invited:
    """A link to be sent on; `joins` when it leads into the project, rather than back into an account."""

    login: str
    link: str
    joins: bool = False


@router.get(PATH)
def show_people(request: Request, session: auth.Session, viewer: auth.Admin) -> Response:
    return _page(request, session, viewer)


def _page(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    wish: Wish | None = None,
    problem: Problem | None = None,
    invited: Invited | None = None,
) -> Response:
    return pages.render(
        request,
        "settings_people.html",
        problem.status if problem else 201 if invited else 200,
        viewer=viewer,
        members=people.members(session, viewer.project_id),
        roles=ROLES,
        wish=wish or Wish(),
        problem=problem,
        invited=invited,
        waiting=invitations.waiting(session, viewer.project_id),
        done=settings.done(request, DONE),
    )


@router.post(PATH)
def add_person(
    request: Request,
    session: auth.Session,
    viewer: auth.Admin,
    login: Annotated[str, Form(max_length=1000)] = "",
    name: Annotated[str, Form(max_length=1000)] = "",
    role: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Answers with an invitation's link: the same for a login that is known elsewhere and for a new one."""
    with settings.attempt(session) as problem:
        token = invitations.invite(session, viewer.project_id, login, name.strip() or login, role)
    if problem:
        problem.name_as(LABELS)
        return _page(request, session, viewer, Wish(login, name, role), problem)
    access.audit(session, viewer.actor, "user.invite", login.strip(), viewer.project_id, role=role)
    link = f"{request.app.state.settings.public_url.rstrip('/')}/invitation/{token}"
    return _page(request, session, viewer, invited=Invited(login.strip(), link, joins=True))


@router.post(PATH + "/invitations/withdraw")
def withdraw(session: auth.Session, viewer: auth.Admin, login: Annotated[str, Form(max_length=1000)] = "") -> Response:
    invitations.withdraw(session, viewer.project_id, pages.storable(login))
    access.audit(session, viewer.actor, "user.withdraw", login, viewer.project_id)
    return settings.back(PATH, "withdrawn")


@router.post(PATH + "/{user_id}/link")
def make_link(request: Request, session: auth.Session, viewer: auth.Admin, user_id: uuid.UUID) -> Response:
    """A way in for who lost their password."""
    person = _theirs(session, viewer, user_id)
    if person.disabled_at is not None:
        raise errors.Conflict("This account is disabled; enable it first.")
    access.audit(session, viewer.actor, "user.link", person.login, viewer.project_id)
    return _page(request, session, viewer, invited=_invite(request, session, person.id, person.login))


def _invite(request: Request, session: orm.Session, user_id: uuid.UUID, login: str) -> Invited:
    url = request.app.state.settings.public_url.rstrip("/")
    return Invited(login, f"{url}/sign-in/{access.create_sign_in_link(session, user_id)}")


@router.post(PATH + "/{user_id}/role")
def change_role(
    request: Request,
    session: auth.Session,
    viewer: auth.Admin,
    user_id: uuid.UUID,
    role: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    person = people.member(session, viewer.project_id, user_id)
    with settings.attempt(session) as problem:
        people.change_role(session, viewer.project_id, user_id, role)
    if problem:
        return _page(request, session, viewer, problem=problem)
    access.audit(session, viewer.actor, "user.role", person.login, viewer.project_id, role=role, before=person.role)
    return settings.back(PATH, "role")


@router.post(PATH + "/{user_id}/disable")
def disable(request: Request, session: auth.Session, viewer: auth.Admin, user_id: uuid.UUID) -> Response:
    person = _theirs(session, viewer, user_id)
    with settings.attempt(session) as problem:
        _not_oneself(viewer, user_id)
        people.disable(session, user_id)
    if problem:
        return _page(request, session, viewer, problem=problem)
    access.audit(session, viewer.actor, "user.disable", person.login, viewer.project_id)
    return settings.back(PATH, "disabled")


@router.post(PATH + "/{user_id}/enable")
def enable(session: auth.Session, viewer: auth.Admin, user_id: uuid.UUID) -> Response:
    person = _theirs(session, viewer, user_id)
    people.enable(session, user_id)
    access.audit(session, viewer.actor, "user.enable", person.login, viewer.project_id)
    return settings.back(PATH, "enabled")


@router.post(PATH + "/{user_id}/remove")
def remove(request: Request, session: auth.Session, viewer: auth.Admin, user_id: uuid.UUID) -> Response:
    person = people.member(session, viewer.project_id, user_id)
    with settings.attempt(session) as problem:
        _not_oneself(viewer, user_id)
        people.remove(session, viewer.project_id, user_id)
    if problem:
        return _page(request, session, viewer, problem=problem)
    access.audit(session, viewer.actor, "user.remove", person.login, viewer.project_id)
    return settings.back(PATH, "removed")


def _theirs(session: orm.Session, viewer: access.Principal, user_id: uuid.UUID) -> people.Member:
    """Somebody of this project (else NotFound) whose whole account this admin may decide about (else Forbidden)."""
    person = people.member(session, viewer.project_id, user_id)
    people.require_power_over(session, viewer.user_id, user_id)
    return person


def _not_oneself(viewer: access.Principal, user_id: uuid.UUID) -> None:
    if viewer.user_id == user_id:
        raise errors.Conflict("That is you. Ask another admin, so that nobody locks themselves out by mistake.")
