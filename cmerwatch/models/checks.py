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
    """One row per checker id and reference; scores of different rows never share a threshold or a chart line.

    `bundle_reference`: the version of the reference the bundle brings, '' for a checker that takes its own from the
    first traffic. `reference_version`: the one in force, set once; None while the checker is calibrating. So a bundle's
    new reference is a row of its own, and no rate ever mixes decisions under two of them.
    """

    __tablename__ = "checkers"
    __table_args__ = (sa.UniqueConstraint("name", "bundle_reference"),)

    id: orm.Mapped[int] = orm.mapped_column(sa.Identity(), primary_key=True)
    name: orm.Mapped[str]
    bundle_reference: orm.Mapped[str] = orm.mapped_column(server_default="")
    label: orm.Mapped[str]
    is_demo: orm.Mapped[bool]
    reference_version: orm.Mapped[str | None]
    # logit = scale * cosine + bias; a bias of None is a softmax-trained model, judged by its cosine. None: not noted.
    logit_scale: orm.Mapped[float | None]
    logit_bias: orm.Mapped[float | None]
    created_at: orm.Mapped[CreatedAt]


class CheckerReference(Base):
    """A frozen reference, kept whole: with it and the stored cosines any score can be computed again."""

    __tablename__ = "checker_references"

    checker_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("checkers.id"), primary_key=True)
    version: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    data: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB)
    created_at: orm.Mapped[CreatedAt]


class ReferenceSample(Base):
    """What calibrating collects until the reference freezes. The key makes the same images and output count once."""

    __tablename__ = "reference_samples"

    checker_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("checkers.id"), primary_key=True)
    content: orm.Mapped[Id]
    prompt_type: orm.Mapped[str]
    own: orm.Mapped[list[float]] = orm.mapped_column(pg.ARRAY(sa.Double))
    mismatched: orm.Mapped[list[float]] = orm.mapped_column(pg.ARRAY(sa.Double))


class Check(Base):
    __tablename__ = "checks"
    __table_args__ = (
        sa.CheckConstraint(
            "outcome IN ('scored','unscorable','invalid_image','model_error','quarantined')", name="outcome"
        ),
        # What a calibrating checker has scored and nobody decided yet; empty ever after.
        sa.Index(
            "ix_checks_undecided",
            "checker_id",
            "event_id",
            postgresql_where=sa.text("outcome = 'scored' AND score IS NULL"),
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
    prompt_similarity: orm.Mapped[float | None]
    policy_version: orm.Mapped[int | None]  # in force when it was checked, so the key under which it was counted
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


class Counts:
    """Additive only, so that any two rows of any buckets merge by adding.

    The histograms hold the bins from the first to the last that was ever counted, under their own subscripts
    (`'[251:253]={1,0,2}'`): a slice's cosines fill a tenth of the 400, and rows are read for their counts mostly. A bin
    outside, or NULL between, is 0; `sum(sim_hist[251])` needs no more.
    """

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


class RollupColumns(Dimensions, Counts):
    """One slice in one bucket."""

    score_hist: orm.Mapped[list[int]] = orm.mapped_column(pg.ARRAY(sa.Integer))
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


class Rollup5m(RollupColumns, Base):
    __tablename__ = "rollups_5m"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Rollup1h(RollupColumns, Base):
    __tablename__ = "rollups_1h"
    __table_args__ = (
        # For charts of one endpoint or customer by version: a tenth of the rows and less. A slice adds to them once an
        # hour; what it counts afterwards changes no index.
        sa.Index(None, "project_id", "endpoint", "bucket"),
        sa.Index(None, "project_id", "customer", "bucket"),
        {"postgresql_with": {"fillfactor": 60}},
    )


class Rollup1d(RollupColumns, Base):
    __tablename__ = "rollups_1d"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Redecided5m(RollupColumns, Base):
    """What one policy version says of outputs that another one had decided. Beside the rollups, never in them: those
    count every output once. Only what depends on thresholds is read from here."""

    __tablename__ = "redecided_5m"


class Redecided1h(RollupColumns, Base):
    __tablename__ = "redecided_1h"


class Redecided1d(RollupColumns, Base):
    __tablename__ = "redecided_1d"


class MarginColumns(Counts):
    """The sum over all slices that share one value of one dimension; over all there are where `dimension` is ''.

    What most charts and tables read: as many rows as the dimension has values, however many slices these make.
    `again`: the sum of the redecided rows, beside that of the rollups.
    """

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    dimension: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    bucket: orm.Mapped[dt.datetime] = orm.mapped_column(primary_key=True)
    value: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    checker_id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    policy_version: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    again: orm.Mapped[bool] = orm.mapped_column(primary_key=True)


class Margin5m(MarginColumns, Base):
    __tablename__ = "margins_5m"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Margin1h(MarginColumns, Base):
    __tablename__ = "margins_1h"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Margin1d(MarginColumns, Base):
    __tablename__ = "margins_1d"
    __table_args__ = ({"postgresql_with": {"fillfactor": 60}},)


class Redecision(Base):
    """The deciding again of a project's history under one policy version: `last_event_id` is how far it has come.

    `cancelled_at`: somebody stopped it there; started again, it goes on from there.
    """

    __tablename__ = "redecisions"

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    policy_version: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    created_by: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]
    finished_at: orm.Mapped[dt.datetime | None]
    cancelled_at: orm.Mapped[dt.datetime | None]
    last_event_id: orm.Mapped[uuid.UUID]
    seen: orm.Mapped[int] = orm.mapped_column(server_default="0")
    total: orm.Mapped[int]
