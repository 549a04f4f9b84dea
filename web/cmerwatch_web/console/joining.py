"""The page behind an invitation's link: join a project with the account one has, or with a new one."""

from __future__ import annotations

import math
from typing import Annotated

import fastapi
from fastapi import Form
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, audits, errors, invitations
from cmerwatch_web.console import auth, pages, throttle

router = fastapi.APIRouter(route_class=pages.Page)

NOT_ACCEPTED = (
    "This password was not accepted. If you have an account here already, give its password, or sign in first and open "
    "this link again."
)


@router.get("/invitation/{token}")
def show_invitation(request: Request, session: auth.Session, token: str) -> Response:
    """The same page whether the login has an account or not: the inviter has the link too."""
    return _page(request, session, token)


@router.post("/invitation/{token}")
def accept(
    request: Request, session: auth.Session, token: str, password: Annotated[str, Form(max_length=1000)] = ""
) -> Response:
    """Joins and signs in, in the project that was joined."""
    viewer = auth.viewer_of(request, session)
    try:
        found = invitations.find(session, token)
        if (viewer is None or viewer.actor != f"user:{found.login}") and (wait := _wait(request, found.login)):
            return _page(request, session, token, f"Too many tries. Wait {wait} seconds before the next.", 429)
        user = invitations.accept(session, token, password, viewer.user_id if viewer else None)
    except errors.Invalid as error:
        return _page(request, session, token, error.message, 422)
    except errors.Unauthenticated:
        return _refused(request, session, token)
    _tries(request).succeed(found.login, _address(request))
    access.audit(session, f"user:{user.login}", "user.join", user.login, found.project_id, role=found.role)
    response = auth.let_in(request, session, user, "invitation", "/")
    auth.choose_project(request, response, found.project_slug)
    return response


def _refused(request: Request, session: orm.Session, token: str) -> Response:
    """A link of no use, or a wrong password, which is counted like any other."""
    try:
        found = invitations.find(session, token)
    except errors.Unauthenticated:
        return _page(request, session, token, status=401)
    audits.refused_sign_in(session, found.login, _address(request))
    return _page(request, session, token, NOT_ACCEPTED, 401)


def _page(
    request: Request, session: orm.Session, token: str, problem: str | None = None, status: int = 200
) -> Response:
    try:
        found, over = invitations.find(session, token), None
    except errors.Unauthenticated as error:
        found, over = None, error.message
    viewer = auth.viewer_of(request, session)
    return pages.render(
        request,
        "invitation.html",
        401 if over else status,
        found=found,
        over=over,
        problem=problem,
        signed_in=viewer.actor.removeprefix("user:") if viewer else None,
        limits=(access.MIN_PASSWORD, access.MAX_PASSWORD),
    )


def _tries(request: Request) -> throttle.Throttle:
    tries: throttle.Throttle = request.app.state.tries
    return tries


def _wait(request: Request, login: str) -> int:
    return math.ceil(_tries(request).begin(login, _address(request)))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
