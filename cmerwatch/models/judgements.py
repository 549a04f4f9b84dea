"""What a second opinion said of suspicious outputs, and what was spent on asking."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Id, project_key

JUDGEMENT_STATES = ("waiting", "judged", "failed", "skipped")


class Judgement(Base):
    """One event put to the judge: a vision-language model asked yes or no about each of its weakest claims.

    `p_yes` is the lowest of its claims' probabilities of being true; it stands beside the checker's score and is never
    mixed with it. `reason` says why there is none: timeout, unreachable, http_<status>, no_logprobs, unclear,
    not_json, no_picture, store_away, over_budget, judge_died.
    """

    __tablename__ = "judgements"
    __table_args__ = (
        sa.CheckConstraint("state IN ('waiting','judged','failed','skipped')", name="state"),
        sa.CheckConstraint("(state = 'judged') = (p_yes IS NOT NULL)", name="judged_has_p_yes"),
        sa.Index(None, "next_at", postgresql_where=sa.text("state = 'waiting'")),
        sa.Index(None, "project_id", "event_id"),
    )

    event_id: orm.Mapped[Id]
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID] = project_key()
    state: orm.Mapped[str] = orm.mapped_column(server_default="waiting")
    judge: orm.Mapped[str | None]
    p_yes: orm.Mapped[float | None]
    claims: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(pg.JSONB, server_default="[]")
    reason: orm.Mapped[str] = orm.mapped_column(server_default="")
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    next_at: orm.Mapped[CreatedAt]
    lease_token: orm.Mapped[uuid.UUID | None]
    lease_until: orm.Mapped[dt.datetime | None]
    calls: orm.Mapped[int] = orm.mapped_column(server_default="0")
    tokens: orm.Mapped[int] = orm.mapped_column(server_default="0")
    created_at: orm.Mapped[CreatedAt]
    judged_at: orm.Mapped[dt.datetime | None]


class JudgeSpend(Base):
    """What the whole installation asked of the judge on one day (UTC). Calls are reserved before they are made, so the
    limit holds whatever happens to whoever made them."""

    __tablename__ = "judge_spend"

    day: orm.Mapped[dt.date] = orm.mapped_column(primary_key=True)
    calls: orm.Mapped[int] = orm.mapped_column(server_default="0")
    tokens: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, server_default="0")
