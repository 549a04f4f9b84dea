"""What the SDK costs the app: time on the caller's thread, memory without a server, time to exit.

Twice: for `record`, and for an OpenAI client given to `wrap`, whose own work is replaced by a ready answer, so that the
time is the hook's alone.

    python bench/sdk_hook.py

Prints one line per figure with its target and ends with 1 when one is missed. Linux only (reads /proc).
"""

import base64
import functools
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

import openai  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

import cmerwatch  # noqa: E402  (the checkout, not an installed copy)
from cmerwatch.sdk import api  # noqa: E402
from cmerwatch.sdk.hooks import calls, chat, streams  # noqa: E402

PICTURE_BYTES = 200 << 10
QUEUE_BYTES = 64 << 20
CALLS = 2000
TOKENS = 60
PICTURES = 400


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


# Prepares what the app has in its hands before a call; what comes back makes the call and answers the seconds it took
# on the caller's thread.
Call = Callable[[bytes], Callable[[], float]]


def recording(client: cmerwatch.Client) -> Call:
    return lambda picture: functools.partial(record_call, client, picture)


def record_call(client: cmerwatch.Client, picture: bytes) -> float:
    logprobs = [-0.1] * TOKENS
    tokens = ["token"] * TOKENS
    started = time.perf_counter()
    client.record(
        image=picture,
        prompt="Describe the scene.",
        output="A red circle above a blue square.",
        endpoint="/describe",
        customer="acme",
        model="toy",
        logprobs=logprobs,
        tokens=tokens,
    )
    return time.perf_counter() - started


