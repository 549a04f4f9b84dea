"""Sends one test event through a running installation and says which step fails; knows only the HTTP API."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import struct
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cmerwatch import shapes

SIDE = 96
CHECK_SECONDS = 60.0


class _Here(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer to report: followed, it would carry the key to wherever it points."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


_opener = urllib.request.build_opener(_Here)


class Failed(Exception):
    """A step did not work; the message says what was seen and what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    said: str
    is_ok: bool = True


def examine(url: str, api_key: str, check_seconds: float = CHECK_SECONDS) -> Iterator[Step]:
    """Each step as it ends; nothing after the first that fails."""
    visit = _Visit(url.rstrip("/"), api_key, check_seconds)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("reach the server", visit.reach),
        ("ask whether it is ready", visit.ask_ready),
        ("send a test event", visit.send),
        ("read it back", visit.read),
        ("have it checked", visit.follow),
        ("have it decided", visit.decide),
    ]
    for name, step in steps:
        try:
            yield Step(name, step())
        except Failed as failure:
            yield Step(name, str(failure), is_ok=False)
            return


class _Visit:
    def __init__(self, url: str, api_key: str, check_seconds: float) -> None:
        self.url, self.api_key, self.check_seconds = url, api_key, check_seconds
        self.event_id = ""
        self.sent_at = 0.0

    def reach(self) -> str:
        self._call("GET", "/healthz", expect=200)
        return self.url

    def ask_ready(self) -> str:
        self._call("GET", "/readyz", expect=200)
        return "database and clock are well"

    def send(self) -> str:
        # Without a confidence it is in no CMER, and as a late one in no alert's window: a test is nobody's output.
        earlier = dt.datetime.now(dt.UTC) - 2 * shapes.LATE_AFTER
        event = {
            "event_id": f"doctor-{uuid.uuid4()}",
            "occurred_at": earlier.isoformat(),
            "endpoint": shapes.DOCTOR,
            "prompt_type": "doctor",
            "prompt": "What is this?",
            "output": "A red circle.",
            "images": [{"data": base64.b64encode(red_circle()).decode()}],
        }
        self.sent_at = time.monotonic()
        answer = self._call("POST", "/v1/events", event, expect=202)
        self.event_id = answer["results"][0]["id"]
        return f"event {self.event_id}"

    def read(self) -> str:
        return f"state {self._event()['state']}"

    def follow(self) -> str:
        while (event := self._event())["state"] == "waiting":
            if time.monotonic() - self.sent_at > self.check_seconds:
                raise Failed(
                    f"still waiting after {self.check_seconds:g} s: no worker takes events. "
                    "Start one (cmerwatch worker) or look into its log."
                )
            time.sleep(0.1)
        took = time.monotonic() - self.sent_at
        outcome = (event.get("check") or {}).get("outcome")
        if event["state"] != "checked" or outcome not in ("scored", "unscorable"):
            raise Failed(f"state {event['state']}, outcome {outcome}: the worker's log names the reason.")
        return f"{outcome} by {event['check']['checker']} after {took:.1f} s"

    def decide(self) -> str:
        """A policy that cannot decide is a fault to mend; a checker that has to calibrate first is none."""
        event = self._event()
        if event["decision"]:
            return f"by policy {event['decision']['policy_version']}"
        why = event.get("undecided")
        if why and event["check"]["score"] is not None:
            raise Failed(f"scored, but undecided: {why} (Settings, Policies).")
        return f"not yet: {why or 'there is nothing to decide in it'}"

    def _event(self) -> dict[str, Any]:
        return self._call("GET", f"/v1/events/{self.event_id}", expect=200)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, *, expect: int) -> dict[str, Any]:
        if not self.url.startswith(("http://", "https://")):
            raise Failed(f"{self.url!r} is no address of a server; it begins with http:// or https://")
        try:
            request = urllib.request.Request(
                self.url + path,
                method=method,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"},
            )
            with _opener.open(request, timeout=10) as reply:
                status, text = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path} answered {error.code}: {_reason(error.read())}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Failed(f"{method} {self.url}{path} got no answer: {getattr(error, 'reason', error)}") from None
        if status != expect:
            raise Failed(f"{method} {path} answered {status} instead of {expect}. Is this a cmerwatch server?")
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            raise Failed(f"{method} {path} did not answer JSON. Is this a cmerwatch server?") from None
        return answer


def _reason(text: bytes) -> str:
    """The message of the API's error shape, else the beginning of what came instead, in one line."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ascii(text[:200].decode(errors="replace"))


def red_circle() -> bytes:
    """A PNG of a red circle on white."""
    middle, radius = SIDE / 2, SIDE / 3
    rows = bytearray()
    for y in range(SIDE):
        rows.append(0)  # no filter on this row
        for x in range(SIDE):
            is_inside = (x - middle) ** 2 + (y - middle) ** 2 < radius**2
            rows += b"\xd0\x20\x20" if is_inside else b"\xff\xff\xff"
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(rows)))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
