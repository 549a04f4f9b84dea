"""Bodies are bounded: refused by their stated length before a byte is read, or at the first byte too many."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fastapi
import pytest
import uvicorn
from fastapi.testclient import TestClient

from cmerwatch import settings
from cmerwatch_web import security
from cmerwatch_web.app import create_app
from tests.stack import wait_until
from tests.web.wire import Headers, event

Message = dict[str, Any]
LIMIT = 32 << 20


def asked(
    app: Callable[..., Awaitable[None]],
    headers: dict[str, str],
    receive: Callable[[], Awaitable[Message]],
    path: str = "/v1/events",
) -> tuple[int, dict[str, Any]]:
    """One POST as a server hands it over; returns the status and the JSON of the answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


async def unread() -> Message:
    raise AssertionError("the body was read")


@pytest.mark.parametrize("length", [LIMIT + 1, 10**12, 10**30])
def test_a_body_over_the_limit_is_refused_before_a_byte_is_read(app: fastapi.FastAPI, length: int) -> None:
    status, body = asked(app, {"Content-Length": str(length)}, unread)
    assert status == 413
    assert body["error"]["code"] == "too_large"
    assert str(LIMIT) in body["error"]["message"]
    assert body["error"]["details"] == {"field": "body", "limit": LIMIT}


def test_a_body_of_unstated_length_is_refused_at_the_byte_too_many(app: fastapi.FastAPI, ingest: Headers) -> None:
    read = 0

    async def endless() -> Message:
        nonlocal read
        read += 1 << 20
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}

    for headers in ({}, {"Content-Type": "multipart/form-data; boundary=x"}):
        read = 0
        status, body = asked(app, ingest | headers, endless)
        # A preamble that is no part of a multipart body is refused at once, spaces before JSON only by the limit.
        assert (status, body["error"]["code"]) in ((413, "too_large"), (422, "invalid"))
        assert read <= LIMIT + (1 << 20)


def test_a_multipart_part_without_end_is_refused_at_the_byte_too_many(app: fastapi.FastAPI, ingest: Headers) -> None:
    chunks = iter([b'--x\r\nContent-Disposition: form-data; name="events"\r\n\r\n'])
    read = 0

    async def endless() -> Message:
        nonlocal read
        chunk = next(chunks, b"x" * (1 << 20))
        read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    status, body = asked(app, ingest | {"Content-Type": "multipart/form-data; boundary=x"}, endless)
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert read <= LIMIT + (2 << 20)


def test_without_a_key_the_body_is_not_read(app: fastapi.FastAPI) -> None:
    status, body = asked(app, {"Content-Length": "1000"}, unread)
    assert (status, body["error"]["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "٣"])
def test_a_length_that_is_no_number_is_refused(app: fastapi.FastAPI, length: str) -> None:
    status, body = asked(app, {"Content-Length": length}, unread)
    assert (status, body["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_a_compressed_body_is_refused_before_it_is_read(app: fastapi.FastAPI, encoding: str) -> None:
    status, body = asked(app, {"Content-Encoding": encoding}, unread)
    assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
    assert "uncompressed" in body["error"]["message"]


def test_a_body_that_never_ends_is_given_up(
    app: fastapi.FastAPI, ingest: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.05)

    async def silent() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    status, body = asked(app, ingest, silent)
    assert (status, body["error"]["code"]) == (408, "too_slow")


def test_bodies_in_hand_are_bounded_and_let_go(ingest: Headers, app: fastapi.FastAPI) -> None:
    limits = security.BodyLimits(app.middleware_stack or app, limit=1000, buffered=1000)
    full = limits.free

    async def half_then_leave() -> Message:
        assert limits.free >= 0
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    assert asked(limits, ingest, half_then_leave)[0] == 413  # 1200 bytes are over its own limit
    assert limits.free == full
    limits.free = 500  # as if another request held the rest
    status, body = asked(limits, ingest, half_then_leave)
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert limits.free == 500


@contextmanager
def served(app: fastapi.FastAPI) -> Iterator[int]:
    """The app behind a real server on a free port, without its start; yields the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_real_server_refuses_a_large_body_while_it_is_still_being_sent(
    configured: Callable[..., settings.Settings],
) -> None:
    with served(create_app(configured())) as port, socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 1000)
        with client.makefile("rb") as answered:
            answer = answered.read()  # to the end: the server hangs up instead of reading 100 GB
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"too_large"' in answer


def test_health_answers_while_a_large_body_trickles_in(configured: Callable[..., settings.Settings]) -> None:
    with served(create_app(configured())) as port, socket.create_connection(("127.0.0.1", port), 10) as slow:
        slow.sendall(b"PUT /v1/images/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        with socket.create_connection(("127.0.0.1", port), 10) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_at_the_limit_is_read(
    configured: Callable[..., settings.Settings], session: Any, ingest: Headers
) -> None:
    small = TestClient(create_app(configured(max_body_bytes=4096)))
    body = json.dumps(event()).encode()
    assert small.post("/v1/events", content=body.ljust(4096), headers=ingest).status_code == 202
    assert small.post("/v1/events", content=body.ljust(4097), headers=ingest).status_code == 413
