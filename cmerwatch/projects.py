"""A project with all it needs on its first day: a policy, a person, a key."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, alert_rules, errors, models, policies

KEY_SCOPES = ("ingest", "read")


def ensure(session: orm.Session, slug: str, name: str, login: str, *, watched: bool = True) -> models.Project:
    """The project, made with its default policy, its alert rules (unless not yet `watched`) and an admin on the first
    start."""
    try:
        return access.project_of_slug(session, slug)
    except errors.NotFound:
        project = create(session, slug, name, watched=watched)
        access.create_user(session, project.id, login, name, "admin")
        session.refresh(project)
        return project


def create(session: orm.Session, slug: str, name: str, *, watched: bool = True) -> models.Project:
    """A project with its default policy and, unless it is not `watched` yet, the default alert rules.

    Raises Conflict when the slug is taken.
    """
    project = access.create_project(session, slug, name)
    policies.ensure_default(session, project.id)
    if watched:
        alert_rules.ensure_default(session, project.id)
    return project


def ensure_key(
    session: orm.Session,
    project: models.Project,
    kept_in: Path,
    name: str = "first key",
    scopes: Sequence[str] = KEY_SCOPES,
    user_id: uuid.UUID | None = None,
) -> str:
    """A key, to send and read with unless other scopes are named, the same on every start: apps that were given it go
    on working."""
    with contextlib.suppress(FileNotFoundError, errors.Unauthenticated):
        key = kept_in.read_text().strip()
        if access.principal_of_key(session, f"Bearer {key}").project_id == project.id:
            return key
    key = access.create_key(session, project.id, name, scopes, user_id)
    descriptor = os.open(kept_in, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    return key


def ensure_user(session: orm.Session, project: models.Project, login: str, name: str, role: str) -> models.User:
    """The person of that login, made with this role on the first start."""
    try:
        return user_of_login(session, login)
    except errors.NotFound:
        return access.create_user(session, project.id, login, name, role)


def sign_in_link(session: orm.Session, public_url: str, login: str) -> str:
    """A fresh one-time link for this person. Raises NotFound."""
    user = user_of_login(session, login)
    return f"{public_url.rstrip('/')}/sign-in/{access.create_sign_in_link(session, user.id)}"


def user_of_login(session: orm.Session, login: str) -> models.User:
    user = session.scalar(sa.select(models.User).where(models.User.login == login))
    if user is None:
        raise errors.NotFound(f"There is no user with the login {login!r}.")
    return user
