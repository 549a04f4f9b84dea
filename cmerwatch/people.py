"""The people of a project: who they are, what they may do, their passwords and sessions. Never without an admin."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, models

# A link or session that is over explains itself to nobody: it is kept for a day, then purged.
KEPT_AFTER = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Member:
    """`last_seen` is of the newest session that is still kept; None when there is none."""

    id: uuid.UUID
    login: str
    name: str
    role: str
    has_password: bool
    disabled_at: dt.datetime | None
    created_at: dt.datetime
    last_seen: dt.datetime | None


@dataclass(frozen=True, slots=True)
class OpenSession:
    """`handle` names a session of this person without opening it."""

    handle: str
    created_at: dt.datetime
    last_seen_at: dt.datetime
    is_this: bool


def members(session: orm.Session, project_id: uuid.UUID) -> list[Member]:
    """Everybody of a project, by login."""
    return [_member(row) for row in session.execute(_members(project_id).order_by(models.User.login))]


def member(session: orm.Session, project_id: uuid.UUID, user_id: uuid.UUID) -> Member:
    """Raises NotFound for somebody who is not of this project, and for nobody at all, alike."""
    row = session.execute(_members(project_id).where(models.User.id == user_id)).first()
    if row is None:
        raise errors.NotFound("There is no such person in this project.")
    return _member(row)


def _members(project_id: uuid.UUID) -> sa.Select[*tuple[Any, ...]]:
    seen = (
        sa.select(sa.func.max(models.ConsoleSession.last_seen_at))
        .where(models.ConsoleSession.user_id == models.User.id)
        .scalar_subquery()
    )
    return (
        sa.select(models.User, models.Membership.role, seen)
        .join(models.Membership, models.Membership.user_id == models.User.id)
        .where(models.Membership.project_id == project_id)
    )


def _member(row: sa.Row[*tuple[Any, ...]]) -> Member:
    user, role, seen = row
    has_password = user.password_hash is not None
    return Member(user.id, user.login, user.name, role, has_password, user.disabled_at, user.created_at, seen)


def add(session: orm.Session, project_id: uuid.UUID, login: str, name: str, role: str) -> tuple[models.User, bool]:
    """A new person, or one of another project who joins this one too; tells which. Raises Conflict for a member."""
    user = session.scalar(sa.select(models.User).where(models.User.login == login))
    if user is None:
        return access.create_user(session, project_id, login, name, role), True
    if session.get(models.Membership, (project_id, user.id)) is not None:
        raise errors.Conflict(f"{login!r} is of this project already; change their role in the list.", field="login")
    _require_role(role)
    session.add(models.Membership(project_id=project_id, user_id=user.id, role=role))
    session.flush()
    return user, False


def change_role(session: orm.Session, project_id: uuid.UUID, user_id: uuid.UUID, role: str) -> None:
    """Raises Conflict rather than leave the project without an admin."""
    _require_role(role)
    member(session, project_id, user_id)
    if role != "admin":
        _keep_an_admin(session, project_id, user_id)
    _membership(session, project_id, user_id).role = role
    session.flush()


def remove(session: orm.Session, project_id: uuid.UUID, user_id: uuid.UUID) -> None:
    """Out of this project at once: keys that act as them stop too. What they did stays, under their name."""
    member(session, project_id, user_id)
    _keep_an_admin(session, project_id, user_id)
    session.delete(_membership(session, project_id, user_id))
    session.flush()


def _membership(session: orm.Session, project_id: uuid.UUID, user_id: uuid.UUID) -> models.Membership:
    """As it is now: another admin may have removed them since they were looked for."""
    row = session.get(models.Membership, (project_id, user_id), populate_existing=True, with_for_update=True)
    if row is None:
        raise errors.NotFound("There is no such person in this project.")
    return row


def disable(session: orm.Session, user_id: uuid.UUID) -> None:
    """No sign-in, no session, no link and no key of theirs works from here on, in any project."""
    mine = sa.select(models.Membership.project_id).where(models.Membership.user_id == user_id)
    for project_id in session.scalars(mine.order_by(models.Membership.project_id)).all():
        _keep_an_admin(session, project_id, user_id)
    session.execute(sa.update(models.User).where(models.User.id == user_id).values(disabled_at=sa.func.now()))
    end_sessions(session, user_id)
    _void_links(session, user_id)


def enable(session: orm.Session, user_id: uuid.UUID) -> None:
    session.execute(sa.update(models.User).where(models.User.id == user_id).values(disabled_at=None))


def _keep_an_admin(session: orm.Session, project_id: uuid.UUID, leaving: uuid.UUID) -> None:
    """Two admins who remove one another at once would both succeed: the project's row makes them take turns.

    Only then are the admins read, in a statement of their own: one that had waited would still see the old rows.
    """
    session.execute(sa.select(models.Project.id).where(models.Project.id == project_id).with_for_update(key_share=True))
    admins = session.scalars(
        sa.select(models.Membership.user_id)
        .join(models.User, models.User.id == models.Membership.user_id)
        .where(
            models.Membership.project_id == project_id,
            models.Membership.role == "admin",
            models.User.disabled_at.is_(None),
        )
    ).all()
    if admins == [leaving]:
        raise errors.Conflict("This is the project's last admin; make somebody else an admin first.")


def _require_role(role: str) -> None:
    if role not in models.ROLES:
        raise errors.Invalid(f"role is {role!r}; it must be one of {', '.join(models.ROLES)}", field="role")


def require_power_over(session: orm.Session, admin_id: uuid.UUID | None, user_id: uuid.UUID) -> None:
    """Raises Forbidden when the person also belongs to a project that this admin does not administer.

    A sign-in link opens all of a person's projects: an admin of one of them must not get into the others by it.
    """
    theirs = sa.select(models.Membership.project_id).where(models.Membership.user_id == user_id)
    mine = sa.select(models.Membership.project_id).where(
        models.Membership.user_id == admin_id, models.Membership.role == "admin"
    )
    beyond = sa.select(sa.exists(theirs.where(models.Membership.project_id.not_in(mine))))
    if session.scalar(beyond):
        raise errors.Forbidden(
            "This person also works in a project that you do not administer. Whoever runs this installation can do it "
            "(`cmerwatch user`); you can change their role here or remove them from this project."
        )


# Passwords


def set_password(session: orm.Session, user_id: uuid.UUID, password: str) -> None:
    """Ends every session and voids every link: whoever had the old password is out. Raises Invalid."""
    hashed = access.hash_password(password)
    session.execute(sa.update(models.User).where(models.User.id == user_id).values(password_hash=hashed))
    end_sessions(session, user_id)
    _void_links(session, user_id)


def change_password(session: orm.Session, user_id: uuid.UUID, current: str, new: str) -> None:
    """Raises Invalid naming `current` when that is not the password; somebody who has none gives none."""
    user = session.get_one(models.User, user_id)
    if user.password_hash is not None:
        try:
            access.verify_password(session, user.login, current)
        except errors.Unauthenticated:
            raise errors.Invalid("This is not your current password.", field="current") from None
    set_password(session, user_id, new)


# Sessions


def open_sessions(session: orm.Session, user_id: uuid.UUID, cookie: str | None) -> list[OpenSession]:
    """Those that still open the console, the newest first; `cookie` is the asker's own."""
    own = access.token_hash(cookie or "")
    rows = session.scalars(
        sa.select(models.ConsoleSession)
        .where(
            models.ConsoleSession.user_id == user_id,
            models.ConsoleSession.expires_at > sa.func.now(),
            models.ConsoleSession.last_seen_at > sa.func.now() - access.IDLE,
        )
        .order_by(models.ConsoleSession.last_seen_at.desc())
    )
    return [OpenSession(_handle(row), row.created_at, row.last_seen_at, row.token_hash == own) for row in rows]


