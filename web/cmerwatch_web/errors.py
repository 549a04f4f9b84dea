"""Every refusal in one shape, {"error": {"code", "message", "details"}}; nothing that failed inside leaks out."""

from __future__ import annotations

import errno
import logging
import random
import traceback
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmerwatch import errors

log = logging.getLogger(__name__)

_HTTP_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "quota_exceeded",
    503: "unavailable",
}
_HTTP_MESSAGES = {
    404: "There is nothing at this address.",
    405: "This address does not answer this method; see the header Allow.",
}

# SQLSTATEs, or their classes, of a Postgres that cannot serve now though the same request may succeed later: lost
# connections, no memory or disk, too many clients, shutdowns, deadlocks (class 40), and lock and statement timeouts
# (55P03, 57014).
_PASSING_STATES = ("08", "25006", "40", "53", "55P03", "57", "58")
_NO_PARTITION = "23514"  # check_violation: only a partitioned table without a partition for the row raises it here
_RETRY_SECONDS = 5


class BodyTooLarge(HTTPException):
    """Starlette's own kind, because only that passes through what reads bodies without being taken for a failure."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The body is over the limit of {limit} bytes; send it in smaller parts.")
        self.details = {"field": "body", "limit": limit}


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.CmerwatchError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(sa.exc.SQLAlchemyError, _database)
    app.add_exception_handler(OSError, _operating_system)


def body(code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": dict(details or {})}}


def of(error: errors.CmerwatchError) -> dict[str, Any]:
    """The inside of the shape, as it also stands in one event's result."""
    return {"code": error.code, "message": error.message, "details": error.details}


def answer(error: errors.CmerwatchError) -> JSONResponse:
    headers = retry_headers() if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": of(error)}, error.status, headers)


def retry_headers(seconds: float = _RETRY_SECONDS) -> dict[str, str]:
    """Retry-After of 1 to 300 seconds; spread by 20 %, so that everyone refused does not come back at once."""
    return {"Retry-After": str(round(min(max(seconds * random.uniform(0.8, 1.2), 1), 300)))}


def translated(error: BaseException) -> errors.CmerwatchError | None:
    """The refusal that a database or storage failure amounts to; None for what must not happen at all."""
    if isinstance(error, errors.CmerwatchError):
        return error
    if isinstance(error, sa.exc.SQLAlchemyError):
        return _translated_database(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.StorageFull()
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE):
        return errors.Unavailable()
    return None


def _translated_database(error: sa.exc.SQLAlchemyError) -> errors.CmerwatchError | None:
    if isinstance(error, sa.exc.TimeoutError):  # every connection of the pool is busy
        return errors.Unavailable("The service is busy; nothing was stored. Retry after the time given.")
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    if isinstance(error, sa.exc.DataError):  # a NUL in a query, a date beyond Postgres': the asker's to mend
        return errors.Invalid("A value in this request is one that the database cannot hold.")
    state = getattr(error.orig, "sqlstate", None)
    if state == "53100":
        return errors.StorageFull()
    if state == _NO_PARTITION and "no partition of relation" in str(error.orig):
        return errors.Unavailable(
            "The database has no partition for today; nothing was stored. Start `cmerwatch worker`, which makes them."
        )
    lost = state is None and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    if lost or error.connection_invalidated or (state is not None and state.startswith(_PASSING_STATES)):
        return errors.Unavailable("The database cannot serve this now; nothing was stored. Retry after the time given.")
    return None


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.CmerwatchError)
    return answer(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    show = getattr(request.app.state, "show_error", None)
    if show is not None and error.status_code in _HTTP_MESSAGES and wants_page(request):
        shown: Response = show(request, error.status_code, _HTTP_MESSAGES[error.status_code], dict(error.headers or {}))
        return shown
    return plain(error)


def wants_page(request: Request) -> bool:
    """A browser looking for a page: it asks for HTML by name, which no client of the API does."""
    return not request.url.path.startswith("/v1") and "text/html" in request.headers.get("accept", "")


def plain(error: HTTPException) -> JSONResponse:
    code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    message = _HTTP_MESSAGES.get(error.status_code, error.detail)
    headers = dict(error.headers or {})
    if error.status_code in (429, 503):
        headers = retry_headers() | headers
    details = error.details if isinstance(error, BodyTooLarge) else {}
    return JSONResponse(body(code, message, details), error.status_code, headers)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own checks of paths, queries and headers: names the field, never repeats its value."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {
            "field": ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0]),
            "message": problem["msg"],
        }
        for problem in error.errors()
    ]
    first = problems[0]
    message = f"{first['field']}: {first['message'][:1].lower()}{first['message'][1:]}."
    return JSONResponse(body("invalid", message, {"field": first["field"], "problems": problems}), 422)


async def _database(request: Request, error: Exception) -> JSONResponse:
    return _known_or_internal(request.scope, error)


async def _operating_system(request: Request, error: Exception) -> JSONResponse:
    return _known_or_internal(request.scope, error)


def _known_or_internal(scope: Scope, error: Exception) -> JSONResponse:
    known = translated(error)
    if known is not None:
        log.warning("refused with %s: %s", known.code, type(error).__name__)
        return answer(known)
    _log_without_values(scope, error)
    return JSONResponse(body("internal", "Something failed inside cmerwatch; its log says where."), 500)


def _log_without_values(scope: Scope, error: Exception) -> None:
    """Where it failed, and as what. Not the exception's text: a driver's message may quote a prompt or an output."""
    where = "".join(traceback.format_tb(error.__traceback__)[-8:])
    log.error("%s %s failed: %s\n%s", scope.get("method"), scope["path"], type(error).__name__, where)


class LastResort:
    """Answers 500 for anything unforeseen. Starlette's own handler would raise it again, text and all, into the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            return None  # gone while sending: nothing failed here, and nobody reads an answer
        except Exception as error:
            response = _known_or_internal(scope, error)
            if started:
                # Half an answer is out: breaking the connection is the only way left to say that it is not whole.
                raise RuntimeError("an answer broke off") from None
            await response(scope, receive, send)
