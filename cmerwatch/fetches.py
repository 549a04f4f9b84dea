"""Pictures on their way: events that name them by address wait, fetchers claim the addresses, and what came is noted.

An event's work row is FETCHING until the last of its pictures is there, or the first is given up; no worker claims it
before, and it counts as waiting everywhere. All times are the database's now().
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import image_urls, models
from cmerwatch.image_urls import UNREACHABLE

# After the n-th failed try: 13 minutes in all, which is about how long a signed address lives.
SCHEDULE = (2.0, 5.0, 15.0, 45.0, 120.0, 240.0, 360.0)
MAX_ATTEMPTS = len(SCHEDULE) + 1

_WAIT = sa.text(
    f"UPDATE work SET state = {models.FETCHING}, priority = {models.BEHIND} WHERE event_id = ANY (CAST(:ids AS uuid[]))"
)
_CLAIM = sa.text(
    """
    WITH due AS (
        SELECT event_id, position FROM image_fetches
        WHERE state = 'waiting' AND next_at <= now() AND (lease_until IS NULL OR lease_until < now())
            AND (attempts > 0) = :again AND host <> ALL (CAST(:busy AS text[]))
            AND project_id <> ALL (CAST(:full AS uuid[]))
        ORDER BY next_at LIMIT :n FOR UPDATE SKIP LOCKED
    )
    UPDATE image_fetches f SET attempts = attempts + 1, lease_token = :token,
        lease_until = now() + make_interval(secs => :lease)
    FROM due WHERE f.event_id = due.event_id AND f.position = due.position
    RETURNING f.event_id, f.position, f.project_id, f.url, f.host, f.attempts
    """
)

# What a signed address may be used for goes with its query.
_SETTLE = "lease_token = NULL, lease_until = NULL, settled_at = now(), url = split_part(url, '?', 1)"
_HELD = "event_id = :event AND position = :position AND lease_token = :token AND state = 'waiting'"
_FETCHED = sa.text(
    f"UPDATE image_fetches SET state = 'fetched', sha256 = :sha256, reason = '', {_SETTLE} WHERE {_HELD}"
)
_FAILED = sa.text(f"UPDATE image_fetches SET state = 'failed', reason = :reason, {_SETTLE} WHERE {_HELD}")
_SKIP = sa.text(f"UPDATE image_fetches SET state = 'skipped', {_SETTLE} WHERE event_id = :event AND state = 'waiting'")
_LATER = sa.text(
    "UPDATE image_fetches SET lease_token = NULL, lease_until = NULL, reason = :reason, attempts = attempts - :undo, "
    f"next_at = now() + make_interval(secs => :seconds) WHERE {_HELD}"
)
_PICTURES = sa.text(
    "SELECT position, state, sha256, (SELECT images FROM events WHERE id = :event) AS brought "
    "FROM image_fetches WHERE event_id = :event"
)
_READY = sa.text(
    f"""
    WITH shown AS (UPDATE events SET images = CAST(:images AS text[]) WHERE id = :event)
    UPDATE work SET state = 0, priority = 0, not_before = now(), refused = CAST(:refused AS text[])
    WHERE event_id = :event AND state = {models.FETCHING}
    """
)
_COUNTS = sa.text(
    """
    SELECT count(*) AS waiting, count(*) FILTER (WHERE next_at < now() - interval '1 minute') AS overdue,
        (SELECT count(*) FROM image_fetches WHERE state = 'failed' AND settled_at > now() - interval '1 day')
            AS failed_today
    FROM image_fetches WHERE state = 'waiting'
    """
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """An address leased to a fetcher. `url` may be a key to what it names: never to be logged."""

    event_id: uuid.UUID
    position: int
    project_id: uuid.UUID
    url: str = field(repr=False)
    host: str
    attempts: int

    @property
    def is_spent(self) -> bool:
        """Its last try was the last, and whoever made it died."""
        return self.attempts > MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the whole installation. Overdue: what a fetcher should have taken a minute ago."""

    waiting: int
    overdue: int
    failed_today: int


def expect(session: orm.Session, project_id: uuid.UUID, wanted: Mapping[uuid.UUID, Sequence[tuple[int, str]]]) -> None:
    """Let these events, stored in this very transaction, wait for the pictures at (position, address)."""
    rows = [
        {
            "event_id": event_id,
            "position": position,
            "project_id": project_id,
            "url": url,
            "host": urlsplit(url).hostname or "",
        }
        for event_id, urls in wanted.items()
        for position, url in urls
    ]
    if rows:
        session.execute(sa.insert(models.ImageFetch), rows)
        session.execute(_WAIT, {"ids": list(wanted)})


