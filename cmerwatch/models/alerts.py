"""What to watch, where it stands, what was told to whom, and who asked for quiet."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Id, project_key

STATES = ("ok", "pending", "firing", "recovering", "no_data", "insufficient")


class AlertRule(Base):
    """One thing to watch, for each slice of its scopes; edited in place, with `version` counting the edits.

    `kind`: threshold (the interval's lower bound over `threshold`), baseline (over `multiple` times the seven days
    before, or over `threshold` where that is set too), no_data (silence where there was traffic, or low coverage).
    `scopes`: project, or names of dimensions, of which every value is a slice. `match` narrows all of them.
    Empty `channel_ids` means every channel of the project.
    """

    __tablename__ = "alert_rules"
    __table_args__ = (
        sa.CheckConstraint("kind IN ('threshold','baseline','no_data')", name="kind"),
        sa.CheckConstraint("metric IN ('cmer','uer')", name="metric"),
        sa.CheckConstraint("severity IN ('info','warning','critical')", name="severity"),
        sa.Index(None, "project_id"),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    name: orm.Mapped[str]
    kind: orm.Mapped[str]
    metric: orm.Mapped[str] = orm.mapped_column(server_default="cmer")
    scopes: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text))
    match: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB, server_default="{}")
    threshold: orm.Mapped[float | None]
    multiple: orm.Mapped[float | None]
    window_seconds: orm.Mapped[int]
    for_seconds: orm.Mapped[int] = orm.mapped_column(server_default="0")
    keep_firing_seconds: orm.Mapped[int] = orm.mapped_column(server_default="600")
    repeat_seconds: orm.Mapped[int] = orm.mapped_column(server_default="14400")
    min_n: orm.Mapped[int] = orm.mapped_column(server_default="50")
    min_coverage: orm.Mapped[float] = orm.mapped_column(server_default="0.95")
    severity: orm.Mapped[str]
    channel_ids: orm.Mapped[list[uuid.UUID]] = orm.mapped_column(pg.ARRAY(sa.Uuid), server_default="{}")
    is_enabled: orm.Mapped[bool] = orm.mapped_column(server_default=sa.true())
    is_default: orm.Mapped[bool] = orm.mapped_column(server_default=sa.false())
    version: orm.Mapped[int] = orm.mapped_column(server_default="1")
    created_by: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]
    updated_at: orm.Mapped[CreatedAt]
    deleted_at: orm.Mapped[dt.datetime | None]


class AlertState(Base):
    """Where one rule stands for one slice. `evaluated_bucket` is the end of the last closed bucket looked at: a tick
    that finds it moved on changes nothing, so any number of processes may tick."""

    __tablename__ = "alert_states"
    __table_args__ = (
        sa.CheckConstraint("state IN ('ok','pending','firing','recovering','no_data','insufficient')", name="state"),
        sa.Index(None, "project_id", "state"),
    )

    rule_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("alert_rules.id", ondelete="CASCADE"), primary_key=True
    )
    slice_key: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID]
    slice: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB)
    state: orm.Mapped[str]
    since: orm.Mapped[dt.datetime]
    evaluated_bucket: orm.Mapped[dt.datetime]
    alert_id: orm.Mapped[uuid.UUID | None]
    evidence: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB, server_default="{}")
    reason: orm.Mapped[str] = orm.mapped_column(server_default="")


class Alert(Base):
    """One episode: a rule firing for a slice, from its first page to its recovery. Rule and severity are as they were
    when it began.

    `group_id` is the alert that opened its incident, its own id where it leads; null in what the release before wrote,
    which stands alone. A group is open while one of its alerts is. `told_at`: when a message first named this alert.
    Of a group's first alert, `last_told_at` is when anybody was last told of the group, and `told_slices` how many
    slices the last message said fire.
    """

    __tablename__ = "alerts"
    __table_args__ = (
        sa.Index(
            "uq_alerts_open", "rule_id", "slice_key", unique=True, postgresql_where=sa.text("resolved_at IS NULL")
        ),
        sa.Index(None, "project_id", "id"),
        sa.Index(None, "group_id"),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    group_id: orm.Mapped[uuid.UUID | None]
    rule_id: orm.Mapped[uuid.UUID]
    rule_name: orm.Mapped[str]
    rule_version: orm.Mapped[int]
    severity: orm.Mapped[str]
    slice_key: orm.Mapped[str]
    slice: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB)
    fired_at: orm.Mapped[dt.datetime]
    resolved_at: orm.Mapped[dt.datetime | None]
    last_told_at: orm.Mapped[dt.datetime | None]
    told_at: orm.Mapped[dt.datetime | None]
    told_slices: orm.Mapped[int] = orm.mapped_column(server_default="0")
    evidence: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB, server_default="{}")


class AlertTransition(Base):
    """One change of one state, with the numbers it was made on: the history of a rule."""

    __tablename__ = "alert_transitions"
    __table_args__ = (sa.Index(None, "project_id", "id"), sa.Index(None, "rule_id", "slice_key", "id"))

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    rule_id: orm.Mapped[uuid.UUID]
    slice_key: orm.Mapped[str]
    slice: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB)
    alert_id: orm.Mapped[uuid.UUID | None]
    from_state: orm.Mapped[str]
    to_state: orm.Mapped[str]
    bucket: orm.Mapped[dt.datetime]
    evidence: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB, server_default="{}")
    reason: orm.Mapped[str] = orm.mapped_column(server_default="")
    at: orm.Mapped[CreatedAt]


class Channel(Base):
    """Where messages go. The configuration (URLs, routing keys, signing secrets) is sealed; `hint` is what may be
    shown of it. `next_send_at` keeps the service's rate limit: a delivery is claimed only once it has passed."""

    __tablename__ = "channels"
    __table_args__ = (
        sa.CheckConstraint("kind IN ('slack','pagerduty','webhook')", name="kind"),
        sa.Index(None, "project_id"),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    kind: orm.Mapped[str]
    name: orm.Mapped[str]
    sealed_config: orm.Mapped[bytes]
    hint: orm.Mapped[str]
    min_severity: orm.Mapped[str] = orm.mapped_column(server_default="info")
    disabled_at: orm.Mapped[dt.datetime | None]
    disabled_reason: orm.Mapped[str | None]
    last_ok_at: orm.Mapped[dt.datetime | None]
    last_error_at: orm.Mapped[dt.datetime | None]
    last_error: orm.Mapped[str | None]
    next_send_at: orm.Mapped[CreatedAt]
    created_by: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]
    deleted_at: orm.Mapped[dt.datetime | None]


