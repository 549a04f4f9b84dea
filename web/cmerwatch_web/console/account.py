"""What people do about themselves: a password, and which browsers are signed in as them."""

from __future__ import annotations

import math
import uuid
from typing import Annotated

import fastapi
from fastapi import Form
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, errors, models, people
from cmerwatch_web.console import auth, pages, settings, throttle
from cmerwatch_web.console.settings import Problem

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/account"
DONE = {
    "password": "Your password is set. Every other browser was signed out.",
    "session": "That browser is signed out.",
    "others": "Every other browser is signed out.",
}


@router.get(PATH)
def show_account(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    return _page(request, session, viewer)


def _page(request: Request, session: orm.Session, viewer: access.Principal, problem: Problem | None = None) -> Response:
    user = session.get_one(models.User, viewer.user_id)
    cookie = request.cookies.get(auth.cookie_name(request))
    return pages.render(
        request,
        "settings_account.html",
        problem.status if problem else 200,
        viewer=viewer,
        user=user,
        projects=people.projects_of(session, user.id),
        sessions=people.open_sessions(session, user.id, cookie),
        problem=problem,
        done=settings.done(request, DONE),
        limits=(access.MIN_PASSWORD, access.MAX_PASSWORD),
    )


@router.post(PATH + "/password")
def change_password(
    request: Request,
    session: auth.Session,
    viewer: auth.Viewer,
    new: Annotated[str, Form(max_length=1000)] = "",
    again: Annotated[str, Form(max_length=1000)] = "",
    current: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    """Whoever finds an open browser must know the password to change it, and may not guess it any faster here."""
    user_id, login = _me(viewer)
    tries: throttle.Throttle = request.app.state.tries
    address = request.client.host if request.client else ""
    if wait := math.ceil(tries.begin(login, address)):
        return _page(request, session, viewer, Problem(f"Too many tries. Wait {wait} seconds.", "current", 429))
    with settings.attempt(session) as problem:
        if new != again:
            raise errors.Invalid("The two new passwords differ; type the same one twice.", field="again")
        people.change_password(session, user_id, current, new)
    if problem:
        return _page(request, session, viewer, problem)
    tries.succeed(login, address)
    access.audit(session, viewer.actor, "user.password", login, viewer.project_id)
    response = settings.back(PATH, "password")
    auth.set_cookie(request, response, access.open_console_session(session, user_id))
    return response


@router.post(PATH + "/sessions/end-others")
def end_others(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    user_id, login = _me(viewer)
    people.end_sessions(session, user_id, but=request.cookies.get(auth.cookie_name(request)))
    access.audit(session, viewer.actor, "session.end", login, viewer.project_id, which="others")
    return settings.back(PATH, "others")


@router.post(PATH + "/sessions/{handle}/end")
def end_session(session: auth.Session, viewer: auth.Viewer, handle: str) -> Response:
    user_id, login = _me(viewer)
    people.end_session(session, user_id, handle)
    access.audit(session, viewer.actor, "session.end", login, viewer.project_id, which="one")
    return settings.back(PATH, "session")


def _me(viewer: access.Principal) -> tuple[uuid.UUID, str]:
    """Id and login; who signed in has both."""
    assert viewer.user_id is not None
    return viewer.user_id, viewer.actor.removeprefix("user:")
