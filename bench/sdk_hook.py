"""What the SDK costs the app: time on the caller's thread, memory without a server, time to exit.

Twice: for `record`, and for an OpenAI client given to `wrap`, whose own work is replaced by a ready answer.

The hook alone is the wrapped call minus the bare one. Of both the time spent inside of the library's own `post` (which
parses an answer of 60 tokens) is taken off call by call, by two readings of the clock in it; the median of what is left
of the bare calls, which is the readings themselves, is then taken off the wrapped ones. Rounds of both alternate, under
the same pacing. Beside it stand an empty wrapper, measured in the same way: what any wrapper costs on this machine just
now; and the whole call, wrapped and bare, for what the sending thread takes from the app elsewhere.

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import openai  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

import cmerwatch  # noqa: E402  (the checkout, not an installed copy)
from cmerwatch.sdk import api  # noqa: E402
from cmerwatch.sdk.hooks import calls, streams  # noqa: E402
from cmerwatch.sdk.hooks import openai as openai_hook  # noqa: E402

PICTURE_BYTES = 200 << 10
QUEUE_BYTES = 64 << 20
CALLS = 2000
ROUNDS = 4  # in which the calls of a figure are made, with rounds of bare ones between
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


class Took(NamedTuple):
    """Seconds of one call: all of it, and without what the library itself did."""

    whole: float
    own: float


# Prepares what the app has in its hands before a call; what comes back makes the call.
Call = Callable[[bytes], Callable[[], Took]]


def recording(record: Callable[..., object]) -> Call:
    def prepare(picture: bytes) -> Callable[[], Took]:
        return functools.partial(record_call, record, picture, [-0.1] * TOKENS, ["token"] * TOKENS)

    return prepare


def record_call(record: Callable[..., object], picture: bytes, logprobs: list[float], tokens: list[str]) -> Took:
    started = time.perf_counter()
    record(
        image=picture,
        prompt="Describe the scene.",
        output="A red circle above a blue square.",
        endpoint="/describe",
        customer="acme",
        model="toy",
        logprobs=logprobs,
        tokens=tokens,
    )
    took = time.perf_counter() - started
    return Took(took, took)


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


class Model:
    """A client of the `openai` package that answers by itself."""

    def __init__(self) -> None:
        self.client = openai.OpenAI(api_key="key", base_url="http://127.0.0.1:9/v1")
        self.client.post = self.answer  # type: ignore[method-assign, assignment]
        self._begun = self._ended = 0.0

    def answer(self, path: str, **options: object) -> ChatCompletion:
        self._begun = time.perf_counter()
        answer = completion()
        self._ended = time.perf_counter()
        return answer

    def call(self, request: dict[str, object]) -> Took:
        started = time.perf_counter()
        answer = self.client.post("/chat/completions", body=request, cast_to=ChatCompletion)
        whole = time.perf_counter() - started
        del answer  # now: an app keeps it for longer than the call
        return Took(whole, whole - (self._ended - self._begun))

    def prepare(self, picture: bytes) -> Callable[[], Took]:
        return functools.partial(self.call, body(picture))


def wrapping(client: cmerwatch.Client) -> Call:
    """Replaces the process's client by `client`."""
    api._client = client
    model = Model()
    cmerwatch.wrap(model.client, endpoint="/describe", customer="acme")
    return model.prepare


def empty_wrapper() -> Call:
    model = Model()
    native = model.client.post

    @functools.wraps(native)
    def post(*given: Any, **options: Any) -> Any:
        return native(*given, **options)

    model.client.post = post  # type: ignore[method-assign]
    return model.prepare


def nothing(**given: object) -> None: ...


def nothing_wrapped(**given: object) -> None:
    nothing(**given)


def measure(call: Call, calls: int, pace: float) -> list[Took]:
    """pace: seconds between calls on an open schedule; 0 is back to back."""
    # Every picture differs, so that each is hashed and uploaded as in a real app.
    pictures = [n.to_bytes(4, "big") * (PICTURE_BYTES // 4) for n in range(min(calls, PICTURES))]
    took, start = [], time.perf_counter()
    for n in range(calls):
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
    reading = streams.Reading(openai_hook.Request(settings, {}))
    tap, plain, took = streams.Tap(iter(chunks), reading), iter(chunks), []
    for _ in range(CALLS):
        started = time.perf_counter()
        next(tap)
        between = time.perf_counter()
        next(plain)
        took.append(between - started - (time.perf_counter() - between))
    return took


def quantiles(seconds: Iterable[float]) -> tuple[float, float]:
    """(p50, p99) in us."""
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
    call = KINDS[kind][0](client)
    before = rss_mib()
    for n in range(CALLS):
        call(n.to_bytes(4, "big") * (PICTURE_BYTES // 4))()
        body.cache_clear()
    stats = client.stats()
    print(json.dumps({"growth": rss_mib() - before, "kept": stats.queued_events, "dropped": stats.dropped}))
    sys.stdout.flush()


def leave(kind: str, url: str) -> None:
    """Runs in a process of its own, to be timed from its last line on."""
    call = KINDS[kind][0](cmerwatch.Client("key", url))
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


# (watched, bare, empty wrapper)
KINDS: dict[str, tuple[Callable[[cmerwatch.Client], Call], Callable[[], Call], Callable[[], Call]]] = {
    "record": (lambda client: recording(client.record), lambda: recording(nothing), lambda: recording(nothing_wrapped)),
    "wrap": (wrapping, lambda: Model().prepare, empty_wrapper),
}


def hook_figures(kind: str) -> Iterator[bool]:
    with ingest_process() as up, black_hole(accepts=True) as silent:
        for pacing, pace in (("back to back", 0.0), ("200 calls/s", 0.005)):
            for state, url in (("up", up), ("down", refused_address()), ("silent", silent)):
                yield from hook_figure(kind, f"{pacing}, server {state}", pace, url)


def hook_figure(kind: str, name: str, pace: float, url: str) -> Iterator[bool]:
    client = cmerwatch.Client("key", url)
    makers = KINDS[kind]
    calls = {"watched": makers[0](client), "bare": makers[1](), "empty": makers[2]()}
    rounds: dict[str, list[list[Took]]] = {which: [] for which in calls}
    for _ in range(ROUNDS):
        for which, call in calls.items():
            rounds[which].append(measure(call, CALLS // ROUNDS // (1 if which == "watched" else 2), pace))
            client.flush(30 if "up" in name else 0)
    took = {which: [one for each in several for one in each] for which, several in rounds.items()}
    own = {which: quantiles(one.own for one in several) for which, several in took.items()}
    floor = own["bare"][0]
    yield report(f"{kind} p50, {name}", own["watched"][0] - floor, 50, "us")
    yield report(f"{kind} p99, {name}", own["watched"][1] - floor, 250, "us")
    each = ", ".join(
        "{:.0f}/{:.0f}".format(*quantiles(one.own - floor / 1e6 for one in few)) for few in rounds["watched"]
    )
    empty = "{:.1f}/{:.1f}".format(*(value - floor for value in own["empty"]))
    print(f"    rounds {each}; bare {floor:.1f}, empty wrapper {empty}")
    whole = {which: quantiles(one.whole for one in several) for which, several in took.items()}
    print("    whole call {:.0f}/{:.0f}, bare {:.0f}/{:.0f}".format(*whole["watched"], *whole["bare"]), end="; ")
    stats = client.stats()
    print(f"sent {stats.sent}, dropped {stats.dropped}, threads {threading.active_count()}")
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