class Delivery(Base):
    """One message to one channel: written with the transition it tells of, sent by any worker, at least once.

    `alert_id` is the alert that opened the group it tells of. `sequence` orders the messages of one group to one
    channel. `id` is what receivers know a message by, the same on
    every try. `sealed_config` is the channel's as it was when the group's first message went out: a resolve must reach
    the service that was triggered, even when the channel's key was changed between.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        sa.CheckConstraint("kind IN ('firing','repeat','update','resolved','test')", name="kind"),
        sa.CheckConstraint("state IN ('pending','delivered','dead','superseded')", name="state"),
        sa.UniqueConstraint("transition_id", "channel_id"),
        sa.Index(None, "next_at", postgresql_where=sa.text("state = 'pending'")),
        sa.Index(None, "channel_id", "alert_id", "sequence"),
        sa.Index(None, "project_id", "id"),
        sa.Index(None, "alert_id"),
    )

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    channel_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sa.ForeignKey("channels.id", ondelete="CASCADE"))
    alert_id: orm.Mapped[uuid.UUID | None]
    transition_id: orm.Mapped[uuid.UUID | None]
    sequence: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity())
    kind: orm.Mapped[str]
    notice: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB)
    sealed_config: orm.Mapped[bytes | None]
    state: orm.Mapped[str] = orm.mapped_column(server_default="pending")
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    next_at: orm.Mapped[CreatedAt]
    lease_token: orm.Mapped[uuid.UUID | None]
    lease_until: orm.Mapped[dt.datetime | None]
    last_status: orm.Mapped[int | None]
    last_error: orm.Mapped[str | None]
    created_at: orm.Mapped[CreatedAt]
    delivered_at: orm.Mapped[dt.datetime | None]


class Silence(Base):
    """No messages for matching alerts while it lasts; states and history go on. `rule_id` null means every rule."""

    __tablename__ = "silences"
    __table_args__ = (sa.Index(None, "project_id", "ends_at"),)

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    rule_id: orm.Mapped[uuid.UUID | None]
    match: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB, server_default="{}")
    starts_at: orm.Mapped[dt.datetime]
    ends_at: orm.Mapped[dt.datetime]
    reason: orm.Mapped[str]
    created_by: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]


class SinkMessage(Base):
    """What the demo's sink was sent, byte for byte: the exact bodies that Slack, PagerDuty and a webhook would get."""

    __tablename__ = "sink_messages"
    __table_args__ = (sa.Index(None, "project_id", "id"),)

    id: orm.Mapped[Id]
    project_id: orm.Mapped[uuid.UUID] = project_key()
    kind: orm.Mapped[str]
    headers: orm.Mapped[dict[str, str]] = orm.mapped_column(pg.JSONB)
    body: orm.Mapped[str]
    at: orm.Mapped[CreatedAt]
