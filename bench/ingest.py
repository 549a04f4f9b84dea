"""POST /v1/events against the same durable work written by hand: read the body, fsync the blob, one INSERT, commit.

    python bench/ingest.py [--requests 2000] [--clients 8] [--image-kb 100] [--rounds 10]

One event with one new picture per request, multipart, over keep-alive connections. Both servers run on uvicorn, one
process each, on one Postgres with its ordinary durability (fsync on) and one disk, in turns, so that a busy machine
slows both alike. Prints the rates, the processor time that a request costs the server and Postgres, the ratio of
throughputs (and of each round) and of 99th percentiles, and ends with 1 when they miss the target.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import queue
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "web"), str(ROOT / "bench")]

MIN_THROUGHPUT = 0.7
MAX_P99 = 2.0
BOUNDARY = "3c5d2b1a9f"


# The hand-written server


def by_hand() -> object:
    """An ASGI app that does the same durable work and nothing else: no key, no check, no second table, no retry."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    import psycopg

    folder = Path(os.environ["BENCH_BLOBS"])
    threads = ThreadPoolExecutor(40)  # as many as the product's server has
    connections: queue.SimpleQueue[psycopg.Connection] = queue.SimpleQueue()
    for _ in range(20):
        connections.put(psycopg.connect(os.environ["CMERWATCH_DATABASE_URL"]))

    def store(body: bytes) -> None:
        delimiter = b"--" + BOUNDARY.encode()
        _, events, image, _ = body.split(delimiter)
        data = image.partition(b"\r\n\r\n")[2][:-2]
        name = hashlib.sha256(data).hexdigest()
        place = folder / name[:2]
        place.mkdir(exist_ok=True)
        draft = place / f".{name}"
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(place / name)
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
        connection = connections.get()
        connection.execute(
            "INSERT INTO by_hand (id, sha256, body) VALUES (%s, %s, %s)",
            (uuid.uuid4(), name, events.partition(b"\r\n\r\n")[2].decode()),
        )
        connection.commit()
        connections.put(connection)

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()  # type: ignore[operator]
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await asyncio.get_running_loop().run_in_executor(threads, store, body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"{}"})  # type: ignore[operator]

    return app


# The load


