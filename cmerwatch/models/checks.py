"""What checkers said, what policies made of it, and the counts."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Dimensions, Id


class Checker(Base):
    """One row per checker id ever used; scores of different rows never share a threshold or a chart line."""

    __tablename__ = "checkers"

    id: orm.Mapped[int] = orm.mapped_column(sa.Identity(), primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    label: orm.Mapped[str]
    is_demo: orm.Mapped[bool]
    reference_version: orm.Mapped[str | None]
    created_at: orm.Mapped[CreatedAt]


class Check(Base):
    __tablename__ = "checks"
    __table_args__ = (
        sa.CheckConstraint(
            "outcome IN ('scored','unscorable','invalid_image','model_error','quarantined')", name="outcome"
        ),
        {"postgresql_partition_by": "RANGE (event_id)"},
    )

    event_id: orm.Mapped[Id]
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID]
    outcome: orm.Mapped[str]
    similarity: orm.Mapped[float | None]
    score: orm.Mapped[float | None]
    mismatch_percentile: orm.Mapped[float | None]
    claims: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(pg.JSONB, server_default="[]")
    reasons: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text), server_default="{}")
    created_at: orm.Mapped[CreatedAt]


class DecisionRow(Base):
    """Its own table, so that history can be re-decided and both versions stay readable."""

    __tablename__ = "decisions"
    __table_args__ = (
        sa.Index("ix_decisions_flagged", "project_id", "event_id", postgresql_where=sa.text("flagged")),
        {"postgresql_partition_by": "RANGE (event_id)"},
    )

    event_id: orm.Mapped[Id]
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    policy_version: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID]
    flagged: orm.Mapped[bool]
    low_similarity: orm.Mapped[bool]
    conf_threshold: orm.Mapped[float]
    sim_threshold: orm.Mapped[float]
    decided_at: orm.Mapped[CreatedAt]


class PolicyVersion(Base):
    """One immutable set of rules per version; the highest version is in force.

    `rules`: [{"match": {dimension: value}, "conf_threshold": 0.8, "sim_threshold": "auto" | number}];
    the most specific match wins.
    """

    __tablename__ = "policy_versions"

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    version: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    rules: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(pg.JSONB)
    created_at: orm.Mapped[CreatedAt]
    created_by: orm.Mapped[str]


class RollupColumns(Dimensions):
    """Additive only, so that any two rows of any buckets merge by adding."""

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    bucket: orm.Mapped[dt.datetime] = orm.mapped_column(primary_key=True)
    endpoint: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    prompt_type: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    customer: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    model: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    model_version: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    environment: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    policy_version: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    scored: orm.Mapped[int] = orm.mapped_column(server_default="0")
    unscorable: orm.Mapped[int] = orm.mapped_column(server_default="0")
    invalid_image: orm.Mapped[int] = orm.mapped_column(server_default="0")
    model_error: orm.Mapped[int] = orm.mapped_column(server_default="0")
    undecided: orm.Mapped[int] = orm.mapped_column(server_default="0")
    n: orm.Mapped[int] = orm.mapped_column(server_default="0")
    flagged: orm.Mapped[int] = orm.mapped_column(server_default="0")
    low: orm.Mapped[int] = orm.mapped_column(server_default="0")
    low_unconfirmed: orm.Mapped[int] = orm.mapped_column(server_default="0")
    late_scored: orm.Mapped[int] = orm.mapped_column(server_default="0")
    late_n: orm.Mapped[int] = orm.mapped_column(server_default="0")
    late_flagged: orm.Mapped[int] = orm.mapped_column(server_default="0")
    sim_hist: orm.Mapped[list[int]] = orm.mapped_column(pg.ARRAY(sa.Integer))
    score_hist: orm.Mapped[list[int]] = orm.mapped_column(pg.ARRAY(sa.Integer))


class Rollup5m(RollupColumns, Base):
    __tablename__ = "rollups_5m"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Rollup1h(RollupColumns, Base):
    __tablename__ = "rollups_1h"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)
