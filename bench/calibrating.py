"""The recorded demo checked by the demo checker without its reference: it takes one from this traffic, then decides.

    python bench/calibrating.py

A Postgres and a worker of its own. Prints when the reference froze and what it holds, how soon everything that waited
was decided, and what is flagged of each model version. Ends with 1 unless each event is decided once and counted right.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker")]

from cmerwatch import blobs, db, demo, embedded, migrate, partitions, rollups, settings  # noqa: E402
from cmerwatch_worker import app, bundle, checkers  # noqa: E402
from cmerwatch_worker.checkers.base import Checker  # noqa: E402

SECONDS = 300
_COUNTS = sa.text("SELECT coalesce(sum(scored), 0), coalesce(sum(undecided), 0), coalesce(sum(n), 0) FROM rollups_1h")
_RATES = sa.text(
    "SELECT model_version, sum(flagged), sum(n) FROM rollups_1h GROUP BY model_version ORDER BY model_version"
)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        postgres = embedded.Postgres(home / "postgres", home / "password", home / "log")
        postgres.start()
        try:
            postgres.create_database("bench")
            return run(home, postgres.url("bench"))
        finally:
            postgres.stop()


def run(home: Path, url: str) -> int:
    os.environ.update(CMERWATCH_SECRET_KEY="bench" * 10, CMERWATCH_DATA_DIR=str(home / "data"))
    os.environ["CMERWATCH_DATABASE_URL"] = url
    used = settings.read()
    migrate.upgrade(url)
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    seeded = demo.seed(engine, blobs.FolderStore(used.blob_dir), lambda done, of: None)
    with app.running(used, without_reference(home / "bundle"), engine):
        held = wait(seeded)
    engine = db.configure(url)
    with db.SessionLocal() as session:
        project = session.scalar(sa.text("SELECT id FROM projects"))
        wrong = rollups.differences(session, project)
        for version, flagged, n in session.execute(_RATES):
            print(f"{version}: {flagged} of {n} flagged, {flagged / n:.1%}")
    engine.dispose()
    print(f"counted exactly: {not wrong}")
    return 0 if held and not wrong else 1


def without_reference(folder: Path) -> Checker:
    shutil.copytree(bundle.DEMO, folder)
    (folder / "reference.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["reference.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return checkers.load(f"bundle:{folder}")


def wait(seeded: int) -> bool:
    """Until every event is decided; tells of the freeze on the way."""
    started, frozen_at = time.monotonic(), 0.0
    while (now := time.monotonic()) - started < SECONDS:
        with db.SessionLocal() as session:
            scored, undecided, n = session.execute(_COUNTS).one()
            data = session.scalar(sa.text("SELECT data FROM checker_references"))
        if data is not None and not frozen_at:
            frozen_at = now
            held = ", ".join(f"{kind or 'the rest'} {len(claims)}" for kind, claims in sorted(data["own"].items()))
            print(f"after {now - started:.0f} s and {scored} events the reference froze, claims: {held}")
        if frozen_at and undecided == 0 and scored == n == seeded:
            print(f"all {seeded} events decided {now - frozen_at:.0f} s later")
            return True
        time.sleep(0.2)
    print(f"after {SECONDS} s {undecided} of {scored} are undecided")
    return False


if __name__ == "__main__":
    sys.exit(main())
