"""How every page is made: the templates and what they may call, and refusals as pages instead of JSON."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import fastapi
import jinja2
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from cmerwatch import errors
from cmerwatch_web import charts
from cmerwatch_web import errors as web_errors
from cmerwatch_web.console import assets, review_form, review_queue, text, views, words

# Starlette switches autoescape on for .html; StrictUndefined turns a misspelt name into an error instead of a blank.
templates = Jinja2Templates(
    env=jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
)


class SignInNeeded(Exception):
    """No valid session; `path` is where the person wanted to go."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class PageError(Exception):
    """A refusal on its way to a page. Not a CmerwatchError, because the API's handler would answer those with JSON."""

    def __init__(self, error: errors.CmerwatchError) -> None:
        super().__init__(error.message)
        self.error = error


class Page(APIRoute):
    """A route whose refusals are shown as a page.

    It raises again instead of answering here, so that the session's dependency sees the failure and rolls back.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_page(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise PageError(_misread(error)) from error
            except Exception as error:
                known = web_errors.translated(error)
                if known is None:
                    raise
                raise PageError(known) from error

        return handle_page


def _misread(error: RequestValidationError) -> errors.CmerwatchError:
    """An address that cannot be is none of ours; a field of a form is named with its limit."""
    for one in error.errors():
        where, *rest = one["loc"]
        if where == "path" or not rest:
            return errors.NotFound("There is nothing at this address.")
        field, limit = str(rest[-1]), one.get("ctx", {}).get("max_length")
        if limit is not None:
            return errors.Invalid(
                f"`{field}` has more than {limit:,} characters, which is the most. Go back, shorten it and try again.",
                field=field,
                limit=limit,
            )
    return errors.Invalid(f"`{field}` could not be read. Go back and enter it again.", field=field)


def install(app: fastapi.FastAPI) -> None:
    """Register how the two exceptions above are answered."""
    app.add_exception_handler(SignInNeeded, _to_sign_in)
    app.add_exception_handler(PageError, _refused)
    app.state.show_error = _show_error


def render(request: Request, name: str, status: int = 200, **context: Any) -> Response:
    return templates.TemplateResponse(request, name, {"viewer": None, **context}, status_code=status)


def local_path(path: str | None) -> str:
    """`path` when it stays on this site, else the front page: a sign-in must not be a way to send people elsewhere."""
    path = path or "/"
    split = urlsplit(path)
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and not split.netloc and not split.scheme
    return path if is_local and "\\" not in path and path.isprintable() else "/"


def storable(text: str) -> str:
    """As Postgres can compare it: neither NUL nor halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def refuse_foreign_forms(request: Request) -> None:
    """Cross-site request forgery: a browser says where an unsafe request comes from, and it must be from here.

    Sec-Fetch-Site is sent by every current browser; Origin is the fallback; a client that sends neither is no
    browser and holds no cookie by accident.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        origin = request.headers.get("origin")
        ours = {request.headers.get("host", ""), urlsplit(request.app.state.settings.public_url).netloc}
        is_ours = origin is None or urlsplit(origin).netloc in ours
    if not is_ours:
        raise errors.Forbidden(
            "This form was sent from another site, so it was ignored. Open the console and try again."
        )


async def _to_sign_in(request: Request, error: Exception) -> Response:
    assert isinstance(error, SignInNeeded)
    if kept := await review_form.keep(request):
        return render(request, "sign_in.html", 401, next=kept.path, problem=None, login="", kept=kept.fields)
    query = "" if error.path == "/" else "?" + urlencode({"next": error.path})
    return RedirectResponse(f"/sign-in{query}", 303)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)
    return render(request, "error.html", error.error.status, error=error.error)


def _show_error(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    """For a browser that asked for an address that nobody answers."""
    kind = errors.NotFound if status == 404 else errors.Invalid
    response = render(request, "error.html", status, error=kind(message))
    response.headers.update(headers)
    return response


def _moment(value: dt.datetime, shown: str = "%Y-%m-%d %H:%M:%S") -> str:
    return format(value.astimezone(dt.UTC), shown)


def _age(value: dt.datetime) -> str:
    """`3 min ago`; the exact time stands beside it."""
    seconds = (dt.datetime.now(dt.UTC) - value).total_seconds()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def _seconds(value: float) -> str:
    """A span of time as people say it."""
    whole = round(value)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02} s"


templates.env.globals.update(
    review_waiting=review_queue.waiting,
    asset=assets.url,
    names=views.NAMES,
    windows=views.WINDOWS,
    blind_spots=words.BLIND_SPOTS,
    few=charts.FEW,
)
templates.env.filters.update(
    percent=charts.percent,
    number=words.number,
    pieces=text.pieces,
    visible=text.visible,
    shorten=text.shorten,
    moment=_moment,
    age=_age,
    seconds=_seconds,
    reason=words.reason,
    count=lambda value: f"{value:,}",
)
