"""Lays the recorded run over the eight days before the demo's first start, as if each event had arrived then.

Only `received_at` and the ids are in the past: every event has its work row, and the real worker checks it.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import (
    access,
    alert_rules,
    alerts,
    blobs,
    channels,
    checks,
    db,
    demo_data,
    events,
    models,
    partitions,
    projects,
)
from cmerwatch.shapes import Slice

PROJECT = "demo"
REVIEWER = "reviewer"
DAYS = 8
CHUNK = 64  # events per transaction: few enough that the worker begins at once


def ensure_project(session: orm.Session) -> models.Project:
    """Not watched before its history is laid and checked: half of it would raise alerts about the other half."""
    return projects.ensure(session, PROJECT, "Demo", login=PROJECT, watched=False)


def environment(port: int, targets: str) -> dict[str, str]:
    """What the demo's processes are told beside a stack's own settings: its checker, and a sink that its channels may
    reach although it is on this machine, beside the private `targets` that whoever starts it allows."""
    return {
        "CMERWATCH_CHECKER": "demo",
        "CMERWATCH_DEMO_SINK": "true",
        "CMERWATCH_ALLOW_PRIVATE_TARGETS": ",".join(filter(None, [targets.strip(), f"127.0.0.1:{port}"])),
    }


def watch(session: orm.Session, base_url: str) -> str:
    """Rules over the history that is laid, channels to the sink, and the first evaluation, which the worker's own
    would make some seconds later. Returns the webhook's secret. A later start only points the channels at its port."""
    project = ensure_project(session)
    secret = channels.ensure_demo(session, project.id, PROJECT, base_url)
    alert_rules.ensure_default(session, project.id)
    while alerts.evaluate(session, project.id).has_more:
        session.flush()
    return secret


GIVEN_UP = 3  # tries: the sink takes the first or second, and a channel somebody added may answer nobody


def untold() -> int:
    """How many messages of its alerts are still on their way to the sink."""
    with db.transaction() as session:
        project_id = access.project_of_slug(session, PROJECT).id
        pending = sa.select(sa.func.count()).where(
            models.Delivery.project_id == project_id,
            models.Delivery.state == "pending",
            models.Delivery.attempts < GIVEN_UP,
        )
        return session.scalar(pending) or 0


def seed(engine: sa.Engine, store: blobs.BlobStore, progress: Callable[[int, int], None]) -> int:
    """Ingest what is not there yet; returns how many events that was. An interrupted seeding goes on where it was.

    The end of the recording is the end of the last bucket closed when the project was made, so that every start
    lays each event at the same moment.
    """
    with db.transaction() as session:
        project = ensure_project(session)
        project_id, end = project.id, events.bucket_of(project.created_at)
        known = _known(session, project_id)
    recorded = list(demo_data.recording())
    wanted = [event for event in recorded if event.event_id not in known]
    if not wanted:
        return 0
    partitions.ensure(engine, (end - dt.timedelta(days=DAYS)).date(), end.date())
    for done, chunk in _chunks(wanted):
        with db.transaction() as session:
            _store_images(session, store, project_id, chunk)
            for event in chunk:
                received_at = end - dt.timedelta(seconds=event.age_seconds)
                events.ingest(session, project_id, _new_event(event, received_at), received_at)
        progress(len(recorded) - len(wanted) + done, len(recorded))
    return len(wanted)


def waiting(project_slug: str = PROJECT) -> int:
    """How many of the project's events no worker has finished."""
    with db.transaction() as session:
        return checks.waiting(session, access.project_of_slug(session, project_slug).id)


def _known(session: orm.Session, project_id: uuid.UUID) -> set[str]:
    keys = sa.select(models.Event.event_key).where(
        models.Event.project_id == project_id, models.Event.event_key.is_not(None)
    )
    return {key for key in session.scalars(keys) if key is not None}


def _chunks(
    wanted: Sequence[demo_data.RecordedEvent],
) -> Iterator[tuple[int, Sequence[demo_data.RecordedEvent]]]:
    """Each chunk with the number of events up to its end."""
    for start in range(0, len(wanted), CHUNK):
        chunk = wanted[start : start + CHUNK]
        yield start + len(chunk), chunk


def _store_images(
    session: orm.Session, store: blobs.BlobStore, project_id: uuid.UUID, chunk: Sequence[demo_data.RecordedEvent]
) -> None:
    named = [sha256 for event in chunk for sha256 in event.images]
    for sha256 in events.missing_images(session, project_id, named):
        events.store_image(session, store, project_id, demo_data.image(sha256), sha256)


def _new_event(event: demo_data.RecordedEvent, received_at: dt.datetime) -> events.NewEvent:
    return events.NewEvent(
        slice=Slice(**{name: getattr(event, name) for name in Slice._fields}),
        images=event.images,
        output=event.output,
        prompt=event.prompt,
        event_id=event.event_id,
        occurred_at=received_at,
        tokens=event.tokens,
        logprobs=event.logprobs,
    )
