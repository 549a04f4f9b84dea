"""Ingest: an event, its body and its work row in one transaction, idempotent by the sender's id."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import blobs as blob_store
from cmerwatch import confidence, db, errors, fetches, ids, images, models
from cmerwatch.shapes import BUCKET_SECONDS, LATE_AFTER, Slice


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A validated event as the edge hands it over; images are sha256 of bytes already on durable storage.

    `urls`: (position among all its pictures, address) of those that have to be fetched first; None: there are none.
    """

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
    urls: tuple[tuple[int, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Ingested:
    id: uuid.UUID
    status: str  # "accepted" or "duplicate"


def bucket_of(at: dt.datetime) -> dt.datetime:
    """Start of the 5-minute UTC bucket."""
    seconds = int(at.timestamp())
    return dt.datetime.fromtimestamp(seconds - seconds % BUCKET_SECONDS, dt.UTC)


def body_hash(event: NewEvent) -> bytes:
    """Of canonical JSON with images as sha256, so inline, multipart and hash-first retries of one event match.

    What the event does not say is left out: a release that adds a field must still know the retries of the last one.
    """
    said = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "text_sanitized"}
    body = {name: value for name, value in said.items() if value is not None and value != {}}
    if event.occurred_at is not None:
        body["occurred_at"] = event.occurred_at.astimezone(dt.UTC)
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str, ensure_ascii=True).encode()).digest()


def ingest(
    session: orm.Session, project_id: uuid.UUID, event: NewEvent, received_at: dt.datetime | None = None
) -> Ingested:
    """Store one event and its work row, or recognise a retry. Raises Conflict or ImageUnknown and stores nothing.

    `received_at` is for demo seeding only.
    """
    [result] = ingest_many(session, project_id, [event], received_at=received_at)
    if isinstance(result, errors.CmerwatchError):
        raise result
    return result


def ingest_many(
    session: orm.Session,
    project_id: uuid.UUID,
    batch: Sequence[NewEvent],
    *,
    coming: Sequence[Picture] = (),
    received_at: dt.datetime | None = None,
) -> list[Ingested | errors.CmerwatchError]:
    """Store what can be stored, in the order given; Conflict, ImageUnknown or Invalid stands where one was refused.

    `coming` are images whose bytes the caller puts on durable storage before it commits: those that an accepted event
    names are noted here, in the same round trip.
    """
    try:
        with session.begin_nested() if len(batch) > 1 else contextlib.nullcontext():
            return ingest_together(session, project_id, batch, coming, received_at)
    except sa.exc.DataError:
        if len(batch) == 1:
            return [errors.Invalid("the event holds a value that the database cannot store.")]
    # One event holds what the database cannot: each on its own, so that it harms none of its neighbours.
    one_by_one: list[Ingested | errors.CmerwatchError] = []
    for event in batch:
        one_by_one += _ingest_alone(session, project_id, event, coming, received_at)
    return one_by_one


def _ingest_alone(
    session: orm.Session,
    project_id: uuid.UUID,
    event: NewEvent,
    coming: Sequence[Picture],
    received_at: dt.datetime | None,
) -> list[Ingested | errors.CmerwatchError]:
    try:
        with session.begin_nested():
            return ingest_together(session, project_id, [event], coming, received_at)
    except sa.exc.DataError:
        return [errors.Invalid("the event holds a value that the database cannot store.")]


def ingest_together(
    session: orm.Session,
    project_id: uuid.UUID,
    batch: Sequence[NewEvent],
    coming: Sequence[Picture],
    received_at: dt.datetime | None = None,
) -> list[Ingested | errors.CmerwatchError]:
    """`ingest_many` for a caller that begins anew: a DataError of one event leaves the transaction unusable."""
    now = received_at or dt.datetime.now(dt.UTC)
    made = [(ids.uuid7(now), event) for event in batch]
    rows = json.dumps([_row(event_id, event, now) for event_id, event in made], default=str)
    values = {"project": str(project_id), "rows": rows, "now": now.isoformat(), "bucket": bucket_of(now).isoformat()}
    stored = {row[0] for row in db.fetch(session, _INGEST, values | _arrays(coming))}
    fetches.expect(session, project_id, {one: event.urls for one, event in made if event.urls and one in stored})
    return [
        Ingested(event_id, "accepted") if event_id in stored else _recognise(session, project_id, event, coming)
        for event_id, event in made
    ]


