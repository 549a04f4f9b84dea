"""Milliseconds of console pages and of `GET /v1/cmer` with 100 000 and with 10 000 000 events in 1 000 slices x 8 days.

    python bench/console.py [--events 10000000] [--detailed 1000000] [--fine-days 8] [--repeats 40] [--keep FOLDER]

The real web process on a Postgres of its own, with its shipped settings; a person signed in over HTTP with a password.
Seeded in bulk SQL, as the pipeline would have written it: every event row and every rollup row of all events, and for
the newest `--detailed` events their text, check, decision and (where flagged) review item. A recount of the smaller
installation, which has all of these, must equal its rollups. The alerts are those the real rules raise about a
regression planted in the last two hours. `--keep` leaves the cluster in FOLDER and uses it again the next time.

Ends with 1 when a page's p95 is over the target, or over 1.5 times that of the smaller installation.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import os
import secrets
import statistics
import sys
import tempfile
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from reviews import web

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "web")]

from cmerwatch import (  # noqa: E402
    access,
    alert_rules,
    alerts,
    checks,
    db,
    embedded,
    migrate,
    partitions,
    policies,
    rollups,
    settings,
)
from cmerwatch.shapes import DIMENSIONS  # noqa: E402

TARGET_MS, TARGET_RATIO = 150, 1.5
SLOW_MS = 2_000
SLICES = 1_000
DAYS = 8
PASSWORD = "correct horse battery staple"

# 10 endpoints x 2 prompt types x 25 customers x 2 versions = 1 000 slices, each as busy as any other: the most rows
# that so many events can make. Received when the id says, as in the pipeline: the ledger tells hours by ids. Cosines as
# a CLIP checker's; a twentieth of the scores is low.
_EVENTS = """
CREATE UNLOGGED TABLE bench_events AS
SELECT id, at, '/endpoint-' || slice % 10 AS endpoint, 'type-' || slice / 10 % 2 AS prompt_type,
    'customer-' || slice / 20 % 25 AS customer, 'vlm' AS model, 'v' || 1 + slice / 500 % 2 AS model_version,
    'production' AS environment, geo_p, scored, CASE WHEN scored THEN sim END AS sim,
    CASE WHEN scored THEN CASE WHEN slice % 10 = 3 AND at > now() - interval '2 hours' THEN score / 5 ELSE score END
    END AS score
FROM (
    SELECT uuidv7(-i * (:seconds / :n) * interval '1 second') AS id, (random() * (:slices - 1))::int AS slice,
        CASE WHEN random() < 0.95 THEN 0.5 + random() / 2 END AS geo_p, random() < 0.98 AS scored,
        0.25 + 0.05 * random_normal() AS sim, random() AS score
    FROM generate_series(1, :n) AS i
) AS drawn CROSS JOIN LATERAL uuid_extract_timestamp(id) AS at
"""

_DIMS = ", ".join(DIMENSIONS)
_FLAGGED, _LOW = "coalesce(score < 0.05 AND geo_p > 0.8, false)", "coalesce(score < 0.05, false)"

_ROWS = (
    f"""
    INSERT INTO events (id, project_id, received_at, {_DIMS}, images, geo_p, confidence_status)
    SELECT id, :project, at, {_DIMS}, ARRAY[repeat('ab', 32)], geo_p, CASE WHEN geo_p IS NULL THEN 'not_reported'
        ELSE 'logprobs' END FROM bench_events
    """,
    """
    INSERT INTO event_bodies (id, prompt, output)
    SELECT id, 'Describe the scene.', repeat('A red circle above a blue square. ', 6) FROM bench_events
    WHERE id >= :first
    """,
    """
    INSERT INTO checks (event_id, checker_id, project_id, outcome, similarity, score, policy_version, claims)
    SELECT id, :checker, :project, CASE WHEN scored THEN 'scored' ELSE 'unscorable' END, sim, score, 1,
        jsonb_build_array(jsonb_build_object('start', 0, 'end', 33, 'similarity', sim, 'percentile', score))
    FROM bench_events WHERE id >= :first
    """,
    f"""
    INSERT INTO decisions (event_id, checker_id, policy_version, project_id, flagged, low_similarity, conf_threshold,
        sim_threshold)
    SELECT id, :checker, 1, :project, {_FLAGGED}, {_LOW}, 0.8, 0.05 FROM bench_events WHERE id >= :first AND scored
    """,
    f"""
    INSERT INTO review_items (id, project_id, event_id, checker_id, policy_version, kind, priority, rank, reasons)
    SELECT gen_random_uuid(), :project, id, :checker, 1, 'flagged', 0.5, extract(epoch FROM at), '{{}}'
    FROM bench_events WHERE id >= :first AND {_FLAGGED}
    """,
)

_HIST = """
CREATE OR REPLACE FUNCTION pg_temp.hist(bins int[]) RETURNS int[] LANGUAGE plpgsql AS
$$
DECLARE made int[] := '{}'; bin int;
BEGIN
    FOREACH bin IN ARRAY coalesce(bins, '{}') LOOP made[bin + 1] := coalesce(made[bin + 1], 0) + 1; END LOOP;
    RETURN made;
