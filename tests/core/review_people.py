"""A queue and the people who work it, for tests."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, models
from tests import factories

_numbers = itertools.count()


def reviewer(session: orm.Session, project_id: uuid.UUID, login: str, role: str = "reviewer") -> access.Principal:
    """A signed-in person of that role."""
    user = access.create_user(session, project_id, login, login.title(), role)
    return signed_in(session, project_id, user)


def signed_in(session: orm.Session, project_id: uuid.UUID, user: models.User) -> access.Principal:
    cookie = access.open_console_session(session, user.id)
    slug = session.get_one(models.Project, project_id).slug
    return access.principal_of_cookie(session, cookie, slug)


def queue(session: orm.Session, project_id: uuid.UUID, n: int, **fields: object) -> list[models.ReviewItem]:
    """n flagged items through the real route, in the order of the queue."""
    for _ in range(n):
        factories.ingest(session, project_id, **fields)
    factories.check_all(session, 0.01)
    found = sa.select(models.ReviewItem).where(models.ReviewItem.project_id == project_id)
    return list(session.scalars(found.order_by(models.ReviewItem.rank, models.ReviewItem.id)))


def pass_time(session: orm.Session, by: dt.timedelta, items: Iterable[uuid.UUID] | None = None) -> None:
    """As if that much time had gone by for the leases (of these items, or of all)."""
    session.execute(
        sa.text(
            "UPDATE review_items SET lease_until = lease_until - :by, leased_at = leased_at - :by "
            "WHERE CAST(:items AS uuid[]) IS NULL OR id = ANY(:items)"
        ),
        {"by": by, "items": None if items is None else list(items)},
    )
    session.expire_all()
