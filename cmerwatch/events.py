"""Ingest: an event, its body and its work row in one transaction, idempotent by the sender's id."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch import blobs as blob_store
from cmerwatch import confidence, errors, ids, images, models
from cmerwatch.shapes import BUCKET_SECONDS, LATE_AFTER, Slice


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A validated event as the edge hands it over; images are sha256 of bytes already on durable storage."""

    slice: Slice
    images: tuple[str, ...]
    output: str
    prompt: str | None = None
    event_id: str | None = None
    occurred_at: dt.datetime | None = None
    tokens: tuple[str, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    confidence: float | None = None
    confidence_status: str | None = None
    sample_rate: float | None = None
    request_id: str | None = None
    response_id: str | None = None
    trace_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    text_sanitized: bool = False


@dataclass(frozen=True, slots=True)
class Ingested:
    id: uuid.UUID
    status: str  # "accepted" or "duplicate"


def bucket_of(at: dt.datetime) -> dt.datetime:
    """Start of the 5-minute UTC bucket."""
    seconds = int(at.timestamp())
    return dt.datetime.fromtimestamp(seconds - seconds % BUCKET_SECONDS, dt.UTC)


def body_hash(event: NewEvent) -> bytes:
    """Of canonical JSON with images as sha256, so inline, multipart and hash-first retries of one event match."""
    body = {name: getattr(event, name) for name in NewEvent.__dataclass_fields__ if name != "text_sanitized"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str, ensure_ascii=True).encode()).digest()


def ingest(
    session: orm.Session, project_id: uuid.UUID, event: NewEvent, received_at: dt.datetime | None = None
) -> Ingested:
    """Store one event and its work row, or recognise a retry. Raises Conflict or ImageUnknown and stores nothing.

    Runs in a savepoint: one bad event of a batch never harms the others. `received_at` is for demo seeding only.
    """
    now = received_at or dt.datetime.now(dt.UTC)
    event_id = ids.uuid7(now)
    with session.begin_nested():
        if event.event_id is not None:
            known = _remember(session, project_id, event, event_id)
            if known is not None:
                return Ingested(known, "duplicate")
        _require_images(session, project_id, event.images)
        session.execute(sa.insert(models.Event), [_event_row(project_id, event_id, event, now)])
        session.execute(sa.insert(models.EventBody), [_body_row(event_id, event)])
        work = {"event_id": event_id, "project_id": project_id, "bucket": bucket_of(now)}
        session.execute(sa.insert(models.Work), [work | event.slice._asdict()])
    return Ingested(event_id, "accepted")


def _remember(session: orm.Session, project_id: uuid.UUID, event: NewEvent, event_id: uuid.UUID) -> uuid.UUID | None:
    """Claim the sender's id. The id already used with the same body: the first event's id; with another: Conflict.

    Two retries at once meet at the primary key: the second waits for the first's commit, then sees its row.
    """
    key, body = hashlib.sha256((event.event_id or "").encode()).digest(), body_hash(event)
    made = session.execute(
        pg.insert(models.IngestKey)
        .values(project_id=project_id, key_hash=key, body_hash=body, event_id=event_id)
        .on_conflict_do_nothing()
        .returning(models.IngestKey.event_id)
    ).scalar()
    if made is not None:
        return None
    known = session.execute(
        sa.select(models.IngestKey.event_id, models.IngestKey.body_hash).where(
            models.IngestKey.project_id == project_id, models.IngestKey.key_hash == key
        )
    ).one()
    if known.body_hash != body:
        raise errors.Conflict(
            "event_id was already used for an event with another body; send a new event_id for a new event",
            field="event_id",
            id=str(known.event_id),
        )
    return uuid.UUID(str(known.event_id))


def _require_images(session: orm.Session, project_id: uuid.UUID, hashes: Sequence[str]) -> None:
    missing = missing_images(session, project_id, hashes)
    if missing:
        raise errors.ImageUnknown(
            f"images names sha256 {missing[0]}, which this project has not uploaded; "
            f"PUT /v1/images/{missing[0]} first or send the bytes with the event",
            field="images",
            missing=missing,
        )


def missing_images(session: orm.Session, project_id: uuid.UUID, hashes: Sequence[str]) -> list[str]:
    """Which of these sha256 this project has never uploaded, in the order given."""
    known = set(
        session.scalars(
            sa.select(models.Image.sha256).where(
                models.Image.project_id == project_id, models.Image.sha256.in_(set(hashes))
            )
        )
    )
    return [sha256 for sha256 in dict.fromkeys(hashes) if sha256 not in known]


def store_image(
    session: orm.Session,
    blobs: blob_store.BlobStore,
    project_id: uuid.UUID,
    data: bytes,
    sha256: str | None = None,
    limits: images.Limits | None = None,
) -> str:
    """Inspect the header, put the bytes on durable storage, note them; returns their sha256.

    Raises ImageRefused (format, size, side, pixels, a hash that does not match). The blob is fsynced before the
    row exists, so a row never promises bytes that are not there.
    """
    actual = hashlib.sha256(data).hexdigest()
    if sha256 is not None and sha256 != actual:
        raise errors.ImageRefused(
            f"the bytes sent as sha256 {sha256} hash to {actual}; send the hash of the exact bytes", field="images"
        )
    header = images.inspect(data, limits or images.Limits())
    blobs.put(project_id, actual, data)
    session.execute(
        pg.insert(models.Image)
        .values(
            project_id=project_id,
            sha256=actual,
            size_bytes=len(data),
            format=header.format,
            width=header.width,
            height=header.height,
        )
        .on_conflict_do_nothing()
    )
    return actual


def _event_row(project_id: uuid.UUID, event_id: uuid.UUID, event: NewEvent, now: dt.datetime) -> dict[str, Any]:
    measured = confidence.measure(event.logprobs, event.confidence, event.confidence_status)
    return {
        "id": event_id,
        "project_id": project_id,
        "event_key": event.event_id,
        "received_at": now,
        "occurred_at": event.occurred_at,
        "is_late": event.occurred_at is not None and now - event.occurred_at > LATE_AFTER,
        "images": list(event.images),
        "geo_p": measured.geo_p,
        "mean_p": measured.mean_p,
        "min_p": measured.min_p,
        "n_tokens": measured.n_tokens,
        "confidence_status": measured.status,
        "sample_rate": event.sample_rate,
        **event.slice._asdict(),
    }


def _body_row(event_id: uuid.UUID, event: NewEvent) -> dict[str, Any]:
    return {
        "id": event_id,
        "prompt": event.prompt or "",
        "output": event.output,
        "tokens": None if event.tokens is None else list(event.tokens),
        "logprobs": None if event.logprobs is None else list(event.logprobs),
        "request_id": event.request_id,
        "response_id": event.response_id,
        "trace_id": event.trace_id,
        "text_sanitized": event.text_sanitized,
        "metadata_": event.metadata,
    }