END
$$
"""

_COUNTS = f"""
    count(*) FILTER (WHERE scored), count(*) FILTER (WHERE NOT scored), count(*) FILTER (WHERE scored AND geo_p > 0),
    count(*) FILTER (WHERE {_FLAGGED}), count(*) FILTER (WHERE {_LOW}),
    count(*) FILTER (WHERE {_LOW} AND geo_p IS NULL),
    pg_temp.hist(array_agg(least(399, floor((sim + 1) * 200))::int) FILTER (WHERE scored))
"""
_NAMES = "scored, unscorable, n, flagged, low, low_unconfirmed, sim_hist"
_BUCKET = "CAST(:project AS uuid), date_bin(:width * interval '1 second', at, '2000-01-01Z') AS bucket"

_SLICES = f"""
INSERT INTO rollups_{{grain}} (project_id, bucket, {_DIMS}, checker_id, policy_version, {_NAMES}, score_hist)
SELECT {_BUCKET}, {_DIMS}, :checker, 1, {_COUNTS},
    pg_temp.hist(array_agg(least(99, floor(score * 100))::int) FILTER (WHERE scored AND geo_p > 0.8))
FROM bench_events WHERE at >= :since GROUP BY bucket, {_DIMS} ORDER BY bucket, random()
"""
_MARGINS = f"""
INSERT INTO margins_{{grain}} (project_id, bucket, dimension, value, checker_id, policy_version, again, {_NAMES})
SELECT {_BUCKET}, '{{dimension}}', {{value}} AS value, :checker, 1, false, {_COUNTS}
FROM bench_events WHERE at >= :since GROUP BY bucket, value ORDER BY bucket, random()
"""


@dataclass
class Installation:
    """One database with its pages' addresses and what each took, in milliseconds."""

    name: str
    url: str
    events: int
    taken: dict[str, list[float]] = field(default_factory=dict)


def seed(url: str, events: int, detailed: int, fine_days: float) -> None:
    migrate.upgrade(url)
    engine = db.configure(url, statement_timeout_ms=0)
    now = dt.datetime.now(dt.UTC)
    partitions.ensure(engine, (now - dt.timedelta(days=DAYS + 1)).date(), now.date() + dt.timedelta(days=1))
    with db.transaction() as session:
        project = access.create_project(session, "bench").id
        policies.ensure_default(session, project)
        alert_rules.ensure_default(session, project)
        access.create_user(session, project, "ada", "Ada", "admin", password=PASSWORD)
        checker = checks.register(session, name="bench:0", label="bench", is_demo=False, reference_version="1")
        session.execute(sa.text("SET LOCAL synchronous_commit = off"))
        values = {"n": events, "slices": SLICES, "seconds": DAYS * 86_400.0}
        session.execute(sa.text(_EVENTS), values)
        _seed_rows(session, project, checker, detailed)
        _seed_rollups(session, project, checker, now, fine_days)
        if detailed >= events and fine_days >= DAYS and (wrong := rollups.differences(session, project)):
            raise SystemExit(f"what was seeded is not what the pipeline writes: {wrong[:3]}")
        session.execute(sa.text("DROP TABLE bench_events"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))
    tick(project)
    engine.dispose()


