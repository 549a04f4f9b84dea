"""Reading the audit log: who changed what, newest first."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, models


@dataclass(frozen=True, slots=True)
class Page:
    entries: Sequence[models.AuditEntry]
    next_cursor: str | None


def find(
    session: orm.Session,
    project_id: uuid.UUID,
    action: str = "",
    actor: str = "",
    cursor: str = "",
    limit: int = 100,
) -> Page:
    """Entries of a project, and its members' sign-ins, which belong to no project. Keyset by id: stable as it grows."""
    statement = sa.select(models.AuditEntry).where(_of(project_id))
    if action:
        statement = statement.where(models.AuditEntry.action == action)
    if actor:
        statement = statement.where(models.AuditEntry.actor == actor)
    if cursor:
        statement = statement.where(models.AuditEntry.id < _cursor(cursor))
    found = session.scalars(statement.order_by(models.AuditEntry.id.desc()).limit(limit + 1)).all()
    more = len(found) > limit
    return Page(found[:limit], str(found[limit - 1].id) if more else None)


def actions(session: orm.Session, project_id: uuid.UUID) -> Sequence[str]:
    """What a filter may name."""
    return session.scalars(
        sa.select(models.AuditEntry.action).where(_of(project_id)).distinct().order_by("action")
    ).all()


def actors(session: orm.Session, project_id: uuid.UUID) -> Sequence[str]:
    return session.scalars(sa.select(models.AuditEntry.actor).where(_of(project_id)).distinct().order_by("actor")).all()


def _of(project_id: uuid.UUID) -> sa.ColumnElement[bool]:
    members = (
        sa.select(sa.literal("user:").concat(models.User.login))
        .join(models.Membership, models.Membership.user_id == models.User.id)
        .where(models.Membership.project_id == project_id)
    )
    about_a_member = sa.and_(models.AuditEntry.project_id.is_(None), models.AuditEntry.actor.in_(members))
    return sa.or_(models.AuditEntry.project_id == project_id, about_a_member)


def _cursor(cursor: str) -> uuid.UUID:
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise errors.Invalid("`cursor` is not one this page gave; start again without it.", field="cursor") from None
