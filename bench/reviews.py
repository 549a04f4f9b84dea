"""Milliseconds of `POST /v1/reviews/next` over HTTP with 100 000 items waiting.

    python bench/reviews.py [--waiting 100000] [--reviewers 50] [--seconds 20]

One web process on a Postgres of its own with its ordinary durability (fsync on). Half as many answered items and 300
that others hold lie in the way. First one reviewer alone without a pause; then all together, each with an item every
two seconds or so, faster than anybody reads; ends with 1 when p95 is over the target for one of the two. Last, for
information, 8 without a pause: what one web process can do at most.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

from cmerwatch import access, checks, db, embedded, migrate, partitions, policies, settings  # noqa: E402

TARGET_MS = 100
PAUSE = 2.0

_SEED = """
WITH new AS (
    SELECT uuidv7() AS id, i FROM generate_series(1, :n) AS i
), e AS (
    INSERT INTO events (id, project_id, received_at, endpoint, images, geo_p, confidence_status)
    SELECT id, :project, now(), '/bench', ARRAY[md5(i::text) || md5(i::text)], 0.9, 'logprobs' FROM new
), b AS (
    INSERT INTO event_bodies (id, prompt, output)
    SELECT id, 'Describe the scene.', repeat('A red circle above a blue square. ', 12) FROM new
), c AS (
    INSERT INTO checks (event_id, checker_id, project_id, outcome, similarity, score, claims, reasons)
    SELECT id, :checker, :project, 'scored', 0.1, 0.01,
        jsonb_build_array(jsonb_build_object('start', 0, 'end', 33, 'similarity', 0.1, 'percentile', 0.01)), '{}'
    FROM new
), d AS (
    INSERT INTO decisions (event_id, checker_id, policy_version, project_id, flagged, low_similarity,
        conf_threshold, sim_threshold)
    SELECT id, :checker, 1, :project, true, true, 0.8, 0.05 FROM new
)
INSERT INTO review_items (id, project_id, event_id, checker_id, policy_version, kind, priority, rank, reasons, state)
SELECT gen_random_uuid(), :project, id, :checker, 1, 'flagged', random(), extract(epoch FROM now()) - 86400 * random(),
    '{}', :state
FROM new
"""

_HELD = """
UPDATE review_items SET state = 'leased', leased_by = gen_random_uuid(), lease_token = gen_random_uuid(),
    leased_at = now(), lease_until = now() + interval '1 hour'
WHERE id IN (SELECT id FROM review_items WHERE state = 'open' ORDER BY rank LIMIT 300)
"""


def seed(waiting: int, reviewers: int) -> list[str]:
    """A project with its queue; returns a key for each reviewer."""
    with db.transaction() as session:
        project = access.create_project(session, "bench").id
        policies.ensure_default(session, project)
        checker = checks.register(session, name="bench:0", label="bench", is_demo=False, reference_version="1")
        for state, n in (("done", waiting // 2), ("open", waiting)):
            session.execute(sa.text(_SEED), {"n": n, "project": project, "checker": checker, "state": state})
        session.execute(sa.text(_HELD))
        people = [access.create_user(session, project, f"r{i}", "R", "reviewer").id for i in range(reviewers)]
        return [access.create_key(session, project, "bench", ("review",), person) for person in people]


@contextlib.contextmanager
def web(environment: dict[str, str]) -> Iterator[int]:
    """A web process; yields its port once it answers."""
    port = embedded.free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "cmerwatch_web.app:create_app"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    child = subprocess.Popen([*command, *options], env=os.environ | environment)
    try:
        while not _answers(port):
            if child.poll() is not None:
                raise SystemExit("the web process ended at its start")
            time.sleep(0.05)
        yield port
    finally:
        child.terminate()
        child.wait(20)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            return True
    except OSError:
        return False


def work(port: int, key: str, end: float, pause: float = 0.0) -> list[float]:
    """Seconds of each `next` until `end` (time.perf_counter), with about `pause` seconds between two items."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def call(path: str, body: Any) -> Any:
        connection.request("POST", f"/v1/reviews/{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}: {text[:300]!r}")
        return json.loads(text)

    seconds, rng = [], random.Random(key)
    time.sleep(pause * rng.random())  # not all at the same moment
    while time.perf_counter() < end:
        started = time.perf_counter()
        found = call("next", {})
        seconds.append(time.perf_counter() - started)
        body = {"lease_token": found["lease"]["token"], "verdict": "hallucinated"}
        call(f"{found['item']['id']}/verdict", body)
        time.sleep(pause * rng.uniform(0.5, 1.5))
    return seconds


def measure(port: int, keys: list[str], seconds: float, pause: float) -> float:
    """p95 in milliseconds."""
    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(len(keys)) as pool:
        taken = [one * 1000 for some in pool.map(lambda key: work(port, key, end, pause), keys) for one in some]
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"next item, {len(keys):2} at work, pause {pause:.0f} s, {len(taken)} taken in {seconds:.0f} s: "
        f"p50 {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms"
    )
    return cuts[94]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"CMERWATCH_SECRET_KEY": secrets.token_hex(32), "CMERWATCH_DATA_DIR": str(home / "data")}
        settings.current.cache_clear()
        postgres = embedded.Postgres(home / "postgres", home / "password", home / "postgres.log")
        postgres.start()
        try:
            postgres.create_database("bench")
            url = postgres.url("bench")
            migrate.upgrade(url)
            engine = db.configure(url, statement_timeout_ms=0)
            partitions.ensure_ahead(engine)
            keys = seed(options.waiting, options.reviewers)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("VACUUM ANALYZE"))
            engine.dispose()
            print(f"{options.waiting} items wait")
            with web({"CMERWATCH_DATABASE_URL": url, "CMERWATCH_REDIS_URL": ""}) as port:
                work(port, keys[0], time.perf_counter() + 1)  # connections and plans, as after a second of use
                p95 = [measure(port, keys[:1], options.seconds, 0), measure(port, keys, options.seconds, PAUSE)]
                measure(port, keys[:8], options.seconds, 0)
        finally:
            postgres.stop()
    print(f"target of the first two: p95 <= {TARGET_MS} ms")
    return 0 if max(p95) <= TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