def _seed_rows(session: sa.orm.Session, project: uuid.UUID, checker: int, detailed: int) -> None:
    newest = sa.text(
        "SELECT id FROM (SELECT id FROM bench_events ORDER BY id DESC LIMIT :n) AS newest ORDER BY id LIMIT 1"
    )
    values = {"project": project, "checker": checker, "first": session.scalar(newest, {"n": detailed})}
    for statement in _ROWS:
        session.execute(sa.text(statement), values)


def _seed_rollups(
    session: sa.orm.Session, project: uuid.UUID, checker: int, now: dt.datetime, fine_days: float
) -> None:
    session.execute(sa.text(_HIST))
    session.execute(sa.text("SET LOCAL work_mem = '256MB'"))
    for grain, width in rollups.GRAINS.items():
        since = now - dt.timedelta(days=fine_days if grain == "5m" else DAYS + 1)
        values = {"project": project, "checker": checker, "width": width, "since": since}
        session.execute(sa.text(_SLICES.format(grain=grain)), values)
        for dimension in ("", *DIMENSIONS):
            statement = _MARGINS.format(grain=grain, dimension=dimension, value=dimension or "''")
            session.execute(sa.text(statement), values)


def tick(project: uuid.UUID) -> None:
    """What the clock does every 15 seconds: the first one raises the alerts, the next finds a closed bucket less."""
    for number in ("first", "second"):
        started = time.perf_counter()
        with db.transaction() as session:
            made = alerts.evaluate(session, project)
        print(f"  {number} evaluation of the alert rules: {time.perf_counter() - started:.2f} s, {made}")


