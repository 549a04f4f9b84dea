"""A checking stage of one's own for a test: real database, real blobs, real decoders."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from cmerwatch import access, blobs, db, events, policies
from cmerwatch.settings import Settings
from cmerwatch.shapes import Slice
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.decode import Limits
from cmerwatch_worker.decode_pool import COMMAND, Pool
from cmerwatch_worker.runtime import Runtime
from cmerwatch_worker.tasks import Checking
from cmerwatch_worker.watchdog import Progress

LIMITS = Limits(25_000_000, 16_384)
FRAGILE = (sys.executable, "-P", str(Path(__file__).with_name("fragile_decode.py")))
MARK = b"dies of this"  # appended to an image: fragile_decode.py kills itself over it


@contextlib.contextmanager
def opened(
    settings: Settings, store: blobs.BlobStore, checker: Checker, command: Sequence[str] = COMMAND
) -> Iterator[Checking]:
    progress = Progress()
    pool = Pool(checker.preprocess, LIMITS, settings.decode_processes or 1, command)
    checking = Checking(Runtime(checker, store, pool, progress.touch), settings, progress)
    try:
        yield checking
    finally:
        checking.close()


def new_project(slug: str = "acme") -> uuid.UUID:
    with db.transaction() as session:
        project = access.create_project(session, slug)
        policies.ensure_default(session, project.id)
        return project.id


def send(
    store: blobs.BlobStore,
    project_id: uuid.UUID,
    images: Sequence[bytes],
    output: str,
    *,
    confidence: float | None = 0.95,
    prompt_type: str = "identify",
) -> uuid.UUID:
    """Store and accept one event, as ingest does; returns its id."""
    with db.transaction() as session:
        hashes = tuple(events.store_image(session, store, project_id, data) for data in images)
        event = events.NewEvent(
            slice=Slice(endpoint="/describe", prompt_type=prompt_type),
            images=hashes,
            output=output,
            prompt="What is this?",
            confidence=confidence,
        )
        return events.ingest(session, project_id, event).id


def check_of(event_id: uuid.UUID) -> sa.RowMapping:
    """The one check of an event; fails when there is none or more."""
    with db.SessionLocal() as session:
        found = session.execute(sa.text("SELECT * FROM checks WHERE event_id = :id"), {"id": event_id})
        return found.mappings().one()


def work_of(event_id: uuid.UUID) -> sa.RowMapping | None:
    with db.SessionLocal() as session:
        found = session.execute(sa.text("SELECT * FROM work WHERE event_id = :id"), {"id": event_id})
        return found.mappings().one_or_none()


def make_ready() -> None:
    """Skip the wait between attempts and let every lease run out, by the database's clock."""
    with db.transaction() as session:
        session.execute(sa.text("UPDATE work SET not_before = now(), lease_until = now() - interval '1 second'"))
