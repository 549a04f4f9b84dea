"""How much waits and what comes next, for the pages: read beside the queue, never instead of claiming from it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from starlette.requests import Request

from cmerwatch import access, ids, models, review_leases, reviews
from cmerwatch_web.console.words import number

COUNTED = 1000  # the number in the navigation is read on every page, so it stops counting here
AHEAD = 3  # pictures fetched before their item is claimed: as many as other reviewers may take in the meantime
PICTURES_AHEAD = 4

_WAITING = sa.text(
    """
    SELECT count(*) FROM (
        SELECT FROM review_items WHERE project_id = :project AND state IN ('open', 'leased')
            AND (lease_until IS NULL OR lease_until <= now()) LIMIT :most
    ) AS counted
    """
)


def waiting(request: Request, viewer: access.Principal) -> str:
    """The number beside Review: items that nobody holds now; empty when there is none."""
    session: orm.Session = request.state.session
    count = session.scalar(_WAITING, {"project": viewer.project_id, "most": COUNTED}) or 0
    return f"{COUNTED - 1}+" if count == COUNTED else str(count or "")


_NEXT = sa.text(
    """
    SELECT i.event_id, cardinality(e.images) AS pictures
    FROM (
        SELECT event_id, rank, id FROM review_items
        WHERE project_id = :project AND state IN ('open', 'leased') AND (lease_until IS NULL OR lease_until <= now())
        ORDER BY rank, id LIMIT :ahead
    ) AS i JOIN events e ON e.id = i.event_id
    ORDER BY i.rank, i.id
    """
)


def pictures_ahead(session: orm.Session, project_id: uuid.UUID) -> list[str]:
    """Addresses of the pictures of the items that come next, for the browser to fetch while this one is looked at.

    A guess, and no lease: an item held ahead would be kept from others for nothing, and its time would run.
    """
    rows = session.execute(_NEXT, {"project": project_id, "ahead": AHEAD})
    return [f"/media/{row.event_id}/{at}" for row in rows for at in range(min(row.pictures, PICTURES_AHEAD))]


_UNDONE = "EXISTS (SELECT FROM reviews u WHERE u.undoes = r.id)"

_TODAY = sa.text(
    f"""
    SELECT count(*) FROM reviews r
    WHERE r.project_id = :project AND r.id >= :since AND r.reviewer_id = :me AND r.action = 'verdict' AND NOT {_UNDONE}
    """
)


def mine_today(session: orm.Session, reviewer: access.Principal) -> int:
    """The reviewer's own verdicts since midnight UTC that still stand."""
    midnight = dt.datetime.combine(dt.datetime.now(dt.UTC), dt.time(), dt.UTC)
    values = {"project": reviewer.project_id, "me": reviewer.user_id, "since": ids.first(midnight)}
    return session.scalar(_TODAY, values) or 0


_LATEST = sa.text(
    f"""
    SELECT r.item_id, r.action, r.verdict, r.created_at, {_UNDONE} AS is_undone FROM reviews r
    WHERE r.project_id = :project AND r.id >= :since AND r.reviewer_id = :me ORDER BY r.id DESC LIMIT 1
    """
)


def undoable(session: orm.Session, reviewer: access.Principal) -> sa.Row[Any] | None:
    """The reviewer's latest act, while it may be taken back: item_id, action, verdict, created_at."""
    since = dt.datetime.now(dt.UTC) - reviews.UNDO_WITHIN
    values = {"project": reviewer.project_id, "me": reviewer.user_id, "since": ids.first(since)}
    row = session.execute(_LATEST, values).one_or_none()
    return None if row is None or row.action == "undo" or row.is_undone else row


def taken_back(session: orm.Session, reviewer: access.Principal, item_id: uuid.UUID) -> models.Review | None:
    """The act that this reviewer undid last on the item, when nobody did anything to it since."""
    of_item = sa.select(models.Review).where(models.Review.item_id == item_id).order_by(models.Review.id.desc())
    latest = session.scalars(of_item.limit(1)).one_or_none()
    if latest is None or latest.undoes is None or latest.reviewer_id != reviewer.user_id:
        return None
    return session.get(models.Review, latest.undoes)


