"""A server on the loopback interface that speaks the ingest contract, and can be told to misbehave."""

import contextlib
import email
import email.policy
import hashlib
import http.server
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes
    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Reply:
    """A scripted answer to the next POST /v1/events."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    before_reading: bool = False  # answers and hangs up without taking the body
    hang_up: bool = False  # takes the body and closes without an answer


class LoopbackServer:
    """Stores events by id and images by hash; `script` holds answers to give instead, first come first."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.events: dict[str, dict[str, Any]] = {}
        self.images: dict[str, bytes] = {}
        self.script: deque[Reply] = deque()
        self.max_body = 32 << 20
        self.reject: dict[str, str] = {}  # event_id -> error code
        self.says = "quotes {output}"  # the sentence of a rejection
        self.arrived = threading.Condition()
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def posts(self, path: str = "/v1/events") -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def wait_for_posts(self, n: int, timeout: float = 10.0) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts()) >= n, timeout), f"fewer than {n} posts arrived"

    def note(self, request: Request) -> None:
        with self.arrived:
            self.requests.append(request)
            self.arrived.notify_all()

    def accept(self, request: Request) -> Reply:
        if request.path == "/v1/images/missing":
            asked = json.loads(request.body)["sha256"]
            return Reply(200, {"missing": [sha256 for sha256 in asked if sha256 not in self.images]})
        if len(request.body) > self.max_body:
            return Reply(413, {"error": {"code": "too_large", "message": "", "details": {}}})
        for name, data in request.images.items():
            assert hashlib.sha256(data).hexdigest() == name
        self.images.update(request.images)
        return Reply(202, {"results": [self._result(event) for event in request.events]})

    def _result(self, event: dict[str, Any]) -> dict[str, Any]:
        name = event["event_id"]
        code = self.reject.get(name) or self._unknown_image(event)
        if code:
            error = {"code": code, "message": self.says.format(**event), "details": {"field": "images"}}
            return {"id": name, "status": "rejected", "error": error}
        status = "duplicate" if name in self.events else "accepted"
        self.events[name] = event
        return {"id": name, "status": status}

    def _unknown_image(self, event: dict[str, Any]) -> str:
        known = all("url" in image or image["sha256"] in self.images for image in event["images"])
        return "" if known else "image_unknown"


class _Handler(http.server.BaseHTTPRequestHandler):
    server_state: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        state = self.server_state
        scripted = state.script.popleft() if state.script and self.path == "/v1/events" else None
        if scripted and scripted.before_reading:
            state.note(Request(self.path, dict(self.headers), b""))
            self.close_connection = True
            self._answer(scripted)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        if self.path == "/v1/events":
            request.events, request.images = parse_multipart(self.headers["Content-Type"], body)
        reply = scripted or state.accept(request)
        state.note(request)
        if reply.hang_up:
            self.close_connection = True
            return
        self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        body = json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that ended in the middle, as killed processes do
            super().handle()

    def log_message(self, format: str, *args: object) -> None: ...


def parse_multipart(content_type: str, body: bytes) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """(events, images by sha256); the standard library's MIME parser, not the SDK's own idea of the format."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    events: list[dict[str, Any]] = []
    images: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if name == "events":
            assert part.get_content_type() == "application/json"
            events = json.loads(content)["events"]
        else:
            assert part.get_filename() == name, "image parts carry a filename"
            images[name.removeprefix("sha256:")] = content
    return events, images
