"""A server on the loopback interface that speaks the Chat Completions protocol, and can be told to misbehave."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

Json = dict[str, Any]
C = TypeVar("C")


@dataclass
class Say:
    """One choice. `tokens` spell the text; `logprobs` are as many."""

    tokens: tuple[str, ...] = ("A", " red", " circle", ".")
    logprobs: tuple[float, ...] = (-0.25, -0.5, -0.125, -0.0625)
    refusal: str | None = None
    tool_call: bool = False
    finish_reason: str | None = "stop"

    @property
    def text(self) -> str | None:
        return None if self.refusal or self.tool_call else "".join(self.tokens)


@dataclass
class Behaviour:
    says: list[Say] = field(default_factory=lambda: [Say()])
    logprobs: str = "given"  # or "ignored", "refused"
    refused_with: int = 400
    model: str = "toy-vlm-2026-11-01"
    break_after: int | None = None  # chunks, then the connection breaks
    hang_after: int | None = None  # chunks, then nothing more comes
    broken_body: Json | None = None  # answered instead, with 200
    status: int = 200  # another one is answered with an error body


class ModelServer:
    def __init__(self) -> None:
        self.requests: list[Json] = []
        self.paths: list[str] = []
        self.behaviour = Behaviour()
        self._clients: list[Any] = []
        self.hanging = threading.Event()  # set once a stream hangs
        self._release = threading.Event()
        owner = self

        class Handler(_Handler):
            state = owner

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def closing(self, client: C) -> C:
        """The client, to be closed when the server stops."""
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self._release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def hang(self) -> None:
        self.hanging.set()
        self._release.wait(60)


class _Handler(http.server.BaseHTTPRequestHandler):
    state: ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state, behaviour = self.state, self.state.behaviour
        state.requests.append(body)
        state.paths.append(self.path)
        if behaviour.logprobs == "refused" and body.get("logprobs"):
            message = "This model does not support the 'logprobs' parameter."
            self._answer(
                behaviour.refused_with,
                {"error": {"message": message, "type": "invalid_request_error", "param": "logprobs"}},
            )
        elif behaviour.status != 200:
            self._answer(behaviour.status, {"error": {"message": "no", "type": "server_error"}})
        elif body.get("stream"):
            self._stream(behaviour, body)
        else:
            self._answer(200, behaviour.broken_body or _completion(behaviour, body))

    def _answer(self, status: int, value: Json) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, behaviour: Behaviour, body: Json) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for place, chunk in enumerate(_chunks(behaviour, body)):
            if place == behaviour.break_after:
                self.close_connection = True
                return
            if place == behaviour.hang_after:
                self.state.hang()
                self.close_connection = True
                return
            self._write(f"data: {json.dumps(chunk)}\n\n")
        self._write("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _write(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client may hang up in the middle of a stream
            super().handle()

    def log_message(self, format: str, *args: object) -> None: ...


def _gives_logprobs(behaviour: Behaviour, body: Json) -> bool:
    return bool(body.get("logprobs")) and behaviour.logprobs == "given"


def _entries(say: Say) -> list[Json]:
    return [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in zip(say.tokens, say.logprobs, strict=True)
    ]


def _logprobs(say: Say, entries: list[Json]) -> Json:
    return {"content": None, "refusal": entries} if say.refusal else {"content": entries, "refusal": None}


def _usage(says: list[Say]) -> Json:
    count = sum(len(say.tokens) for say in says)
    return {"prompt_tokens": 100, "completion_tokens": count, "total_tokens": 100 + count}


def _completion(behaviour: Behaviour, body: Json) -> Json:
    choices = []
    for index, say in enumerate(behaviour.says):
        message: Json = {"role": "assistant", "content": say.text, "refusal": say.refusal}
        if say.tool_call:
            call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            message["tool_calls"] = [call]
        logprobs = _logprobs(say, _entries(say)) if _gives_logprobs(behaviour, body) else None
        choices.append({"index": index, "message": message, "finish_reason": say.finish_reason, "logprobs": logprobs})
    return _head(behaviour, "chat.completion") | {"choices": choices, "usage": _usage(behaviour.says)}


def _head(behaviour: Behaviour, kind: str) -> Json:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": 1_790_000_000,
        "model": behaviour.model,
        "system_fingerprint": "fp-1",
    }


def _chunks(behaviour: Behaviour, body: Json) -> Iterator[Json]:
    """The choices take turns; the first chunk after the roles holds two tokens, as servers send them at times."""
    head = _head(behaviour, "chat.completion.chunk")

    def chunk(index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        return head | {"choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

    says = behaviour.says
    for index, _ in enumerate(says):
        yield chunk(index, {"role": "assistant", "content": ""})
    longest = max(len(say.tokens) for say in says)
    for start, end in [(0, 2), *((place, place + 1) for place in range(2, longest))]:
        for index, say in enumerate(says):
            text = "".join(say.tokens[start:end])
            given = _gives_logprobs(behaviour, body)
            logprobs = _logprobs(say, _entries(say)[start:end]) if given else None
            if say.tool_call:
                function = {"name": "look", "arguments": ""}
                yield chunk(index, {"tool_calls": [{"index": 0, "id": "call-1", "function": function}]})
            elif text:
                yield chunk(index, {"refusal" if say.refusal else "content": text}, logprobs)
    for index, say in enumerate(says):
        if say.finish_reason:
            yield chunk(index, {}, finish=say.finish_reason)
    if (body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _usage(says)}
