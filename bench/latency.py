"""Seconds from POST to checked-and-visible on an idle one-machine stack with the demo checker.

    python bench/latency.py [--events 100] [--url URL --api-key KEY]

Starts `cmerwatch up` in a folder of its own unless a running stack is named. Every event brings a new picture, so that
nothing is remembered, and waits for an idle stack. Ends with 1 when the median is over the target.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from toy_vlm import captions, scenes  # noqa: E402

TARGET_SECONDS = 1.0
LOOK_SECONDS = 0.005
LIMIT_SECONDS = 30.0


@contextlib.contextmanager
def own_stack() -> Iterator[tuple[str, str]]:
    """URL and key of a fresh stack, gone afterwards."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "worker", "web"))
    environment = os.environ | {"CMERWATCH_CHECKER": "demo", "PYTHONPATH": paths}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cmerwatch.cli", "up", "--json", "--no-browser", "--data-dir", folder]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield ready["url"], ready["api_key"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Client:
    """One connection, as an app's SDK keeps it."""

    def __init__(self, url: str, api_key: str) -> None:
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=30)
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path} answered {answer.status}: {text[:300]!r}")
        return json.loads(text)


def new_event(rng: random.Random) -> dict[str, Any]:
    scene = scenes.sample(rng)
    out = io.BytesIO()
    scenes.render(scene).save(out, "PNG")
    return {
        "event_id": f"latency-{uuid.uuid4()}",
        "endpoint": "/bench",
        "prompt_type": "identify",
        "prompt": captions.PROMPTS["identify"],
        "output": captions.answer(scene, "identify"),
        "confidence": 0.9,
        "images": [{"data": b64encode(out.getvalue()).decode()}],
    }


def one(client: Client, rng: random.Random) -> float:
    """Seconds until GET shows the check."""
    event = new_event(rng)
    started = time.perf_counter()
    path = "/v1/events/" + client.call("POST", "/v1/events", event)["results"][0]["id"]
    while client.call("GET", path)["state"] != "checked":
        if time.perf_counter() - started > LIMIT_SECONDS:
            raise SystemExit(f"{path} was not checked within {LIMIT_SECONDS} s")
        time.sleep(LOOK_SECONDS)
    return time.perf_counter() - started


def measure(url: str, api_key: str, n: int) -> int:
    client, rng = Client(url, api_key), random.Random(5)
    one(client, rng)  # connections and caches, as after a second of use
    seconds = []
    for _ in range(n):
        time.sleep(rng.uniform(0.1, 0.4))  # an idle stack, and no beat with its own polling
        seconds.append(one(client, rng))
    cuts = statistics.quantiles(seconds, n=20)
    p50, p95 = statistics.median(seconds), cuts[18]
    print(f"POST to checked and visible, idle, {n} events: p50 {p50:.3f} s, p95 {p95:.3f} s, max {max(seconds):.3f} s")
    print(f"target: p50 <= {TARGET_SECONDS} s")
    return 0 if p50 <= TARGET_SECONDS else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--url")
    parser.add_argument("--api-key")
    options = parser.parse_args()
    if options.url:
        return measure(options.url, options.api_key, options.events)
    with own_stack() as (url, api_key):
        return measure(url, api_key, options.events)


if __name__ == "__main__":
    sys.exit(main())
