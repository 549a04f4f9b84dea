"""Reading the audit log: who changed what, newest first; and counting the sign-ins that were refused."""

from __future__ import annotations

import datetime as dt
import re
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


_ID = re.compile(r"(?:channel:)?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


def names(session: orm.Session, project_id: uuid.UUID, entries: Sequence[models.AuditEntry]) -> dict[str, str]:
    """What the ids among targets and actors are called now: rules, channels, silences and keys of this project, deleted
    ones too. What has no name is left out."""
    told = {text for entry in entries for text in (entry.target, entry.actor)}
    ids = {text: uuid.UUID(found[1]) for text in told if (found := _ID.fullmatch(text))}
    public = {text: text.removeprefix("key:") for text in told}
    named: dict[object, str] = {}
    for model, what, name in (
        (models.AlertRule, "rule", models.AlertRule.name),
        (models.Channel, "channel", models.Channel.name),
        (models.Silence, "silence", models.Silence.reason),
    ):
        rows = session.execute(
            sa.select(model.id, name).where(model.project_id == project_id, model.id.in_(ids.values()))
        )
        named |= {row_id: f"{what} {called}" for row_id, called in rows}
    keys = sa.select(models.ApiKey.id, models.ApiKey.name).where(models.ApiKey.project_id == project_id)
    rows = session.execute(keys.where(models.ApiKey.id.in_(public.values())))
    named |= {key_id: f"key {called}" for key_id, called in rows}
    return {text: named[of] for texts in (ids, public) for text, of in texts.items() if of in named}


# Sign-ins that were refused: one row per account and minute, whoever guesses.

NOBODY = uuid.UUID(int=0)  # all logins that nobody has: told to no project, and written so that they take as long
KEPT = dt.timedelta(days=90)
MAX_ADDRESS = 100

_REFUSED = sa.text(
    """
    INSERT INTO refused_sign_ins AS r (user_id, minute, tries, address)
    VALUES (coalesce((SELECT id FROM users WHERE login = :login), :nobody), date_trunc('minute', now()), 1, :address)
    ON CONFLICT (user_id, minute) DO UPDATE SET tries = r.tries + 1, address = excluded.address
    """
)


def refused_sign_in(session: orm.Session, login: str, address: str) -> None:
    """Count one. The login itself is not kept: people type passwords there too."""
    storable = login.encode("utf-8", "replace").decode().replace("\0", "?")
    session.execute(_REFUSED, {"login": storable, "nobody": NOBODY, "address": address[:MAX_ADDRESS]})


@dataclass(frozen=True, slots=True)
class Refused:
    """Tries at one member's account within the minute that begins at `at`; `address` is of the last one."""

    at: dt.datetime
    login: str
    tries: int
    address: str


def refused_sign_ins(session: orm.Session, project_id: uuid.UUID, limit: int = 50) -> list[Refused]:
    """Of the members of a project, the newest first."""
    row = models.RefusedSignIns
    found = (
        sa.select(row.minute, models.User.login, row.tries, row.address)
        .join(models.User, models.User.id == row.user_id)
        .join(models.Membership, models.Membership.user_id == row.user_id)
        .where(models.Membership.project_id == project_id)
    )
    return [Refused(*one) for one in session.execute(found.order_by(row.minute.desc(), models.User.login).limit(limit))]


def purge(session: orm.Session) -> int:
    """Forget refused sign-ins after KEPT; returns how many rows. Safe to race."""
    old = sa.delete(models.RefusedSignIns).where(models.RefusedSignIns.minute < sa.func.now() - KEPT)
    return len(session.execute(old.returning(models.RefusedSignIns.minute)).all())


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
