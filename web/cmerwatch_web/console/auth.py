"""Signing in and out: by a one-time link or a password, into a cookie that scripts cannot read."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlencode

import fastapi
from fastapi import Depends, Form
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, audits, errors, models, people
from cmerwatch_web import deps
from cmerwatch_web.console import pages, review_form, throttle

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


def project_cookie_name(request: Request) -> str:
    return f"{cookie_name(request)}-project"


def signed_in(request: Request, session: Session) -> access.Principal:
    """Who is looking; raises SignInNeeded, or Forbidden for a role that may not read."""
    try:
        principal = _principal(request, session)
    except errors.Unauthenticated:
        query = f"?{request.url.query}" if request.url.query else ""
        raise pages.SignInNeeded((request.url.path + query) if request.method == "GET" else "/") from None
    access.authorize(principal, "read")
    request.state.session = session  # for what every page shows beside its own, such as the number waiting for review
    request.state.projects = people.projects_of(session, principal.user_id)  # for the switcher of every page
    _follow_link(request, principal)
    return principal


class OtherProject(Exception):
    """A link leads to another of one's projects: there first, and then to what it names."""

    def __init__(self, slug: str, path: str) -> None:
        super().__init__(slug)
        self.slug, self.path = slug, path


def install(app: fastapi.FastAPI) -> None:
    app.add_exception_handler(OtherProject, _to_other_project)


def _follow_link(request: Request, principal: access.Principal) -> None:
    """A message's link names its project: the same slice of another one would be a wrong answer, not an error."""
    wanted = request.query_params.get("project")
    if wanted is None or wanted == principal.project_slug or request.method != "GET":
        return
    if wanted not in {project.slug for project in request.state.projects}:
        raise errors.NotFound("This link leads to a project that is not among yours.")
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "project"]
    raise OtherProject(wanted, request.url.path + (f"?{urlencode(rest)}" if rest else ""))


async def _to_other_project(request: Request, error: Exception) -> Response:
    assert isinstance(error, OtherProject)
    response = RedirectResponse(pages.local_path(error.path), 303)
    choose_project(request, response, error.slug)
    return response


def _principal(request: Request, session: orm.Session) -> access.Principal:
    """In the project switched to, or the first one: a choice of a project one has left must not lock one out."""
    cookie, chosen = request.cookies.get(cookie_name(request)), request.cookies.get(project_cookie_name(request))
    if chosen:
        with contextlib.suppress(errors.Unauthenticated):
            return access.principal_of_cookie(session, cookie, pages.storable(chosen))
    return access.principal_of_cookie(session, cookie)


def viewer_of(request: Request, session: orm.Session) -> access.Principal | None:
    """Who is signed in, for a page that anybody may open."""
    try:
        return _principal(request, session)
    except errors.Unauthenticated:
        return None


Viewer = Annotated[access.Principal, Depends(signed_in)]


def allowed(action: str) -> Callable[[access.Principal], access.Principal]:
    """A dependency: the viewer, where their role allows the action. Raises Forbidden."""

    def viewer(viewer: Viewer) -> access.Principal:
        access.authorize(viewer, action)
        return viewer

    return viewer


Admin = Annotated[access.Principal, Depends(allowed("admin"))]


@router.get("/sign-in")
def show_form(request: Request, next: str = "/") -> Response:
    return _form(request, pages.local_path(next))


def _form(
    request: Request, next: str, status: int = 200, problem: str | None = None, login: str = "", kept: str = ""
) -> Response:
    """`kept`: what a form held when its session had ended; it goes along until somebody is signed in."""
    return pages.render(request, "sign_in.html", status, next=next, problem=problem, login=login, kept=kept)


