"""Who holds which review item: atomic claims, heartbeats, and the refusal that says who has it now.

A lease belongs to one person and carries a token that every later step must show. It ends when its time is over, also
when nobody else took the item: what an answer is worth must not depend on whether somebody happened to come by. The
refusal then offers to take the item again, which costs one call and loses nothing that was typed.

All times are the database's.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, models

LEASE = dt.timedelta(minutes=5)
MAX_HELD = 10
KINDS = ("flagged", "low_similarity_unconfirmed", "audit")
# A skipped item goes to others first. It comes back after this, so that a team of one can still finish its queue.
SKIP_REST = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Lease:
    token: uuid.UUID
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Held:
    item: models.ReviewItem
    lease: Lease


# An act that counts: neither an undo nor undone.
EFFECTIVE = "r.undoes IS NULL AND NOT EXISTS (SELECT FROM reviews u WHERE u.undoes = r.id)"

# An aggregate instead of NOT EXISTS: Postgres could turn that into a join that reads every review ever written.
_RESTS = f"""
    i.skips > 0 AND coalesce((
        SELECT bool_or(r.reviewer_id = :me AND r.action = 'skip' AND r.created_at > now() - :rest)
        FROM reviews r WHERE r.item_id = i.id AND {EFFECTIVE}
    ), false)
"""

_LEASED = """
    leased_by = :me, lease_token = :token, leased_at = now(), lease_until = now() + :lease,
    state = CASE i.state WHEN 'escalated' THEN 'escalated' ELSE 'leased' END
"""

_FREE = "(i.lease_until IS NULL OR i.lease_until <= now())"


def _next_sql(states: str, of_kinds: str) -> sa.TextClause:
    # The index holds the order, and SKIP LOCKED passes what another claims at this moment. A row that changed hands
    # between being found and being locked is looked at again by Postgres, and dropped when it is no longer free.
    return sa.text(
        f"""
        WITH first AS (
            SELECT i.id FROM review_items i
            WHERE i.project_id = :project AND i.state IN ({states}) AND {_FREE} AND NOT ({_RESTS}) {of_kinds}
            ORDER BY i.rank, i.id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        UPDATE review_items i SET {_LEASED} FROM first WHERE i.id = first.id RETURNING i.*
        """
    )


_OF_KINDS = "AND i.kind = ANY(:kinds)"
_NEXT = {
    (state, has_kinds): _next_sql(states, _OF_KINDS if has_kinds else "")
    for state, states in (("open", "'open', 'leased'"), ("escalated", "'escalated'"))
    for has_kinds in (False, True)
}


def next_item(
    session: orm.Session, principal: access.Principal, *, kinds: Sequence[str] = (), state: str = "open"
) -> Held | None:
    """Lease the first free item, in one statement; None when nothing waits for this reviewer.

    Each call leases another item. What this reviewer skipped rests for an hour. `kinds` and the state `escalated` are
    for leads: a reviewer must not learn which items are a random audit. Raises Forbidden, Invalid, or Conflict when
    MAX_HELD items are held.
    """
    _check_request(principal, kinds, state)
    me = person(principal)
    _require_room(session, principal.project_id, me)
    return _leased(session, _NEXT[state, bool(kinds)], _values(principal) | ({"kinds": list(kinds)} if kinds else {}))


def _check_request(principal: access.Principal, kinds: Sequence[str], state: str) -> None:
    known = {"state": (("open", "escalated"), [state]), "kinds": (KINDS, kinds)}
    for field, (allowed, given) in known.items():
        if not set(given) <= set(allowed):
            raise errors.Invalid(f"`{field}` must be among {', '.join(allowed)}.", field=field)
    if state == "escalated" or kinds:
        access.authorize(principal, "lead")


_HOLD = sa.text(
    f"""
    UPDATE review_items i SET {_LEASED}
    WHERE i.id = :item AND i.project_id = :project AND i.state <> 'done' AND {_FREE}
        AND (i.state <> 'escalated' OR :is_lead)
    RETURNING i.*
    """
)


def hold(session: orm.Session, principal: access.Principal, item_id: uuid.UUID) -> Held:
    """Lease one named item; one already held by this reviewer keeps its token and is renewed.

    Raises NotFound, LeaseLost naming holder and time (or that it is with the leads), Conflict at MAX_HELD.
    """
    values = _values(principal) | {"item": item_id, "is_lead": principal.may("lead")}
    lock_reviewer(session, principal.project_id, values["me"])
    mine = next((one for one in held(session, principal) if one.item.id == item_id), None)
    if mine is not None:
        return Held(mine.item, heartbeat(session, principal, item_id, mine.lease.token))
    _require_room(session, principal.project_id, values["me"])
    taken = _leased(session, _HOLD, values)
    if taken is None:
        raise lost(session, principal, item_id)
    return taken


def _leased(session: orm.Session, statement: sa.TextClause, values: dict[str, Any]) -> Held | None:
    found = sa.select(models.ReviewItem).from_statement(statement).execution_options(populate_existing=True)
    item = session.scalars(found, values).one_or_none()
    return None if item is None else _held(item)


def _held(item: models.ReviewItem) -> Held:
    assert item.lease_token is not None
    assert item.lease_until is not None
    return Held(item, Lease(item.lease_token, item.lease_until))


def held(session: orm.Session, principal: access.Principal) -> list[Held]:
    """This reviewer's live leases, oldest first: a page that was loaded again goes on with them."""
    item = models.ReviewItem
    found = sa.select(item).where(
        item.project_id == principal.project_id, item.leased_by == person(principal), item.lease_until > sa.func.now()
    )
    rows = session.scalars(found.order_by(item.leased_at, item.id), execution_options={"populate_existing": True})
    return [_held(row) for row in rows]


# Of one reviewer's own lease, while it lives.
OWNED = (
    "i.id = :item AND i.project_id = :project AND i.leased_by = :me AND i.lease_token = :token "
    "AND i.lease_until > now() AND i.state IN ('leased', 'escalated')"
)

_HEARTBEAT = sa.text(f"UPDATE review_items i SET lease_until = now() + :lease WHERE {OWNED} RETURNING lease_until")


def heartbeat(session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID) -> Lease:
    """Renew a lease that still lives, for LEASE from now. Raises LeaseLost, NotFound."""
    until = session.scalar(_HEARTBEAT, _values(principal) | {"item": item_id, "token": token})
    if until is None:
        raise lost(session, principal, item_id)
    return Lease(token, until)


_GIVE_BACK = sa.text(
    f"""
    UPDATE review_items i SET leased_by = NULL, lease_token = NULL, lease_until = NULL,
        state = CASE i.state WHEN 'escalated' THEN 'escalated' ELSE 'open' END
    WHERE {OWNED} RETURNING i.id
    """
)


def give_back(session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID) -> None:
    """End a lease without an answer: the item is free at once, and nothing is held against anybody."""
    if session.scalar(_GIVE_BACK, _values(principal) | {"item": item_id, "token": token}) is None:
        raise lost(session, principal, item_id)


def person(principal: access.Principal) -> uuid.UUID:
    """Whose verdict it will be. Raises Forbidden for a key that acts as nobody."""
    if principal.user_id is None:
        raise errors.Forbidden("This key acts as no person; make one with the scope review for a named user.")
    return principal.user_id


def _values(principal: access.Principal) -> dict[str, Any]:
    return {
        "project": principal.project_id,
        "me": person(principal),
        "token": uuid.uuid4(),
        "lease": LEASE,
        "rest": SKIP_REST,
    }


_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('cmerwatch review ' || :project || ' ' || :me, 0))")


