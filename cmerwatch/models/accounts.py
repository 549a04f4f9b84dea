"""Who may do what: projects, users, keys, console sessions and the log of what they changed."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch.models.base import Base, CreatedAt, Id, project_key

ROLES = ("viewer", "reviewer", "lead", "engineer", "admin")


class Project(Base):
    """`blind_since`: from then on reviewers see picture and text alone before their verdict; NULL: everything."""

    __tablename__ = "projects"

    id: orm.Mapped[Id]
    slug: orm.Mapped[str] = orm.mapped_column(unique=True)
    name: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]
    blind_since: orm.Mapped[dt.datetime | None]


class User(Base):
    __tablename__ = "users"

    id: orm.Mapped[Id]
    login: orm.Mapped[str] = orm.mapped_column(unique=True)
    name: orm.Mapped[str]
    password_hash: orm.Mapped[str | None]
    disabled_at: orm.Mapped[dt.datetime | None]
    created_at: orm.Mapped[CreatedAt]


class Membership(Base):
    __tablename__ = "memberships"
    __table_args__ = (sa.CheckConstraint("role IN ('viewer','reviewer','lead','engineer','admin')", name="role"),)

    project_id: orm.Mapped[uuid.UUID] = orm.mapped_column(
        sa.ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    user_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: orm.Mapped[str]


class SignInLink(Base):
    """A one-time link; only its hash is kept."""

    __tablename__ = "sign_in_links"

    token_hash: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    expires_at: orm.Mapped[dt.datetime]
    used_at: orm.Mapped[dt.datetime | None]


class Invitation(Base):
    """A place in a project that waits for somebody of this login, who may have an account already or not: nobody who
    invites is told which. Only the hash of its link is kept; it is deleted when it is taken."""

    __tablename__ = "invitations"
    __table_args__ = (
        sa.UniqueConstraint("project_id", "login"),
        sa.CheckConstraint("role IN ('viewer','reviewer','lead','engineer','admin')", name="role"),
    )

    token_hash: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID] = project_key()
    login: orm.Mapped[str]
    name: orm.Mapped[str]
    role: orm.Mapped[str]
    created_at: orm.Mapped[CreatedAt]
    expires_at: orm.Mapped[dt.datetime]


class RefusedSignIns(Base):
    """How often a wrong password was given for one account within one minute, so that whoever guesses fills no table.

    `user_id` is all zeros for logins that nobody has: they take the same time and one row together.
    """

    __tablename__ = "refused_sign_ins"

    user_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    minute: orm.Mapped[dt.datetime] = orm.mapped_column(primary_key=True)
    tries: orm.Mapped[int]
    address: orm.Mapped[str]  # of the last one


class ConsoleSession(Base):
    """A signed-in browser; only the hash of its 256-bit cookie is kept."""

    __tablename__ = "console_sessions"

    token_hash: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: orm.Mapped[CreatedAt]
    last_seen_at: orm.Mapped[CreatedAt]
    expires_at: orm.Mapped[dt.datetime]


class ApiKey(Base):
    """`id` is the public part of the key; the secret is kept as an HMAC only."""

    __tablename__ = "api_keys"

    id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    project_id: orm.Mapped[uuid.UUID] = project_key()
    name: orm.Mapped[str]
    secret_hash: orm.Mapped[bytes]
    scopes: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text))
    user_id: orm.Mapped[uuid.UUID | None] = orm.mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    created_at: orm.Mapped[CreatedAt]
    expires_at: orm.Mapped[dt.datetime | None]
    revoked_at: orm.Mapped[dt.datetime | None]
    last_used_at: orm.Mapped[dt.datetime | None]  # to the hour: not a write on every request


class AuditEntry(Base):
    """Append-only; a trigger refuses UPDATE, DELETE and TRUNCATE. Never holds prompts, outputs, keys or links."""

    __tablename__ = "audit_log"

    id: orm.Mapped[Id]
    at: orm.Mapped[CreatedAt]
    project_id: orm.Mapped[uuid.UUID | None]
    actor: orm.Mapped[str]
    action: orm.Mapped[str]
    target: orm.Mapped[str]
    details: orm.Mapped[dict[str, Any]] = orm.mapped_column(pg.JSONB, server_default="{}")


class Heartbeat(Base):
    """When a named background part last finished a round; /readyz reads it."""

    __tablename__ = "heartbeats"

    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    at: orm.Mapped[CreatedAt]
