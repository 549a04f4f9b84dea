"""What people should look at, and what they said of it."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Id, project_key

VERDICTS = ("correct", "partially_correct", "hallucinated", "cannot_tell")
ERROR_TYPES = ("object", "attribute", "count", "relation", "text", "other")


class ReviewItem(Base):
    """A thing to look at, at most one per event. Audit items carry the probability with which they were drawn:
    it cannot be reconstructed later, and without it no unbiased rate can be estimated.

    `rank` orders the queue, lowest first: the moment the item was made, in seconds, less a head start for its
    priority. Every item ages at the same pace, so the order of two never changes and an index can hold it.
    A lease is `leased_by`, `lease_token` and `lease_until` together; it is over once `lease_until` has passed, though
    the state still says leased. An escalated item stays escalated while a lead holds it, so that an abandoned lease
    never hands it back to everybody.
    """

    __tablename__ = "review_items"
    __table_args__ = (
        sa.UniqueConstraint("project_id", "event_id"),
        sa.CheckConstraint("kind IN ('flagged','low_similarity_unconfirmed','audit')", name="kind"),
        sa.CheckConstraint("state IN ('open','leased','done','escalated')", name="state"),
        sa.Index(
            "ix_review_items_next",
            "project_id",
            "rank",
            "id",
            postgresql_where=sa.text("state IN ('open', 'leased')"),
        ),
        sa.Index(
            "ix_review_items_escalated", "project_id", "rank", "id", postgresql_where=sa.text("state = 'escalated'")
        ),
        sa.Index("ix_review_items_held", "project_id", "leased_by", postgresql_where=sa.text("leased_by IS NOT NULL")),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    event_id: orm.Mapped[uuid.UUID]
    checker_id: orm.Mapped[int]
    policy_version: orm.Mapped[int]
    kind: orm.Mapped[str]
    inclusion_probability: orm.Mapped[float] = orm.mapped_column(server_default="1")
    priority: orm.Mapped[float]
    rank: orm.Mapped[float] = orm.mapped_column(server_default=sa.text("extract(epoch FROM now())"))
    reasons: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text))
    state: orm.Mapped[str] = orm.mapped_column(server_default="open")
    skips: orm.Mapped[int] = orm.mapped_column(server_default="0")
    leased_by: orm.Mapped[uuid.UUID | None]
    lease_token: orm.Mapped[uuid.UUID | None]
    leased_at: orm.Mapped[dt.datetime | None]
    lease_until: orm.Mapped[dt.datetime | None]
    done_at: orm.Mapped[dt.datetime | None]
    created_at: orm.Mapped[CreatedAt]


class Review(Base):
    """One act of one reviewer on one item; a trigger refuses UPDATE, DELETE and TRUNCATE.

    `is_blind`: until this act nothing of the checker's was shown to whoever acted, on the review page or elsewhere.
    An undo is a row of its own that names the row it takes back in `undoes`. The two unique constraints hold what the
    lease check already refuses: a lease is answered once, and an act is taken back once.
    """

    __tablename__ = "reviews"
    __table_args__ = (
        sa.CheckConstraint("action IN ('verdict','skip','escalate','undo')", name="action"),
        sa.CheckConstraint("(action = 'verdict') = (verdict IS NOT NULL)", name="verdict_given"),
        sa.CheckConstraint("verdict IN ('correct','partially_correct','hallucinated','cannot_tell')", name="verdict"),
        sa.Index("uq_reviews_lease", "item_id", "lease_token", unique=True, postgresql_where=sa.text("undoes IS NULL")),
        sa.Index("uq_reviews_undoes", "undoes", unique=True),
        sa.Index(None, "project_id", "id"),
        sa.Index(None, "project_id", "event_id"),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID]
    item_id: orm.Mapped[uuid.UUID]
    event_id: orm.Mapped[uuid.UUID]
    reviewer_id: orm.Mapped[uuid.UUID]
    action: orm.Mapped[str]
    verdict: orm.Mapped[str | None]
    error_types: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text), server_default="{}")
    spans: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(pg.JSONB, server_default="[]")
    correction: orm.Mapped[str | None]
    note: orm.Mapped[str | None]
    reason: orm.Mapped[str | None]
    seconds: orm.Mapped[float | None]
    lease_token: orm.Mapped[uuid.UUID | None]
    undoes: orm.Mapped[uuid.UUID | None]
    is_blind: orm.Mapped[bool] = orm.mapped_column(server_default=sa.false())
    created_at: orm.Mapped[CreatedAt]
