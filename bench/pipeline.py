"""Events per second through claim, complete, count and route with a checker that does nothing: one worker.

    python bench/pipeline.py [--events 60000] [--batch 256]

On a Postgres of its own with its ordinary durability (fsync on). Prints one line for 1, 12 and 200 slices, and ends
with 1 when 12 slices stay under the target.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import uuid
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker")]

from cmerwatch import access, checks, db, embedded, migrate, partitions, policies, rollups  # noqa: E402
from cmerwatch.shapes import CheckResult, Claimed, ClaimScore  # noqa: E402
from cmerwatch_worker import app, tasks  # noqa: E402

TARGET = 10_000
LEASE_SECONDS = 30

_SEED = """
WITH new AS (
    SELECT uuidv7() AS id, i, '/endpoint-' || (i % :slices) AS endpoint FROM generate_series(1, :n) AS i
), e AS (
    INSERT INTO events (id, project_id, received_at, endpoint, images, geo_p, confidence_status)
    SELECT id, :project, now(), endpoint, ARRAY[md5(i::text) || md5(i::text)], 0.5 + (i % 50) / 100.0, 'logprobs'
    FROM new
), b AS (
    INSERT INTO event_bodies (id, prompt, output)
    SELECT id, 'What is this?', 'A red circle number ' || i || '.' FROM new
)
INSERT INTO work (event_id, project_id, bucket, endpoint)
SELECT id, :project, date_bin('5 minutes', now(), 'epoch'), endpoint FROM new
"""


def check(event: Claimed) -> CheckResult:
    score = (event.event_id.int % 1000) / 1000
    claim = ClaimScore(0, len(event.output), score, score)
    return CheckResult(event, "scored", similarity=score, score=score, mismatch_percentile=0.9, claims=(claim,))


def seed(slices: int, n: int) -> uuid.UUID:
    with db.transaction() as session:
        project = access.create_project(session, f"bench-{slices}").id
        policies.ensure_default(session, project)
        session.execute(sa.text(_SEED), {"slices": slices, "n": n, "project": project})
    return project


def drain(checker_id: int, batch: int) -> int:
    """What one worker does for every batch, without decoding and embedding."""
    done = 0
    while True:
        token = uuid.uuid4()
        with db.transaction() as session:
            events = checks.claim(session, batch, LEASE_SECONDS, token)
        if not events:
            return done
        with db.transaction() as session:
            results = [check(event) for event in events]
            done += len(tasks.complete(session, token, checker_id, results, 0.02))


def measure(slices: int, n: int, batch: int, checker_id: int, engine: sa.Engine) -> float:
    """Events per second; fails unless each was checked once and the rollups equal a recount."""
    project = seed(slices, n)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))
    started = time.perf_counter()
    done = drain(checker_id, batch)
    seconds = time.perf_counter() - started
    with db.SessionLocal() as session:
        wrong = rollups.differences(session, project)
    if done != n or wrong:
        raise SystemExit(f"{done} of {n} completed; rollups differ: {wrong[:3]}")
    return n / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    gc.set_threshold(app.COLLECT_AFTER)  # as the worker does
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        postgres = embedded.Postgres(home / "postgres", home / "password", home / "log")
        postgres.start()
        try:
            postgres.create_database("bench")
            return run(postgres.url("bench"), options.events, options.batch)
        finally:
            postgres.stop()


def run(url: str, n: int, batch: int) -> int:
    migrate.upgrade(url)
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    with db.transaction() as session:
        checker_id = checks.register(session, name="null", label="null", is_demo=False, reference_version="0")
    measure(2, 2_000, batch, checker_id, engine)  # warm: plans, pages, imports
    rates = {slices: measure(slices, n, batch, checker_id, engine) for slices in (1, 12, 200)} if n else {}
    engine.dispose()
    for slices, rate in rates.items():
        print(f"claim + complete + count + route, {slices:3} slices: {rate:8,.0f} events/s")
    print(f"target at 12 slices: >= {TARGET:,} events/s")
    return 0 if rates.get(12, 0) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