class Browser:
    """One connection kept alive, with the cookie a sign-in with the password set."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.cookie = ""
        form = urllib.parse.urlencode({"login": "ada", "password": PASSWORD})
        self.connection.request("POST", "/sign-in", form, {"Content-Type": "application/x-www-form-urlencoded"})
        answer = self.connection.getresponse()
        answer.read()
        self.cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
        if answer.status != 303:
            raise SystemExit(f"signing in answered {answer.status}")

    def get(self, path: str, key: str = "") -> tuple[float, str]:
        """Milliseconds until the last byte, and the page."""
        headers = {"Authorization": f"Bearer {key}"} if path.startswith("/v1/") else {"Cookie": self.cookie}
        started = time.perf_counter()
        self.connection.request("GET", path, headers=headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        took = (time.perf_counter() - started) * 1000
        if answer.status == 503:  # the statement's time was over
            print(f"  {path} answered 503 after {took:.0f} ms", flush=True)
        elif answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}: {text[:300]}")
        return took, text


def pages() -> dict[str, str]:
    """By what is printed: console pages, then the API at each bucket and the usual groupings."""
    one = "endpoint=/endpoint-3"
    with db.transaction() as session:
        event = session.scalar(sa.text("SELECT event_id FROM decisions WHERE flagged ORDER BY event_id DESC LIMIT 1"))
        alert = session.scalar(sa.text("SELECT id FROM alerts ORDER BY id DESC LIMIT 1"))
    found = {
        "overview, 8 days": "/",
        "overview, 24 hours": "/?window=24h",
        "overview, 1 hour": "/?window=1h",
        "overview, one endpoint": f"/?{one}",
        "overview, one version": "/?model_version=v2",
        "overview, endpoint and version": f"/?{one}&model_version=v2",
        "overview, one customer": "/?customer=customer-7",
        "overview, every customer listed": "/?all=customer",
        "events": "/events",
        "events, flagged": "/events?show=flagged",
        "events, flagged, one customer": "/events?show=flagged&customer=customer-7",
        "one event": f"/events/{event}",
        "alerts": "/alerts",
        "one alert": f"/alerts/{alert}" if alert else "",
        "review queue": "/review",
        "ledger, 8 days": "/ledger?window=8d",
        "ledger, 24 hours": "/ledger",
        "policies": "/settings/policies",
    }
    for bucket in ("1h", "1d"):
        for group in ("", "model_version", "endpoint", "customer", "endpoint,model_version"):
            found[f"/v1/cmer by {bucket} {group}"] = f"/v1/cmer?bucket={bucket}&group_by={group}"
    found["/v1/cmer by 1h, one endpoint"] = f"/v1/cmer?bucket=1h&{one}"
    found["/v1/cmer by 1h, endpoint and version"] = f"/v1/cmer?bucket=1h&{one}&model_version=v2"
    found["/v1/cmer by 1h customer, one endpoint"] = f"/v1/cmer?bucket=1h&group_by=customer&{one}"
    found["/v1/cmer by 5m"] = "/v1/cmer?bucket=5m"
    return {name: path for name, path in found.items() if path}


def measure(of: Installation, port: int, key: str, repeats: int) -> None:
    browser = Browser(port)
    for name, path in pages().items():
        warm = max(browser.get(path, key)[0] for _ in range(2))
        # What misses by far is not waited for as often.
        of.taken[name] = [browser.get(path, key)[0] for _ in range(repeats if warm < SLOW_MS else 3)]


def show(small: Installation, large: Installation) -> int:
    """Prints the table; the number of pages over a target."""
    print(f"{'milliseconds':40}{small.events:>12,} events{large.events:>14,} events")
    print(f"{'':40}{'p50':>9}{'p95':>9}{'p50':>12}{'p95':>9}{'p95 ratio':>12}")
    missed = 0
    for name, taken in large.taken.items():
        if name not in small.taken:  # so few events raise no alert
            print(f"{name:40}{'':18}{_cuts(taken)[0]:12.1f}{_cuts(taken)[1]:9.1f}")
            continue
        before, now = _cuts(small.taken[name]), _cuts(taken)
        is_over = now[1] > TARGET_MS or now[1] > TARGET_RATIO * before[1]
        missed += is_over
        print(
            f"{name:40}{before[0]:9.1f}{before[1]:9.1f}{now[0]:12.1f}{now[1]:9.1f}{now[1] / before[1]:12.2f}"
            + (" missed" if is_over else "")
        )
    print(f"target: p95 <= {TARGET_MS} ms and <= {TARGET_RATIO} x the smaller installation's; {missed} missed")
    return missed


def _cuts(taken: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(taken, n=20)
    return cuts[9], cuts[18]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--detailed", type=int, default=1_000_000)
    parser.add_argument("--fine-days", type=float, default=DAYS)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = options.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        os.environ |= {"CMERWATCH_SECRET_KEY": secrets.token_hex(32), "CMERWATCH_DATA_DIR": str(home / "data")}
        settings.current.cache_clear()
        postgres = embedded.Postgres(home / "postgres", home / "password", home / "postgres.log")
        postgres.start()
        try:
            return run(postgres, options)
        finally:
            postgres.stop()


def run(postgres: embedded.Postgres, options: argparse.Namespace) -> int:
    sizes = {"small": min(100_000, options.events), "large": options.events}
    both = [Installation(name, postgres.url(name), events) for name, events in sizes.items()]
    for one in both:
        postgres.create_database(one.name)
        if migrate.current(one.url) is None:
            started = time.perf_counter()
            print(
                f"seeding {one.events:,} events, the newest {min(options.detailed, one.events):,} in full", flush=True
            )
            seed(one.url, one.events, options.detailed, options.fine_days)
            print(f"  in {time.perf_counter() - started:.0f} s", flush=True)
    for one in both:
        engine = db.configure(one.url)
        with db.transaction() as session:
            project = access.project_of_slug(session, "bench").id
            key = access.create_key(session, project, "bench", ("read",))
        with web({"CMERWATCH_DATABASE_URL": one.url, "CMERWATCH_REDIS_URL": ""}) as port:
            measure(one, port, key, options.repeats)
        engine.dispose()
    return 1 if show(*both) else 0


if __name__ == "__main__":
    sys.exit(main())
