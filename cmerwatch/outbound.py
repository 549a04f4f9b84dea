"""Calls to addresses that people entered: never to a private network, never followed elsewhere, never for long.

A name is resolved once, every answer is checked, and the connection goes to a checked address while TLS still verifies
the name: a resolver that answers differently the second time is never asked a second time.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore2
from httpcore2 import NetworkBackend, NetworkStream, SyncBackend

from cmerwatch import errors
from cmerwatch.addresses import Address, AllowList, is_public

HTTPS_PORT = 443
READ_CAP = 64 << 10  # of an answer's body; the rest is not read
RESOLVE_SECONDS = 3.0
MAX_URL = 2000

_NAME = re.compile(
    r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)

Resolve = Callable[[str, int], list[Address]]
MayReach = Callable[["Place", Address], bool]


class Failed(errors.CmerwatchError):
    """No answer came. The message names neither address nor secret, so it may be stored and shown."""

    code = "no_answer"


class Refused(Failed):
    """The name leads to an address that must not be called: nothing was sent, and another try would end the same."""

    code = "address_refused"


class TooLong(Failed):
    """The answer's body is longer than the cap; the rest was not read."""

    code = "answer_too_long"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL points: `host` in lower case and ASCII, an IPv6 literal without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def is_ordinary(self) -> bool:
        return self.scheme == "https" and self.port == HTTPS_PORT


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names are in lower case; `body` holds at most READ_CAP bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def place(url: str, field: str = "url", limit: int = MAX_URL) -> Place:
    """Raises Invalid naming `field`: not a plain http(s) URL that could ever be called."""
    if len(url) > limit or not url.isascii() or not url.isprintable() or any(c in url for c in ' \\"<>^`{|}'):
        raise _invalid(field, f"must be a URL of at most {limit} plain characters, with others percent-encoded")
    try:
        split = urlsplit(url)
        host, port = (split.hostname or "").lower(), split.port
    except ValueError:
        raise _invalid(field, "is not a URL such as https://hooks.example.com/path") from None
    if split.scheme not in ("https", "http") or not host:
        raise _invalid(field, "must begin with https:// and name a host")
    if "@" in split.netloc:
        raise _invalid(field, "must not hold a user name or password")
    if split.fragment:
        raise _invalid(field, "must not hold a fragment (#)")
    if "[" in split.netloc:
        host = _ipv6(host, field)
    elif not _NAME.fullmatch(host):
        raise _invalid(field, "names a host that is no domain name or address")
    return Place(split.scheme, host, port or (HTTPS_PORT if split.scheme == "https" else 80))


def check(url: str, allowed: AllowList, field: str = "url", resolve: Resolve | None = None) -> None:
    """Raises Invalid, in a sentence for whoever typed it, unless a call would be let through as far as known now.

    A name that does not resolve passes: resolvers fail for a moment, and each call checks again.
    """
    where = place(url, field)
    try:
        found = _resolved(where, time.monotonic() + RESOLVE_SECONDS, resolve)
    except Failed:
        found = []
    refused = [address for address in found if not _may_reach(where, address, allowed)]
    if refused or (not found and not where.is_ordinary and not allowed.names(where.host, where.port)):
        what = (
            "points to a private or reserved network address"
            if where.is_ordinary or any(not is_public(address) for address in refused)
            else "must use https on port 443"
        )
        raise _invalid(
            field,
            f"{what}. Channels reach public https addresses only; whoever runs this installation can list an internal "
            "one in CMERWATCH_ALLOW_PRIVATE_TARGETS",
        )


def send(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    allowed: AllowList,
    deadline: float,
    resolve: Resolve | None = None,
) -> Answer:
    """One request and the beginning of its answer, all before `deadline` (of time.monotonic()). Raises Failed.

    Redirects are answers like any other; proxies and other settings of the environment are not looked at.
    """
    try:
        where = place(url)
    except errors.Invalid as error:
        raise Failed(f"The stored address is not valid: {error.message}") from None
    may_reach = functools.partial(_may_reach, allowed=allowed)
    with _answered(method, url, headers, body, _Guarded(where, may_reach, deadline, resolve)) as response:
        return Answer(response.status, _named(response), _read(response))