@router.post("/sign-in")
def sign_in(
    request: Request,
    session: Session,
    login: Annotated[str, Form(max_length=200)] = "",
    password: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form()] = "/",
    kept: Annotated[str, Form()] = "",
) -> Response:
    next = pages.local_path(next)
    tries: throttle.Throttle = request.app.state.tries
    address = request.client.host if request.client else ""
    if wait := math.ceil(tries.begin(login, address)):
        problem = f"Too many tries. Wait {wait} seconds before the next, or sign in with a one-time link."
        response = _form(request, next, 429, problem, login, kept)
        response.headers["Retry-After"] = str(wait)
        return response
    try:
        user = access.verify_password(session, login, password)
    except errors.Unauthenticated as error:
        log.warning("a sign-in from %s was refused", address)  # not the login, where people type passwords too
        audits.refused_sign_in(session, login, address)
        return _form(request, next, 401, error.message, login, kept)
    tries.succeed(login, address)
    return let_in(request, session, user, "password", next, kept)


@router.get("/sign-in/{token}")
def show_link(request: Request, token: str) -> Response:
    """Only a button: mail and chat scanners open every link they see, and a GET that signs in would use it up."""
    return _link_page(request)


def _link_page(request: Request, status: int = 200, problem: str | None = None, mend: str | None = None) -> Response:
    """`problem`: the link is of no use; `mend`: the password is, and the link still waits."""
    limits = (access.MIN_PASSWORD, access.MAX_PASSWORD)
    return pages.render(request, "sign_in_link.html", status, problem=problem, mend=mend, limits=limits)


@router.post("/sign-in/{token}")
def use_link(
    request: Request, session: Session, token: str, password: Annotated[str, Form(max_length=1000)] = ""
) -> Response:
    """Signs in once, and sets a password where one was typed: checked first, so that a bad one costs no link."""
    try:
        if password:
            access.require_password_length(password)
        user = access.use_sign_in_link(session, token)
    except errors.Unauthenticated as error:
        return _link_page(request, 401, problem=error.message)
    except errors.Invalid as error:
        return _link_page(request, 422, mend=error.message)
    if password:
        people.set_password(session, user.id, password)
        access.audit(session, f"user:{user.login}", "user.password", user.login)
    return let_in(request, session, user, "link", "/")


@router.post("/project")
def switch_project(
    request: Request, session: Session, viewer: Viewer, slug: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Which of their projects this browser looks at; always to the front page, for no object is in both."""
    if slug not in {project.slug for project in people.projects_of(session, viewer.user_id)}:
        raise errors.NotFound("There is no such project among yours.")
    response = RedirectResponse("/", 303)
    choose_project(request, response, slug)
    return response


@router.post("/sign-out")
def sign_out(request: Request, session: Session) -> Response:
    cookie = request.cookies.get(cookie_name(request))
    if cookie:
        access.close_console_session(session, cookie)
    response = RedirectResponse("/sign-in", 303)
    set_cookie(request, response, "", max_age=0)
    _set(request, response, project_cookie_name(request), "", max_age=0)
    return response


def let_in(
    request: Request, session: orm.Session, user: models.User, method: str, next: str, kept: str = ""
) -> Response:
    """A new session each time, and the browser's old one ends: a cookie from before the sign-in is worth nothing."""
    if not people.projects_of(session, user.id):
        raise errors.Forbidden("Your account belongs to no project any more. Ask an admin of the one you need.")
    old = request.cookies.get(cookie_name(request))
    if old:
        access.close_console_session(session, old)
    access.audit(session, f"user:{user.login}", "sign_in", "console", method=method)
    response = _go_on(request, next, kept)
    set_cookie(request, response, access.open_console_session(session, user.id))
    return response


def _go_on(request: Request, next: str, kept: str) -> Response:
    """To where one was going; with a form that was kept, to a page that carries it there."""
    if not (kept and review_form.is_item(next)):
        return RedirectResponse(next, 303)
    return pages.render(request, "review_kept.html", path=next, kept=kept, draft=review_form.draft(kept))


def choose_project(request: Request, response: Response, slug: str) -> None:
    _set(request, response, project_cookie_name(request), slug)


def set_cookie(request: Request, response: Response, value: str, max_age: int | None = None) -> None:
    _set(request, response, cookie_name(request), value, max_age)


def _set(request: Request, response: Response, name: str, value: str, max_age: int | None = None) -> None:
    response.set_cookie(name, value, max_age=max_age, path="/", secure=is_https(request), httponly=True, samesite="lax")
