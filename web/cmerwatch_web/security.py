"""What holds for every request, before any route: headers of the answer, size and pace of the body."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmerwatch_web import errors

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; object-src 'none'; require-trusted-types-for 'script'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

# As ASGI wants them, lower-case bytes: they go out with every answer and are looked through for each.
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"cache-control": b"no-store",
}

BODY_SECONDS = 60.0  # 32 MiB at 4.5 Mbit/s; slower senders only hold memory
BUFFERED_BYTES = 256 << 20  # of all bodies being read or handled: what keeps memory flat under overload


class SecurityHeaders:
    """Sets each header that the route has not set itself."""

    def __init__(self, app: ASGIApp, https: bool) -> None:
        self.app = app
        common = _HEADERS | ({b"strict-transport-security": b"max-age=31536000"} if https else {})
        self.of_pages = [(b"content-security-policy", PAGE_POLICY.encode()), *common.items()]
        self.of_data = [(b"content-security-policy", DATA_POLICY.encode()), *common.items()]
        self.names = frozenset(name for name, _ in self.of_data)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower(): value for name, value in message["headers"]}
                is_page = own.get(b"content-type", b"").startswith(b"text/html")
                ours = self.of_pages if is_page else self.of_data
                if not self.names.isdisjoint(own):
                    ours = [(name, value) for name, value in ours if name not in own]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        await self.app(scope, receive, with_headers)


class BodyLimits:
    """Refuses a body over `limit` bytes: before reading it where its length is stated, else at the byte too many.

    Also refuses compressed bodies (a few bytes of gzip inflate to any size; images gain nothing from it), bodies that
    take longer than a minute, and any body at all while those in hand fill `buffered` bytes (503: come back later).
    """

    def __init__(self, app: ASGIApp, limit: int, buffered: int = BUFFERED_BYTES) -> None:
        self.app = app
        self.limit = limit
        self.free = max(buffered, limit)  # one body of the largest size must fit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            return await errors.plain(refusal)(scope, receive, send)
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            self.free += body.size

    def _refusal(self, headers: Headers) -> HTTPException | None:
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            return HTTPException(415, "Content-Encoding must be identity: send the body uncompressed.")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return HTTPException(400, "Content-Length must be a number of bytes.")
        return self.too_large() if len(length) > 18 or int(length) > self.limit else None

    def too_large(self) -> HTTPException:
        return errors.BodyTooLarge(self.limit)


class _Body:
    """One request's body on its way in."""

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self._limits = limits
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self._is_whole = False
        self.size = 0

    async def receive(self) -> Message:
        if self._is_whole:  # from here on the message awaited is the disconnect, however late
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The body took longer than {BODY_SECONDS:.0f} seconds to arrive.") from None
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._count(len(message.get("body", b"")))
        return message

    def _count(self, arrived: int) -> None:
        if self.size + arrived > self._limits.limit:
            raise self._limits.too_large()
        if arrived > self._limits.free:
            raise HTTPException(503, "The service holds as many bodies as it can; nothing was stored. Retry later.")
        self._limits.free -= arrived
        self.size += arrived
