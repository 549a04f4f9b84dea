"""Signing in and out: by a one-time link or a password, into a cookie that scripts cannot read."""

from __future__ import annotations

import logging
import math
from typing import Annotated

import fastapi
from fastapi import Depends, Form
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, errors, models
from cmerwatch_web import deps
from cmerwatch_web.console import pages, throttle

log = logging.getLogger(__name__)

router = fastapi.APIRouter(route_class=pages.Page)

Session = deps.Session


def is_https(request: Request) -> bool:
    """Whether browsers reach us over TLS; behind a proxy only `public_url` knows."""
    public_url: str = request.app.state.settings.public_url
    return request.url.scheme == "https" or public_url.startswith("https://")


def cookie_name(request: Request) -> str:
    """Under https the `__Host-` prefix makes browsers refuse a cookie planted by a neighbouring subdomain."""
    return "__Host-cmw" if is_https(request) else "cmw"


def signed_in(request: Request, session: Session) -> access.Principal:
    """Who is looking; raises SignInNeeded, or Forbidden for a role that may not read."""
    try:
        principal = access.principal_of_cookie(session, request.cookies.get(cookie_name(request)))
    except errors.Unauthenticated:
        query = f"?{request.url.query}" if request.url.query else ""
        raise pages.SignInNeeded((request.url.path + query) if request.method == "GET" else "/") from None
    access.authorize(principal, "read")
    return principal


Viewer = Annotated[access.Principal, Depends(signed_in)]


@router.get("/sign-in")
def show_form(request: Request, next: str = "/") -> Response:
    return pages.render(request, "sign_in.html", next=pages.local_path(next), problem=None, login="")


@router.post("/sign-in")
def sign_in(
    request: Request,
    session: Session,
    login: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    next = pages.local_path(next)
    tries: throttle.Throttle = request.app.state.tries
    address = request.client.host if request.client else ""
    if wait := math.ceil(tries.begin(login, address)):
        problem = f"Too many tries. Wait {wait} seconds before the next, or sign in with a one-time link."
        response = pages.render(request, "sign_in.html", 429, next=next, problem=problem, login=login)
        response.headers["Retry-After"] = str(wait)
        return response
    try:
        user = access.verify_password(session, login, password)
    except errors.Unauthenticated as error:
        log.warning("a sign-in from %s was refused", address)  # not the login, where people type passwords too
        return pages.render(request, "sign_in.html", 401, next=next, problem=error.message, login=login)
    tries.succeed(login, address)
    return _let_in(request, session, user, "password", next)


@router.get("/sign-in/{token}")
def show_link(request: Request, token: str) -> Response:
    """Only a button: mail and chat scanners open every link they see, and a GET that signs in would use it up."""
    return pages.render(request, "sign_in_link.html", problem=None)


@router.post("/sign-in/{token}")
def use_link(request: Request, session: Session, token: str) -> Response:
    try:
        user = access.use_sign_in_link(session, token)
    except errors.Unauthenticated as error:
        return pages.render(request, "sign_in_link.html", 401, problem=error.message)
    return _let_in(request, session, user, "link", "/")


@router.post("/sign-out")
def sign_out(request: Request, session: Session) -> Response:
    cookie = request.cookies.get(cookie_name(request))
    if cookie:
        access.close_console_session(session, cookie)
    response = RedirectResponse("/sign-in", 303)
    _set_cookie(request, response, "", max_age=0)
    return response


def _let_in(request: Request, session: orm.Session, user: models.User, method: str, next: str) -> Response:
    """A new session each time, and the browser's old one ends: a cookie from before the sign-in is worth nothing."""
    old = request.cookies.get(cookie_name(request))
    if old:
        access.close_console_session(session, old)
    access.audit(session, f"user:{user.login}", "sign_in", "console", method=method)
    response = RedirectResponse(next, 303)
    _set_cookie(request, response, access.open_console_session(session, user.id))
    return response


def _set_cookie(request: Request, response: Response, value: str, max_age: int | None = None) -> None:
    response.set_cookie(
        cookie_name(request), value, max_age=max_age, path="/", secure=is_https(request), httponly=True, samesite="lax"
    )