_FREED = sa.text(
    "SELECT min(lease_until) FROM review_items WHERE project_id = :project AND state = 'leased' AND lease_until > now()"
)


def first_freed(session: orm.Session, project_id: uuid.UUID) -> dt.datetime | None:
    """When the first item that somebody holds comes back unless it is answered or renewed."""
    found: dt.datetime | None = session.scalar(_FREED, {"project": project_id})
    return found


_RESTING = sa.text(
    f"""
    SELECT count(DISTINCT r.item_id) FROM reviews r JOIN review_items i ON i.id = r.item_id
    WHERE r.project_id = :project AND r.id >= :since AND r.reviewer_id = :me AND r.action = 'skip' AND NOT {_UNDONE}
        AND i.state IN ('open', 'leased') AND (i.lease_until IS NULL OR i.lease_until <= now())
    """
)


def resting(session: orm.Session, reviewer: access.Principal) -> int:
    """Open items that this reviewer skipped, which go to others first."""
    since = dt.datetime.now(dt.UTC) - review_leases.SKIP_REST
    values = {"project": reviewer.project_id, "me": reviewer.user_id, "since": ids.first(since)}
    return session.scalar(_RESTING, values) or 0


def acts(session: orm.Session, project_id: uuid.UUID, event_id: uuid.UUID) -> list[reviews.Act]:
    """What was done about one event, oldest first, with who did it; undos only mark what they took back."""
    rows = reviews.history(session, project_id, event_id)
    named = sa.select(models.User.id, models.User.login).where(models.User.id.in_({row.reviewer_id for row in rows}))
    logins = {user_id: login for user_id, login in session.execute(named)} if rows else {}
    undone = {row.undoes for row in rows}
    return [
        reviews.Act(row, logins.get(row.reviewer_id, "somebody"), row.id in undone)
        for row in rows
        if row.undoes is None
    ]


ESCALATED = 100


def escalated(session: orm.Session, project_id: uuid.UUID) -> list[models.ReviewItem]:
    """What waits for a lead, in the order of the queue, ESCALATED at most."""
    item = models.ReviewItem
    found = sa.select(item).where(item.project_id == project_id, item.state == "escalated")
    return list(session.scalars(found.order_by(item.rank, item.id).limit(ESCALATED)))


def outputs(session: orm.Session, project_id: uuid.UUID, event_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """The beginning of each event's output, for a list."""
    body = models.EventBody
    found = (
        sa.select(body.id, sa.func.left(body.output, 300))
        .join(models.Event, models.Event.id == body.id)
        .where(body.id.in_(event_ids), models.Event.project_id == project_id)
    )
    return {event_id: output for event_id, output in session.execute(found)}


_SAID = sa.text(
    """
    SELECT i.event_id, c.score, d.flagged FROM review_items i
    JOIN checks c ON (c.event_id, c.checker_id) = (i.event_id, i.checker_id)
    JOIN decisions d ON (d.event_id, d.checker_id, d.policy_version) = (i.event_id, i.checker_id, i.policy_version)
    WHERE i.project_id = :project AND i.event_id = ANY(:events) AND i.state = 'done'
    """
)


def checked(session: orm.Session, project_id: uuid.UUID, event_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """What the checker said of the events that have their verdict, in a few words: nothing before."""
    rows = session.execute(_SAID, {"project": project_id, "events": list(event_ids)})
    return {row.event_id: f"{'flagged' if row.flagged else 'not flagged'}, score {number(row.score)}" for row in rows}


def last_on_each(acts: Sequence[reviews.Act], viewer: access.Principal, since: dt.datetime) -> set[uuid.UUID]:
    """Ids of the acts with an undo button: the viewer's own, young enough, with nobody's later act on the item.

    `acts` are the newest first; of one person's alone a later act of another is not seen, and the undo says so.
    """
    found: set[uuid.UUID] = set()
    touched: set[uuid.UUID] = set()
    for act in acts:
        if act.is_undone:
            continue
        is_own = act.review.reviewer_id == viewer.user_id and act.review.created_at > since
        if is_own and act.review.item_id not in touched:
            found.add(act.review.id)
        touched.add(act.review.item_id)
    return found
