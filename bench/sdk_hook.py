"""What the SDK costs the app: time on the caller's thread, memory without a server, time to exit.

    python bench/sdk_hook.py

Prints one line per figure with its target and ends with 1 when one is missed. Linux only (reads /proc).
"""

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cmerwatch  # noqa: E402  (the checkout, not an installed copy)

PICTURE_BYTES = 200 << 10
QUEUE_BYTES = 64 << 20
CALLS = 2000


class Ingest(BaseHTTPRequestHandler):
    """Takes whatever comes, as fast as Python can; runs in a process of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        events = body.count(b'"event_id"')
        answer = json.dumps({"results": [{"status": "accepted"}] * events}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def ingest_process() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ingest)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


def one_call(client: cmerwatch.Client, n: int, pictures: list[bytes]) -> float:
    """Seconds on the caller's thread."""
    logprobs = [-0.1] * 60
    tokens = ["token"] * 60
    started = time.perf_counter()
    client.record(
        image=pictures[n % len(pictures)],
        prompt="Describe the scene.",
        output="A red circle above a blue square.",
        endpoint="/describe",
        customer="acme",
        model="toy",
        logprobs=logprobs,
        tokens=tokens,
    )
    return time.perf_counter() - started


def measure(client: cmerwatch.Client, pace: float) -> list[float]:
    """pace: seconds between calls on an open schedule; 0 is back to back."""
    # Every picture differs, so that each is hashed and uploaded as in a real app.
    pictures = [n.to_bytes(4, "big") * (PICTURE_BYTES // 4) for n in range(CALLS if pace else 400)]
    took, start = [], time.perf_counter()
    for n in range(CALLS):
        wait = start + n * pace - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        took.append(one_call(client, n, pictures))
    return took


def quantiles(seconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return cuts[49] * 1e6, cuts[98] * 1e6


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):  # the peak, not what is left at the end
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def refused_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def down() -> None:
    """Runs in a process of its own: 2 000 calls with no server; prints the peak growth and what was kept."""
    client = cmerwatch.Client("key", refused_address())
    before = rss_mib()
    for n in range(CALLS):
        one_call(client, n, [n.to_bytes(4, "big") * (PICTURE_BYTES // 4)] * (n + 1))
    stats = client.stats()
    print(json.dumps({"growth": rss_mib() - before, "kept": stats.queued_events, "dropped": stats.dropped}))
    sys.stdout.flush()


EXIT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import cmerwatch
cmerwatch.init("key", sys.argv[2])
for n in range(50):
    cmerwatch.record(image=b"%d" % n * 50_000, prompt="p", output="o", endpoint="/e")
time.sleep(0.5)
print('end', flush=True)
"""


def exit_seconds(url: str) -> float:
    """From the last statement of the program to the end of the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXIT, str(ROOT), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    ended = time.monotonic()
    process.wait(60)
    return time.monotonic() - ended


@contextmanager
def black_hole(accepts: bool) -> Iterator[str]:
    """A listening socket that never answers; without `accepts` its backlog is full and connecting hangs too."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128 if accepts else 0)
        fillers = [socket.socket() for _ in range(0 if accepts else 4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for filler in fillers:
            filler.close()


def report(name: str, value: float, limit: float, unit: str) -> bool:
    print(f"{name:58} {value:10.1f} {unit:4} (target <= {limit:g}) {'ok' if value <= limit else 'MISSED'}")
    return value <= limit


def hook_figures() -> Iterator[bool]:
    runs: list[tuple[str, Callable[[], str], float]] = [
        ("paced, 200 calls/s, server up", lambda: url, 0.005),
        ("back to back, server up", lambda: url, 0.0),
        ("back to back, server down", refused_address, 0.0),
    ]
    with ingest_process() as url:
        for name, address, pace in runs:
            client = cmerwatch.Client("key", address())
            p50, p99 = quantiles(measure(client, pace))
            yield report(f"hook p50, {name}", p50, 50, "us")
            yield report(f"hook p99, {name}", p99, 250, "us")
            client.flush(30 if name.endswith("up") else 0)
            stats = client.stats()
            print(f"    sent {stats.sent}, dropped {stats.dropped}, threads {threading.active_count()}")
            client.shutdown(0)


def outage_figures() -> Iterator[bool]:
    result = json.loads(subprocess.check_output([sys.executable, __file__, "down"], stderr=subprocess.DEVNULL))
    yield report("peak memory growth, 2000 calls, server down", result["growth"], QUEUE_BYTES / 2**20 + 32, "MiB")
    print(f"    kept {result['kept']}, dropped {result['dropped']}")
    yield report("exit, connection refused", exit_seconds(refused_address()), 2.5, "s")
    for accepts, name in ((True, "accepts and never answers"), (False, "never accepts")):
        with black_hole(accepts) as url:
            yield report(f"exit, server {name}", exit_seconds(url), 2.5, "s")


if __name__ == "__main__":
    job = sys.argv[1] if len(sys.argv) > 1 else ""
    if job == "serve":
        serve()
    elif job == "down":
        down()
    else:
        sys.exit(0 if all([*hook_figures(), *outage_figures()]) else 1)
