"""What arrived: events and their bodies (day partitions on the UUIDv7 id), idempotency keys, images, open work.

No foreign key points at `events`: a referenced partition can be neither detached nor dropped.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Dimensions, Id, project_key

# FETCHING: its pictures are on their way, so no worker may claim it yet.
READY, LEASED, FETCHING, QUARANTINED = 0, 1, 2, 9
BEHIND = 100  # the priority of such work, behind all that can be claimed: a claim would step over each row every time
FETCH_STATES = ("waiting", "fetched", "failed", "skipped")


class Event(Dimensions, Base):
    __tablename__ = "events"
    __table_args__ = (
        sa.Index(None, "project_id", "id"),
        sa.Index(None, "project_id", "endpoint", "id"),
        sa.Index(None, "received_at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID]
    event_key: orm.Mapped[str | None]
    received_at: orm.Mapped[dt.datetime]
    occurred_at: orm.Mapped[dt.datetime | None]
    is_late: orm.Mapped[bool] = orm.mapped_column(server_default=sa.false())
    images: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text))
    geo_p: orm.Mapped[float | None]
    mean_p: orm.Mapped[float | None]
    min_p: orm.Mapped[float | None]
    n_tokens: orm.Mapped[int | None]
    confidence_status: orm.Mapped[str]
    sample_rate: orm.Mapped[float | None]


class EventBody(Base):
    """The wide part: text and logprobs, so that scans and retention of `events` stay cheap."""

    __tablename__ = "event_bodies"
    __table_args__ = ({"postgresql_partition_by": "RANGE (id)"},)

    id: orm.Mapped[Id]
    prompt: orm.Mapped[str]
    output: orm.Mapped[str]
    tokens: orm.Mapped[list[str] | None] = orm.mapped_column(pg.ARRAY(sa.Text))
    logprobs: orm.Mapped[list[float] | None] = orm.mapped_column(pg.ARRAY(sa.Double))
    request_id: orm.Mapped[str | None]
    response_id: orm.Mapped[str | None]
    trace_id: orm.Mapped[str | None]
    text_sanitized: orm.Mapped[bool] = orm.mapped_column(server_default=sa.false())
    metadata_: orm.Mapped[dict[str, Any]] = orm.mapped_column("metadata", pg.JSONB, server_default="{}")


class IngestKey(Base):
    """One row per (project, client event_id): a retry meets it here, whatever day it comes."""

    __tablename__ = "ingest_keys"

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    key_hash: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    body_hash: orm.Mapped[bytes]
    event_id: orm.Mapped[uuid.UUID]
    created_at: orm.Mapped[CreatedAt]


class Image(Base):
    """That the bytes of this sha256 are on durable storage for this project; never the bytes themselves."""

    __tablename__ = "images"

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    sha256: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    size_bytes: orm.Mapped[int]
    format: orm.Mapped[str]
    width: orm.Mapped[int]
    height: orm.Mapped[int]
    created_at: orm.Mapped[CreatedAt]


class Work(Dimensions, Base):
    """Thin, unpartitioned, deleted on completion. Carries slice and bucket so that waiting is counted per slice."""

    __tablename__ = "work"
    __table_args__ = (
        # Not partial on state: a column in an index, or in its predicate, makes every claim rewrite all indexes.
        sa.Index(None, "priority", "event_id"),
        {
            "postgresql_with": {
                "fillfactor": 70,
                # A queue's dead rows slow the claim: vacuum by count, not by share.
                "autovacuum_vacuum_scale_factor": 0,
                "autovacuum_vacuum_threshold": 5000,
            }
        },
    )

    event_id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID]
    bucket: orm.Mapped[dt.datetime]
    priority: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, server_default="0")
    state: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, server_default="0")
    attempts: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, server_default="0")
    not_before: orm.Mapped[CreatedAt]
    lease_until: orm.Mapped[dt.datetime | None]
    lease_token: orm.Mapped[uuid.UUID | None]
    last_error: orm.Mapped[str | None]
    refused: orm.Mapped[list[str] | None] = orm.mapped_column(pg.ARRAY(sa.Text))  # why its pictures never came


class ImageFetch(Base):
    """A picture that an event names by its address: waiting, fetched, failed, or skipped beside one that failed.

    `url` is whole while it is needed; once settled, only what may be shown is kept, because a signed address is a key.
    `reason`: why the last try failed, such as image_url_404; of a failed one, why there is no picture.
    """

    __tablename__ = "image_fetches"
    __table_args__ = (
        sa.CheckConstraint("state IN ('waiting','fetched','failed','skipped')", name="state"),
        sa.CheckConstraint("(state = 'fetched') = (sha256 IS NOT NULL)", name="fetched_has_sha256"),
        sa.Index(None, "next_at", postgresql_where=sa.text("state = 'waiting'")),
        sa.Index(None, "settled_at", postgresql_where=sa.text("state = 'failed'")),
    )

    event_id: orm.Mapped[Id]
    position: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, primary_key=True)
    project_id: orm.Mapped[uuid.UUID] = project_key()
    url: orm.Mapped[str]
    host: orm.Mapped[str]
    state: orm.Mapped[str] = orm.mapped_column(server_default="waiting")
    attempts: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, server_default="0")
    next_at: orm.Mapped[CreatedAt]
    lease_until: orm.Mapped[dt.datetime | None]
    lease_token: orm.Mapped[uuid.UUID | None]
    sha256: orm.Mapped[str | None]
    reason: orm.Mapped[str] = orm.mapped_column(server_default="")
    created_at: orm.Mapped[CreatedAt]
    settled_at: orm.Mapped[dt.datetime | None]


__all__ = [
    "BEHIND",
    "FETCHING",
    "FETCH_STATES",
    "LEASED",
    "QUARANTINED",
    "READY",
    "Event",
    "EventBody",
    "Image",
    "ImageFetch",
    "IngestKey",
    "Work",
]