def claim(
    session: orm.Session,
    n: int,
    lease_seconds: float,
    token: uuid.UUID,
    *,
    again: bool = False,
    busy: Sequence[str] = (),
    full: Sequence[uuid.UUID] = (),
) -> list[Claimed]:
    """Lease up to n addresses to `token`: new ones, or with `again` those tried before. Commit before any call.

    `busy`: hosts that are to be left alone for now; `full`: projects that have enough in the air.
    """
    values: dict[str, Any] = {"n": n, "lease": lease_seconds, "token": token, "again": again}
    values |= {"busy": list(busy), "full": list(full)}
    return [Claimed(*row) for row in session.execute(_CLAIM, values)]


def fetched(session: orm.Session, claimed: Claimed, token: uuid.UUID, sha256: str) -> bool:
    """Note a picture whose bytes are stored and noted; the event is ready once it was the last.

    False, and nothing changed, when the lease was lost or the event needs no more pictures.
    """
    _lock(session, claimed)
    if not _one(session, _FETCHED, claimed, token, sha256=sha256):
        return False
    pictures = session.execute(_PICTURES, {"event": claimed.event_id}).all()
    if all(row.state == "fetched" for row in pictures):
        _make_ready(session, claimed, pictures, None)
    return True


def failed(session: orm.Session, claimed: Claimed, token: uuid.UUID, reason: str) -> bool:
    """Give a picture up, and with it its event, which ends `invalid_image` for this reason. False as above."""
    _lock(session, claimed)
    if not _one(session, _FAILED, claimed, token, reason=reason):
        return False
    session.execute(_SKIP, {"event": claimed.event_id})
    _make_ready(session, claimed, session.execute(_PICTURES, {"event": claimed.event_id}).all(), [reason])
    return True


def again(session: orm.Session, claimed: Claimed, token: uuid.UUID, reason: str, after: float | None = None) -> bool:
    """Try once more later, not before `after` seconds; given up when the tries are used up. False as above."""
    if claimed.attempts >= MAX_ATTEMPTS:
        return failed(session, claimed, token, UNREACHABLE)
    # Spread, so that what failed together does not come back together.
    seconds = SCHEDULE[claimed.attempts - 1] * random.uniform(0.8, 1.2)
    return _one(session, _LATER, claimed, token, reason=reason, seconds=max(seconds, after or 0), undo=0)


def postpone(session: orm.Session, claimed: Claimed, token: uuid.UUID, seconds: float) -> bool:
    """Give back what could not be stored through no fault of the address: the try is not counted."""
    return _one(session, _LATER, claimed, token, reason="store_away", seconds=seconds, undo=1)


def of(session: orm.Session, event_id: uuid.UUID) -> list[models.ImageFetch]:
    """The pictures an event names by address, in its order; empty for almost every event."""
    found = sa.select(models.ImageFetch).where(models.ImageFetch.event_id == event_id)
    return list(session.scalars(found.order_by(models.ImageFetch.position).execution_options(populate_existing=True)))


def purge(session: orm.Session) -> int:
    """Forget the addresses of events that went with their day; returns how many."""
    gone = session.execute(
        sa.text("DELETE FROM image_fetches WHERE event_id < (SELECT id FROM events ORDER BY id LIMIT 1)")
    )
    return int(gone.rowcount)  # type: ignore[attr-defined]


def counts(session: orm.Session) -> Counts:
    return Counts(*session.execute(_COUNTS).one())


def told(row: models.ImageFetch) -> str:
    """The address as people may see it."""
    return image_urls.shown(row.url)


def _lock(session: orm.Session, claimed: Claimed) -> None:
    """The work row first: of two fetchers that end the last two pictures of one event, the second must see both."""
    lock = sa.text("SELECT 1 FROM work WHERE event_id = :event FOR UPDATE")
    session.execute(lock, {"event": claimed.event_id})


def _one(session: orm.Session, statement: sa.TextClause, claimed: Claimed, token: uuid.UUID, **values: Any) -> bool:
    held = {"event": claimed.event_id, "position": claimed.position, "token": token}
    return bool(session.execute(statement, held | values).rowcount)  # type: ignore[attr-defined]


def _make_ready(
    session: orm.Session, claimed: Claimed, pictures: Sequence[sa.Row[Any]], refused: list[str] | None
) -> None:
    """The event gets the pictures that came, each in its place among those it brought itself."""
    images = in_order(pictures[0].brought or [], {row.position: row.sha256 for row in pictures})
    session.execute(_READY, {"event": claimed.event_id, "images": images, "refused": refused})


def in_order(brought: Sequence[str], came: Mapping[int, str | None]) -> list[str]:
    """`came`: by position among all, None where nothing did; the others are `brought`, in their order."""
    rest, images = iter(brought), list[str]()
    for position in range(len(brought) + len(came)):
        sha256 = came[position] if position in came else next(rest, None)
        images += [sha256] if sha256 else []
    return images