def end_session(session: orm.Session, user_id: uuid.UUID, handle: str) -> None:
    """Raises NotFound for a handle of nobody's or of somebody else."""
    mine = sa.select(models.ConsoleSession).where(models.ConsoleSession.user_id == user_id)
    row = next((row for row in session.scalars(mine) if _handle(row) == handle), None)
    if row is None:
        raise errors.NotFound("This session has ended already.")
    session.delete(row)
    session.flush()


def end_sessions(session: orm.Session, user_id: uuid.UUID, but: str | None = None) -> None:
    """All of a person's sessions; `but` is the cookie of one that goes on."""
    doomed = sa.delete(models.ConsoleSession).where(models.ConsoleSession.user_id == user_id)
    if but is not None:
        doomed = doomed.where(models.ConsoleSession.token_hash != access.token_hash(but))
    session.execute(doomed)


def _handle(row: models.ConsoleSession) -> str:
    """The start of a hash of a hash: tells sessions apart, and helps nobody to guess a cookie."""
    return access.token_hash(row.token_hash.hex()).hex()[:16]


def _void_links(session: orm.Session, user_id: uuid.UUID) -> None:
    links = sa.delete(models.SignInLink)
    session.execute(links.where(models.SignInLink.user_id == user_id, models.SignInLink.used_at.is_(None)))


# Projects


def projects_of(session: orm.Session, user_id: uuid.UUID | None) -> Sequence[models.Project]:
    """What a person may switch between, the oldest first, as it is opened at sign-in."""
    return session.scalars(
        sa.select(models.Project)
        .join(models.Membership, models.Membership.project_id == models.Project.id)
        .where(models.Membership.user_id == user_id)
        .order_by(models.Project.created_at, models.Project.id)
    ).all()


def purge(session: orm.Session) -> int:
    """Delete sessions and links that ended a day ago or more; returns how many. Safe to race."""
    old = sa.func.now() - KEPT_AFTER
    sessions = sa.or_(models.ConsoleSession.expires_at < old, models.ConsoleSession.last_seen_at < old - access.IDLE)
    links = sa.or_(models.SignInLink.expires_at < old, models.SignInLink.used_at < old)
    ended = session.execute(
        sa.delete(models.ConsoleSession).where(sessions).returning(models.ConsoleSession.token_hash)
    )
    used = session.execute(sa.delete(models.SignInLink).where(links).returning(models.SignInLink.token_hash))
    return len(ended.all()) + len(used.all())