def completion() -> ChatCompletion:
    """An answer of 60 tokens as a server sends it, made anew for each call."""
    said = [{"token": "token ", "logprob": -0.1, "bytes": [116, 111, 107], "top_logprobs": []}] * TOKENS
    message = {"role": "assistant", "content": "token " * TOKENS, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": said}}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "toy"}
    return ChatCompletion.model_validate(head | {"choices": [choice]})


@functools.lru_cache(maxsize=PICTURES)  # kept, as the pictures are: whose memory it is to free is not measured
def body(picture: bytes) -> dict[str, object]:
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    parts = [{"type": "text", "text": "Describe the scene."}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "toy", "messages": [{"role": "user", "content": parts}], "logprobs": True}


def wrapping(client: cmerwatch.Client) -> Call:
    """Replaces the process's client by `client`. As in a real call the answer is parsed between the two halves of the
    hook; that time is the model's, and taken off."""
    api._client = client
    model = openai.OpenAI(api_key="key", base_url="http://127.0.0.1:9/v1")
    native: list[float] = []

    def post(path: str, **options: object) -> ChatCompletion:
        started = time.perf_counter()
        answer = completion()
        native.append(time.perf_counter() - started)
        return answer

    model.post = post  # type: ignore[method-assign, assignment]
    cmerwatch.wrap(model, endpoint="/describe", customer="acme")

    def call(request: dict[str, object]) -> float:
        started = time.perf_counter()
        model.post("/chat/completions", body=request, cast_to=ChatCompletion)
        return time.perf_counter() - started - native.pop()

    return lambda picture: functools.partial(call, body(picture))


def measure(call: Call, pace: float) -> list[float]:
    """pace: seconds between calls on an open schedule; 0 is back to back."""
    # Every picture differs, so that each is hashed and uploaded as in a real app.
    pictures = [n.to_bytes(4, "big") * (PICTURE_BYTES // 4) for n in range(CALLS if pace else PICTURES)]
    took, start = [], time.perf_counter()
    for n in range(CALLS):
        ready = call(pictures[n % len(pictures)])
        wait = start + n * pace - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        took.append(ready())
    return took


def per_chunk() -> list[float]:
    """Seconds that each chunk of a stream takes longer on its way through the hook."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "toy"}
    token = {"token": "token ", "logprob": -0.1, "bytes": [116], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": "token "}, "logprobs": {"content": [token]}, "finish_reason": None}
    chunks = [ChatCompletionChunk.model_validate(head | {"choices": [choice]}) for _ in range(CALLS)]
    recorder = cmerwatch.Client(enabled=False)
    settings = calls.Settings(lambda: recorder, {}, False)
    reading = streams.Reading(calls.Call(settings, chat.Question([], ""), {}, "not_requested"))
    tap, plain, took = streams.Tap(iter(chunks), reading), iter(chunks), []
    for _ in range(CALLS):
        started = time.perf_counter()
        next(tap)
        between = time.perf_counter()
        next(plain)
        took.append(between - started - (time.perf_counter() - between))
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


def down(kind: str) -> None:
    """Runs in a process of its own: 2 000 calls with no server; prints the peak growth and what was kept."""
    client = cmerwatch.Client("key", refused_address())
    call = KINDS[kind](client)
    before = rss_mib()
    for n in range(CALLS):
        call(n.to_bytes(4, "big") * (PICTURE_BYTES // 4))()
        body.cache_clear()
    stats = client.stats()
    print(json.dumps({"growth": rss_mib() - before, "kept": stats.queued_events, "dropped": stats.dropped}))
    sys.stdout.flush()


def leave(kind: str, url: str) -> None:
    """Runs in a process of its own, to be timed from its last line on."""
    call = KINDS[kind](cmerwatch.Client("key", url))
    for n in range(50):
        call(b"%d" % n * 50_000)()
    time.sleep(0.5)
    print("end", flush=True)


def exit_seconds(kind: str, url: str) -> float:
    """From the last statement of the program to the end of the process."""
    process = subprocess.Popen(
        [sys.executable, __file__, "leave", kind, url],
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


KINDS: dict[str, Callable[[cmerwatch.Client], Call]] = {"record": recording, "wrap": wrapping}


def hook_figures(kind: str) -> Iterator[bool]:
    runs: list[tuple[str, Callable[[], str], float]] = [
        ("paced, 200 calls/s, server up", lambda: url, 0.005),
        ("back to back, server up", lambda: url, 0.0),
        ("back to back, server down", refused_address, 0.0),
    ]
    with ingest_process() as url:
        for name, address, pace in runs:
            client = cmerwatch.Client("key", address())
            p50, p99 = quantiles(measure(KINDS[kind](client), pace))
            yield report(f"{kind} p50, {name}", p50, 50, "us")
            yield report(f"{kind} p99, {name}", p99, 250, "us")
            client.flush(30 if name.endswith("up") else 0)
            stats = client.stats()
            print(f"    sent {stats.sent}, dropped {stats.dropped}, threads {threading.active_count()}")
            client.shutdown(0)


def outage_figures(kind: str) -> Iterator[bool]:
    command = [sys.executable, __file__, "down", kind]
    result = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    name = f"{kind}, peak memory growth, 2000 calls, server down"
    yield report(name, result["growth"], QUEUE_BYTES / 2**20 + 32, "MiB")
    print(f"    kept {result['kept']}, dropped {result['dropped']}")
    yield report(f"{kind}, exit, connection refused", exit_seconds(kind, refused_address()), 2.5, "s")
    for accepts, state in ((True, "accepts and never answers"), (False, "never accepts")):
        with black_hole(accepts) as url:
            yield report(f"{kind}, exit, server {state}", exit_seconds(kind, url), 2.5, "s")


def main() -> int:
    held = [one for kind in KINDS for one in (*hook_figures(kind), *outage_figures(kind))]
    p50, p99 = quantiles(per_chunk())
    print(f"for comparison: a chunk of a stream takes {p50:.1f} us longer (p99 {p99:.1f} us)")
    return 0 if all(held) else 1


if __name__ == "__main__":
    job, *given = sys.argv[1:] or [""]
    jobs: dict[str, Callable[..., object]] = {"serve": serve, "down": down, "leave": leave}
    sys.exit(jobs[job](*given) if job else main())  # type: ignore[arg-type]