# One statement for a whole batch: at 64 events the round trips of one INSERT each would cost more than the fsync.
# Two retries at once meet at the primary key of ingest_keys: the second waits for the first's commit, is left out
# here, and is recognised by the statement after. Keys are taken in order, so that two batches cannot deadlock.
# Images are looked up by a scalar subquery: of NOT EXISTS, a plan cached on an empty table joins a whole project's.
_INGEST: Final = """
    WITH sent AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS t(
            id uuid, event_key text, key_hash text, body_hash text, occurred_at timestamptz, is_late boolean,
            images text[], geo_p float8, mean_p float8, min_p float8, n_tokens int, confidence_status text,
            sample_rate float8, endpoint text, prompt_type text, customer text, model text, model_version text,
            environment text, prompt text, output text, tokens text[], logprobs float8[], request_id text,
            response_id text, trace_id text, text_sanitized boolean, metadata jsonb)
    ), whole AS (
        SELECT * FROM sent WHERE NOT EXISTS (
            SELECT FROM unnest(sent.images) AS wanted(sha256)
            WHERE wanted.sha256 <> ALL (%(hashes)s::text[]) AND (
                SELECT true FROM images
                WHERE images.project_id = %(project)s::uuid AND images.sha256 = wanted.sha256) IS NULL)
    ), keys AS (
        INSERT INTO ingest_keys (project_id, key_hash, body_hash, event_id)
        SELECT %(project)s::uuid, decode(key_hash, 'hex'), decode(body_hash, 'hex'), id
        FROM whole WHERE key_hash IS NOT NULL ORDER BY key_hash
        ON CONFLICT DO NOTHING RETURNING event_id
    ), new AS (
        SELECT * FROM whole WHERE key_hash IS NULL OR id IN (SELECT event_id FROM keys)
    ), noted AS (
        INSERT INTO images (project_id, sha256, size_bytes, format, width, height)
        SELECT %(project)s::uuid, * FROM unnest(%(hashes)s::text[], %(sizes)s::int[], %(formats)s::text[],
            %(widths)s::int[], %(heights)s::int[]) AS came(sha256)
        WHERE came.sha256 IN (SELECT unnest(new.images) FROM new) ORDER BY came.sha256
        ON CONFLICT DO NOTHING
    ), made_events AS (
        INSERT INTO events (id, project_id, event_key, received_at, occurred_at, is_late, images, geo_p, mean_p, min_p,
            n_tokens, confidence_status, sample_rate, endpoint, prompt_type, customer, model, model_version,
            environment)
        SELECT id, %(project)s::uuid, event_key, %(now)s::timestamptz, occurred_at, is_late, images, geo_p, mean_p,
            min_p, n_tokens, confidence_status, sample_rate, endpoint, prompt_type, customer, model, model_version,
            environment
        FROM new
    ), made_bodies AS (
        INSERT INTO event_bodies (id, prompt, output, tokens, logprobs, request_id, response_id, trace_id,
            text_sanitized, metadata)
        SELECT id, prompt, output, tokens, logprobs, request_id, response_id, trace_id, text_sanitized, metadata
        FROM new
    ), made_work AS (
        INSERT INTO work (event_id, project_id, bucket, endpoint, prompt_type, customer, model, model_version,
            environment)
        SELECT id, %(project)s::uuid, %(bucket)s::timestamptz, endpoint, prompt_type, customer, model, model_version,
            environment
        FROM new
    )
    SELECT id FROM new
"""