def lock_reviewer(session: orm.Session, project_id: uuid.UUID, me: uuid.UUID) -> None:
    """Two claims of one person at the same moment would both find room for one more."""
    session.execute(_LOCK, {"project": str(project_id), "me": str(me)})


def _require_room(session: orm.Session, project_id: uuid.UUID, me: uuid.UUID) -> None:
    lock_reviewer(session, project_id, me)
    require_room(session, project_id, me)


def require_room(session: orm.Session, project_id: uuid.UUID, me: uuid.UUID) -> None:
    item = models.ReviewItem
    mine = sa.select(sa.func.count()).where(
        item.project_id == project_id, item.leased_by == me, item.lease_until > sa.func.now()
    )
    if (session.scalar(mine) or 0) >= MAX_HELD:
        raise errors.Conflict(
            f"You hold {MAX_HELD} items, which is the most. Answer, skip or give back one before you take another.",
            field="held",
            limit=MAX_HELD,
        )


_HOLDER = sa.text(
    f"""
    SELECT i.state, i.leased_by, i.lease_until, i.lease_until > now() AS is_live, h.login AS holder,
        d.login AS answered_by, d.created_at AS answered_at
    FROM review_items i
    LEFT JOIN users h ON h.id = i.leased_by
    LEFT JOIN LATERAL (
        SELECT a.login, r.created_at FROM reviews r JOIN users a ON a.id = r.reviewer_id
        WHERE r.item_id = i.id AND r.action = 'verdict' AND {EFFECTIVE}
        ORDER BY r.created_at DESC LIMIT 1
    ) d ON i.state = 'done'
    WHERE i.id = :item AND i.project_id = :project
    """
)


def lost(session: orm.Session, principal: access.Principal, item_id: uuid.UUID) -> errors.CmerwatchError:
    """Why this person has no live lease on the item with the token they showed.

    LeaseLost with details {"holder": login or None, "until": when the lease in force ends or ended, "state": done,
    leased, expired, escalated or open, "at": when it was answered}; or NotFound.
    """
    row = session.execute(_HOLDER, {"item": item_id, "project": principal.project_id}).one_or_none()
    if row is None:
        return errors.NotFound(f"There is no review item {item_id} in this project.", id=str(item_id))
    if row.state == "done":
        said = f"This item was answered by {row.answered_by or 'somebody'} at {_clock(row.answered_at)}."
        return _lost(said, row.answered_by, None, "done", row.answered_at)
    if row.is_live:
        return _held_elsewhere(row, row.leased_by == principal.user_id)
    again = "Take it again and send the same answer: nothing of it is lost."
    if row.leased_by is not None and row.leased_by == principal.user_id:
        said = f"Your lease on this item ended at {_clock(row.lease_until)} and nobody has taken it since. {again}"
        return _lost(said, None, row.lease_until, "expired")
    if row.state == "escalated" and not principal.may("lead"):
        return _lost("This item was escalated; a lead will answer it.", None, None, "escalated")
    return _lost(f"You do not hold this item now, and nobody else does. {again}", None, None, row.state)


def _held_elsewhere(row: sa.Row[Any], is_own: bool) -> errors.LeaseLost:
    who = "You hold this item yourself under a newer lease" if is_own else f"{row.holder} holds this item"
    return _lost(f"{who}, until {_clock(row.lease_until)}.", row.holder, row.lease_until, "leased")


def _lost(
    message: str, holder: str | None, until: dt.datetime | None, state: str, at: dt.datetime | None = None
) -> errors.LeaseLost:
    return errors.LeaseLost(message, holder=holder, until=_iso(until), state=state, at=_iso(at))


def _iso(at: dt.datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _clock(at: dt.datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "an unknown time"