def picture(kilobytes: int) -> bytes:
    """Bytes of their own every time, with the header of a real picture: ingest looks no further."""
    header = struct.pack(">IIBBBBB", 640, 480, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + os.urandom(kilobytes << 10)


def body(kilobytes: int) -> bytes:
    data = picture(kilobytes)
    sha256 = hashlib.sha256(data).hexdigest()
    event = {
        "event_id": str(uuid.uuid4()),
        "endpoint": "/describe",
        "prompt_type": "describe",
        "customer": "acme",
        "model": "vlm",
        "model_version": "2",
        "images": [{"sha256": sha256}],
        "prompt": "Describe the scene.",
        "output": "A red circle stands left of a blue square. " * 6,
        "tokens": ["token"] * 80,
        "logprobs": [-token / 64 for token in range(80)],  # equal ones would be taken for none, which costs less
    }
    return b"".join(
        [
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="events"\r\n\r\n'.encode(),
            json.dumps({"events": [event]}).encode(),
            f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="sha256:{sha256}"; '.encode(),
            b'filename="x"\r\n\r\n',
            data,
            f"\r\n--{BOUNDARY}--\r\n".encode(),
        ]
    )


def load(port: int, key: str, requests: int, clients: int, kilobytes: int) -> tuple[float, list[float]]:
    """(requests per second, seconds of each). Bodies are made before the clock starts."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for _ in range(requests):
        waiting.put(body(kilobytes))
    took: list[float] = []
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.suppress(queue.Empty):
            while True:
                sent = waiting.get_nowait()
                start = time.perf_counter()
                connection.request("POST", "/v1/events", sent, headers)
                answer = connection.getresponse()
                answer.read()
                took.append(time.perf_counter() - start)
                assert answer.status == 202, answer.status
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == requests, "a client failed"
    return requests / (time.perf_counter() - start), took


# The two servers on one database


@contextlib.contextmanager
def served(factory: str, folder: Path, **environment: str) -> Iterator[tuple[int, psutil.Process]]:
    from cmerwatch import embedded

    port = embedded.free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(port), "--log-level", "warning"]
    path = os.pathsep.join(sys.path[:3])
    child = subprocess.Popen(
        [*command, "--no-access-log"], env=os.environ | environment | {"PYTHONPATH": path}, cwd=folder
    )
    try:
        while not embedded.is_listening(port):
            assert child.poll() is None, f"{factory} ended at its start"
            time.sleep(0.05)
        yield port, psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def prepared(url: str, secret: str) -> str:
    """Tables of both servers, and a key."""
    os.environ["CMERWATCH_SECRET_KEY"] = secret
    import sqlalchemy as sa

    from cmerwatch import access, db, migrate, partitions

    migrate.upgrade(url)
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    with db.transaction() as session:
        session.execute(sa.text("CREATE TABLE by_hand (id uuid PRIMARY KEY, sha256 text, body jsonb)"))
        key = access.create_key(session, access.create_project(session, "bench").id, "bench", ["ingest"])
    engine.dispose()
    return key


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def busy(process: psutil.Process) -> float:
    """Seconds of processor time of it and its children so far, those that ended among them."""
    ended = process.cpu_times()
    total = ended.children_user + ended.children_system
    for one in (process, *process.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


@dataclass
class Side:
    """One server, and what its rounds measured."""

    port: int
    process: psutil.Process
    rates: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    server_seconds: float = 0.0
    postgres_seconds: float = 0.0

    def run(self, postgres: psutil.Process, key: str, requests: int, options: argparse.Namespace) -> None:
        before = busy(self.process), busy(postgres)
        rate, took = load(self.port, key, requests, options.clients, options.image_kb)
        self.rates.append(rate)
        self.took += took
        self.server_seconds += busy(self.process) - before[0]
        self.postgres_seconds += busy(postgres) - before[1]

    def forget(self) -> None:
        self.rates, self.took, self.server_seconds, self.postgres_seconds = [], [], 0.0, 0.0

    def line(self) -> str:
        n = len(self.took) / 1000
        return (
            f"{statistics.mean(self.rates):6.0f} requests/s ({min(self.rates):.0f} to {max(self.rates):.0f}), "
            f"p50 {statistics.median(self.took) * 1000:6.1f} ms, p99 {p99(self.took) * 1000:6.1f} ms, processor time "
            f"of each {self.server_seconds / n:.2f} ms in the server, {self.postgres_seconds / n:.2f} ms in Postgres"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=2000, help="per server, in all rounds together")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--image-kb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    from cmerwatch import embedded

    secret = "a key of this bench alone, 32 characters or more"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        postgres = embedded.Postgres(folder / "postgres", folder / "password", folder / "postgres.log")
        postgres.start()
        try:
            key = prepared(postgres.url(), secret)
            (folder / "blobs").mkdir()
            common = {"CMERWATCH_DATABASE_URL": postgres.url(), "CMERWATCH_SECRET_KEY": secret}
            product_settings = common | {"CMERWATCH_DATA_DIR": str(folder / "data")}
            with (
                served("ingest:by_hand", folder, **common, BENCH_BLOBS=str(folder / "blobs")) as hand,
                served("cmerwatch_web.app:create_app", folder, **product_settings) as product,
            ):
                return compare(Side(*hand), Side(*product), psutil.Process(postgres.pid), key, options)
        finally:
            postgres.stop()


def compare(hand: Side, product: Side, postgres: psutil.Process, key: str, options: argparse.Namespace) -> int:
    for number in range(options.rounds + 1):
        for side in (hand, product):
            side.run(postgres, key, options.requests // options.rounds, options)
            if number == 0:  # it warms both up
                side.forget()
    print(f"by hand:   {hand.line()}\ncmerwatch: {product.line()}")
    throughput = statistics.mean(product.rates) / statistics.mean(hand.rates)
    rounds = sorted(ours / theirs for ours, theirs in zip(product.rates, hand.rates, strict=True))
    tail = p99(product.took) / p99(hand.took)
    met = throughput >= MIN_THROUGHPUT and tail <= MAX_P99
    print(
        f"ingest, {options.clients} clients: {throughput:.2f} of the throughput written by hand "
        f"(rounds {rounds[0]:.2f} to {rounds[-1]:.2f}; at least {MIN_THROUGHPUT}), "
        f"p99 {tail:.2f} times as long (at most {MAX_P99:g}), load {os.getloadavg()[0]:.0f}: "
        f"{'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