def _recognise(
    session: orm.Session, project_id: uuid.UUID, event: NewEvent, coming: Sequence[Picture]
) -> Ingested | errors.CmerwatchError:
    """What an event is that was not stored: a retry, another body under a used id, or one whose image is unknown."""
    known = session.execute(
        sa.select(models.IngestKey.event_id, models.IngestKey.body_hash).where(
            models.IngestKey.project_id == project_id, models.IngestKey.key_hash == ids.key_hash(event.event_id or "")
        )
    ).one_or_none()
    if known is not None and event.event_id is not None:
        if known.body_hash == body_hash(event):
            return Ingested(known.event_id, "duplicate")
        return errors.Conflict(
            "event_id was already used for an event with another body; send a new event_id for a new event.",
            field="event_id",
            id=str(known.event_id),
        )
    came = {picture.sha256 for picture in coming}
    missing = [sha256 for sha256 in missing_images(session, project_id, event.images) if sha256 not in came]
    if not missing:  # its key or its image went or came between two statements
        return errors.Unavailable("This event met a change of the same id or image; nothing was stored. Retry it.")
    return errors.ImageUnknown(
        f"images names sha256 {missing[0]}, which this project has not uploaded; "
        f"PUT /v1/images/{missing[0]} first or send the bytes with the event.",
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
    """Look at one image and store it; returns its sha256. Raises ImageRefused, StorageFull, Unavailable."""
    picture = look(data, sha256, limits)
    store_images(session, blobs, project_id, [picture])
    return picture.sha256


@dataclass(frozen=True, slots=True)
class Picture:
    """Image bytes that may be stored: their hash and header were looked at."""

    sha256: str
    data: bytes = field(repr=False)
    header: images.ImageHeader


def look(data: bytes, sha256: str | None = None, limits: images.Limits | None = None) -> Picture:
    """Raises ImageRefused (format, side, pixels, bytes that do not match the hash they came with)."""
    actual = hashlib.sha256(data).hexdigest()
    if sha256 is not None and sha256 != actual:
        raise errors.ImageRefused(
            f"image bytes sent as sha256 {sha256} hash to {actual}; send the hash of the exact bytes.", sha256=actual
        )
    return Picture(actual, data, images.inspect(data, limits))


def store_images(
    session: orm.Session, blobs: blob_store.BlobStore, project_id: uuid.UUID, pictures: Sequence[Picture]
) -> None:
    """Put the bytes on durable storage, then note them: a row never promises bytes that are not there."""
    ordered = sorted(pictures, key=lambda picture: picture.sha256)  # the same order everywhere cannot deadlock
    for picture in ordered:
        blobs.put(project_id, picture.sha256, picture.data)
    note_images(session, project_id, ordered)


def note_images(session: orm.Session, project_id: uuid.UUID, stored: Sequence[Picture]) -> None:
    """Of bytes that are on durable storage already."""
    if stored:
        session.execute(_NOTE_IMAGES, {"project": project_id, **_columns(stored)})


def _columns(pictures: Sequence[Picture]) -> dict[str, list[Any]]:
    """One list per column of `images`, as the statements unnest them."""
    return {
        "hashes": [picture.sha256 for picture in pictures],
        "sizes": [len(picture.data) for picture in pictures],
        "formats": [picture.header.format for picture in pictures],
        "widths": [picture.header.width for picture in pictures],
        "heights": [picture.header.height for picture in pictures],
    }


def _arrays(pictures: Sequence[Picture]) -> dict[str, str]:
    """`_columns` as Postgres writes arrays; hashes, numbers and names of formats hold nothing to quote."""
    return {name: "{" + ",".join(map(str, values)) + "}" for name, values in _columns(pictures).items()}


_NOTE_IMAGES = sa.text(
    """
    INSERT INTO images (project_id, sha256, size_bytes, format, width, height)
    SELECT :project, * FROM unnest(CAST(:hashes AS text[]), CAST(:sizes AS int[]), CAST(:formats AS text[]),
        CAST(:widths AS int[]), CAST(:heights AS int[]))
    ON CONFLICT DO NOTHING
    """
).bindparams(sa.bindparam("project", type_=sa.Uuid()))


def _row(event_id: uuid.UUID, event: NewEvent, now: dt.datetime) -> dict[str, Any]:
    """The event as _INGEST reads it from JSON."""
    measured = confidence.measure(event.logprobs, event.confidence, event.confidence_status, event.tokens)
    return {
        "id": event_id,
        "event_key": event.event_id,
        "key_hash": None if event.event_id is None else ids.key_hash(event.event_id).hex(),
        "body_hash": body_hash(event).hex(),
        "occurred_at": event.occurred_at,
        "is_late": event.occurred_at is not None and now - event.occurred_at > LATE_AFTER,
        "images": event.images,
        "geo_p": measured.geo_p,
        "mean_p": measured.mean_p,
        "min_p": measured.min_p,
        "n_tokens": measured.n_tokens,
        "confidence_status": measured.status,
        "sample_rate": event.sample_rate,
        "prompt": event.prompt or "",
        "output": event.output,
        "tokens": event.tokens,
        "logprobs": event.logprobs,
        "request_id": event.request_id,
        "response_id": event.response_id,
        "trace_id": event.trace_id,
        "text_sanitized": event.text_sanitized,
        "metadata": event.metadata,
        **event.slice._asdict(),
    }