def fetch(
    url: str,
    headers: Mapping[str, str],
    cap: int,
    may_reach: MayReach,
    deadline: float,
    resolve: Resolve | None = None,
    limit: int = MAX_URL,
) -> Answer:
    """GET; of an answer 200 the body, whole. Raises Failed: Refused, TooLong, or one that another try may spare.

    All before `deadline` (of time.monotonic()); redirects are answers, and nothing is decompressed.
    """
    with _answered("GET", url, headers, b"", _Guarded(place(url, limit=limit), may_reach, deadline, resolve)) as answer:
        return Answer(answer.status, _named(answer), _read_whole(answer, cap) if answer.status == 200 else b"")


@contextlib.contextmanager
def _answered(
    method: str, url: str, headers: Mapping[str, str], body: bytes, backend: _Guarded
) -> Iterator[httpcore2.Response]:
    with httpcore2.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool:
        try:
            with pool.stream(method, url, headers=list(headers.items()), content=body) as response:
                yield response
        except httpcore2.TimeoutException:
            raise Failed("No answer came in time.") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise Failed(_why(error)) from None


def _named(response: httpcore2.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _read_whole(response: httpcore2.Response, cap: int) -> bytes:
    """What is said to be longer than the cap, or turns out so, is not read on. Raises TooLong."""
    said = _named(response).get("content-length", "")
    if said.isascii() and said.isdigit() and int(said[:20]) > cap:
        raise TooLong
    found = bytearray()
    for chunk in response.iter_stream():
        found += chunk
        if len(found) > cap:
            raise TooLong
    return bytes(found)


def _read(response: httpcore2.Response) -> bytes:
    """Up to the cap; what breaks off after the status was read does not undo the status."""
    found = bytearray()
    try:
        for chunk in response.iter_stream():
            found += chunk
            if len(found) >= READ_CAP:
                break
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        pass
    return bytes(found[:READ_CAP])


class _Guarded(NetworkBackend):
    """Connects to checked addresses only, each operation within the one deadline."""

    def __init__(self, where: Place, may_reach: MayReach, deadline: float, resolve: Resolve | None) -> None:
        self._where, self._may_reach, self._deadline, self._resolve = where, may_reach, deadline, resolve
        self._sockets = SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        found = _resolved(self._where, self._deadline, self._resolve)
        if not all(self._may_reach(self._where, address) for address in found):
            raise Refused(
                "The address is not public, and CMERWATCH_ALLOW_PRIVATE_TARGETS does not list it; nothing was sent."
            )
        problem: Exception = httpcore2.ConnectError()
        for number, address in enumerate(found):
            share = _left(self._deadline) / (len(found) - number)  # a dead first address leaves time for the next
            try:
                stream = self._sockets.connect_tcp(str(address), self._where.port, share)
                return _Hurried(stream, self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem


class _Hurried(NetworkStream):
    """A stream whose every wait ends at one deadline: a byte now and then must not keep it open."""

    def __init__(self, stream: NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        return _Hurried(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _may_reach(where: Place, address: Address, allowed: AllowList) -> bool:
    return (where.is_ordinary and is_public(address)) or allowed.permits(where.host, where.port, address)


def _resolved(where: Place, deadline: float, resolve: Resolve | None) -> list[Address]:
    """Every address of the name. Raises Failed. In a thread of its own, because getaddrinfo knows no timeout."""
    answers: list[Address] = []

    def ask() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            answers.extend((resolve or _ask_system)(where.host, where.port))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    found = list(answers)
    if not found:
        raise Failed("The name of the address could not be resolved.")
    return found


def _ask_system(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    named = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found)
    return [ipaddress.ip_address(text) for text in named]


def _left(deadline: float) -> float:
    """Seconds left; raises a timeout where there are none, because 0 means something else to a socket."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout
    return left


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once: reading the system's certificates takes longer than a request."""
    return ssl.create_default_context()


def _why(error: Exception) -> str:
    """In our words: a library's may quote the address."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "TLS: the certificate could not be verified."
        if isinstance(cause, ssl.SSLError):
            return "TLS: no secure connection could be made."
        if isinstance(cause, ConnectionRefusedError):
            return "The connection was refused."
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore2.ConnectError):
        return "No connection could be made."
    return "The connection broke off, or the answer was not HTTP."


def _ipv6(host: str, field: str) -> str:
    try:
        if "%" in host:  # a zone such as %eth0 means something on one machine only
            raise ValueError
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise _invalid(field, "names a host that is no domain name or address") from None


def _invalid(field: str, what: str) -> errors.Invalid:
    return errors.Invalid(f"`{field}` {what}.", field=field)
