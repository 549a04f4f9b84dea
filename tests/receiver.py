"""A real HTTP server on loopback that takes what channels send, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Got:
    """One request as it arrived; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answer` decides what a request gets: it is handed the handler, with the request read."""

    port: int = 0
    got: list[Got] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler, Got], None] = field(default=lambda handler, got: reply(handler, 204))
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def answering(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler, Got], None]:
    return lambda handler, got: reply(handler, status, body, **headers)


@contextlib.contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Served until the block ends; `closing` is set first, so that an answer that hangs can end."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                return  # its sender was killed while it wrote
            got = Got(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            made.got.append(got)
            with contextlib.suppress(OSError):  # the sender may have given up or been killed
                made.answer(self, got)

        def do_GET(self) -> None:
            got = Got(self.path, {name.lower(): value for name, value in self.headers.items()}, b"")
            made.got.append(got)
            with contextlib.suppress(OSError):
                made.answer(self, got)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # many senders connect at once, and a full queue makes one wait a second

        def handle_error(self, request: object, client_address: object) -> None:
            """A sender that goes away is what these tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def refusing_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
