"""Places in a project that wait for somebody. Whoever invites gets the same answer and the same link for a login that
has an account in another project and for one that nobody has: only whoever opens the link shows which it is."""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, models, names

LIFETIME = dt.timedelta(days=3)
MOST = 200  # that wait in one project


@dataclass(frozen=True, slots=True)
class Waiting:
    login: str
    name: str
    role: str
    expires_at: dt.datetime
    project_id: uuid.UUID
    project_slug: str


def invite(session: orm.Session, project_id: uuid.UUID, login: str, name: str, role: str) -> str:
    """The token of the link, of which only the hash is kept; one made before for the same login is void.

    Raises Invalid naming the field; Conflict for somebody who is of this project already.
    """
    login, name = names.login(login), names.label(name)
    if role not in models.ROLES:
        raise errors.Invalid(f"role is {role!r}; it must be one of {', '.join(models.ROLES)}", field="role")
    if _is_member(session, project_id, login):
        raise errors.Conflict(f"{login!r} is of this project already; change their role in the list.", field="login")
    session.execute(sa.delete(models.Invitation).where(_of(project_id, login)))
    if len(waiting(session, project_id)) >= MOST:
        raise errors.Conflict(f"{MOST} invitations wait already; withdraw one first.", field="login", limit=MOST)
    token, until = secrets.token_urlsafe(32), dt.datetime.now(dt.UTC) + LIFETIME
    session.add(
        models.Invitation(
            token_hash=access.token_hash(token),
            project_id=project_id,
            login=login,
            name=name,
            role=role,
            expires_at=until,
        )
    )
    session.flush()
    return token


def waiting(session: orm.Session, project_id: uuid.UUID) -> list[Waiting]:
    """Those that can still be taken, by login."""
    mine = models.Invitation.project_id == project_id
    return [_waiting(row) for row in session.execute(_open().where(mine).order_by(models.Invitation.login))]


def withdraw(session: orm.Session, project_id: uuid.UUID, login: str) -> None:
    """Raises Conflict where none waits for this login."""
    gone = sa.delete(models.Invitation).where(_of(project_id, login)).returning(models.Invitation.login)
    if session.scalar(gone) is None:
        raise errors.Conflict("No invitation waits for this login; it may have been taken.", field="login")


def find(session: orm.Session, token: str) -> Waiting:
    """Raises Unauthenticated for a link that is unknown, taken, withdrawn or over."""
    row = session.execute(_open().where(models.Invitation.token_hash == access.token_hash(token))).one_or_none()
    if row is None:
        raise errors.Unauthenticated("This invitation was taken or withdrawn, or it is over. Ask for a new one.")
    return _waiting(row)


def accept(session: orm.Session, token: str, password: str, signed_in: uuid.UUID | None) -> models.User:
    """Join: as who is signed in, with the account's password, or with a new account that gets this password.

    Raises Unauthenticated for a link of no use and for a wrong password; Invalid for a password that nobody can have.
    """
    session.execute(
        sa.select(models.Invitation.login)
        .where(models.Invitation.token_hash == access.token_hash(token))
        .with_for_update()  # of two clicks at once one joins
    )
    found = find(session, token)
    user = session.scalar(sa.select(models.User).where(models.User.login == found.login))
    if user is None or user.id != signed_in:
        access.require_password_length(password)
        if user is not None:
            user = access.verify_password(session, found.login, password)
    if user is None:
        user = access.create_user(session, found.project_id, found.login, found.name, found.role, password)
    elif not _is_member(session, found.project_id, found.login):
        session.add(models.Membership(project_id=found.project_id, user_id=user.id, role=found.role))
    session.execute(sa.delete(models.Invitation).where(_of(found.project_id, found.login)))
    return user


def purge(session: orm.Session) -> int:
    """Delete those that are over; returns how many. Safe to race."""
    old = sa.delete(models.Invitation).where(models.Invitation.expires_at < sa.func.now())
    return len(session.execute(old.returning(models.Invitation.login)).all())


def _open() -> sa.Select[models.Invitation, str]:
    return (
        sa.select(models.Invitation, models.Project.slug)
        .join(models.Project, models.Project.id == models.Invitation.project_id)
        .where(models.Invitation.expires_at > sa.func.now())
    )


def _waiting(row: sa.Row[models.Invitation, str]) -> Waiting:
    one, slug = row
    return Waiting(one.login, one.name, one.role, one.expires_at, one.project_id, slug)


def _of(project_id: uuid.UUID, login: str) -> sa.ColumnElement[bool]:
    return sa.and_(models.Invitation.project_id == project_id, models.Invitation.login == login)


def _is_member(session: orm.Session, project_id: uuid.UUID, login: str) -> bool:
    members = (
        sa.select(models.Membership.user_id)
        .join(models.User, models.User.id == models.Membership.user_id)
        .where(models.Membership.project_id == project_id, models.User.login == login)
    )
    return session.scalar(members) is not None
