"""What people should look at, who looks at it, and what they said: routing, leases, verdicts that are only appended."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, blindness, errors, ids, models, review_leases
from cmerwatch.review_answers import MAX_TEXT, Answer, checked, required_text
from cmerwatch.review_leases import LEASE, MAX_HELD, Held, Lease, give_back, heartbeat, held, hold, next_item
from cmerwatch.shapes import DOCTOR, Decided

__all__ = [
    "LEASE",
    "MAX_HELD",
    "MAX_TEXT",
    "UNDO_WITHIN",
    "Act",
    "Answer",
    "Held",
    "Lease",
    "QueueCounts",
    "counts",
    "draw",
    "escalate",
    "give_back",
    "heartbeat",
    "held",
    "history",
    "hold",
    "next_item",
    "recent",
    "route",
    "skip",
    "submit",
    "undo",
]

UNDO_WITHIN = dt.timedelta(minutes=10)
MAX_SKIPS = 2  # the second one escalates: what two people pass over needs a third with more say

# How much earlier than it came an item of priority 1 stands in the queue: beside one of priority 0 it is taken first
# unless that one has waited a day longer. So nothing starves, and an index holds the order.
HEAD_START_SECONDS = 86_400.0

# The same for all: were suspicious ones looked at first, an unfinished audit would be no random sample.
AUDIT_PRIORITY = 0.5

_INSERT = sa.text(
    """
    INSERT INTO review_items
        (id, project_id, event_id, checker_id, policy_version, kind, inclusion_probability, priority, rank, reasons)
    SELECT id, project_id, event_id, checker_id, policy_version, kind, inclusion_probability, priority,
        extract(epoch FROM now()) - :head_start * priority, reasons
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, project_id uuid, event_id uuid, checker_id int,
        policy_version int, kind text, inclusion_probability float8, priority float8, reasons text[])
    ORDER BY project_id, event_id
    ON CONFLICT (project_id, event_id) DO NOTHING
    RETURNING id
    """
)


def route(session: orm.Session, decided: Sequence[Decided], audit_rate: float) -> int:
    """Insert the items of these checks, one per event at most; returns how many are new."""
    rows = [row for one in decided if (row := _item(one, audit_rate)) is not None]
    if not rows:
        return 0
    values = {"rows": json.dumps(rows, default=str), "head_start": HEAD_START_SECONDS}
    return len(session.execute(_INSERT, values).all())


def _item(one: Decided, audit_rate: float) -> dict[str, Any] | None:
    result, decision = one.result, one.decision
    if result.outcome != "scored" or not decision.is_decided or result.event.slice.endpoint == DOCTOR:
        return None
    if decision.flagged:
        return _row(one, "flagged", 1.0)
    if decision.low_similarity and result.event.confidence is None:
        return _row(one, "low_similarity_unconfirmed", 1.0)
    if draw(result.event.event_id) < audit_rate:
        return _row(one, "audit", audit_rate)
    return None


def draw(event_id: uuid.UUID) -> float:
    """A uniform number in [0, 1) that belongs to the event: a retried completion draws the same one, and nobody
    who knows the score can steer it."""
    return int.from_bytes(hashlib.blake2b(event_id.bytes, digest_size=8, person=b"cmw-audit").digest()) / 2**64


def _row(one: Decided, kind: str, probability: float) -> dict[str, Any]:
    result = one.result
    return {
        "id": ids.uuid7(),
        "project_id": result.event.project_id,
        "event_id": result.event.event_id,
        "checker_id": one.checker_id,
        "policy_version": one.decision.policy_version,
        "kind": kind,
        "inclusion_probability": probability,
        "priority": AUDIT_PRIORITY if kind == "audit" else _priority(one),
        "reasons": list(result.reasons),
    }


def _priority(one: Decided) -> float:
    """Severity times confidence, in [0, 1]: surest and least supported first."""
    confidence = one.result.event.confidence
    return (1.0 - (one.result.score or 0.0)) * (0.5 if confidence is None else confidence)


# Acts. Each ends the lease and appends its row in one statement, so that of two submits with one token only one finds
# the lease alive; and a zombie whose lease was taken changes nothing.

_ACT = """
    WITH ended AS (
        UPDATE review_items i SET leased_by = NULL, lease_token = NULL, lease_until = NULL, {change}
        WHERE {owned}
        RETURNING i.id, i.project_id, i.event_id, i.leased_at
    )
    INSERT INTO reviews (id, project_id, item_id, event_id, reviewer_id, action, verdict, error_types, spans,
        correction, note, reason, seconds, lease_token, is_blind, created_at)
    SELECT :id, project_id, id, event_id, :me, :action, :verdict, CAST(:error_types AS text[]), CAST(:spans AS jsonb),
        :correction, :note, :reason, extract(epoch FROM clock_timestamp() - leased_at), :token, {blind},
        clock_timestamp()
    FROM ended
    RETURNING *
"""

# Reviews were blind all through this lease, no verdict showed what the checker said (an undo does not unsee it), and
# the same person did not act on the item while they saw more.
_BLIND = """
    :is_bound AND EXISTS (SELECT FROM projects p WHERE p.id = project_id AND p.blind_since <= leased_at)
        AND NOT EXISTS (SELECT FROM reviews b WHERE b.item_id = ended.id AND b.undoes IS NULL
            AND (b.action = 'verdict' OR (b.reviewer_id = :me AND NOT b.is_blind)))
"""

_CHANGES = {
    "verdict": "state = 'done', done_at = clock_timestamp()",
    "skip": "skips = i.skips + 1, state = CASE WHEN i.state = 'escalated' OR i.skips + 1 >= :most "
    "THEN 'escalated' ELSE 'open' END",
    "escalate": "state = 'escalated'",
}

_ACTS = {
    action: sa.text(_ACT.format(change=change, owned=review_leases.OWNED, blind=_BLIND))
    for action, change in _CHANGES.items()
}


def submit(
    session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID, answer: Answer
) -> models.Review:
    """Append the verdict and end the lease. Raises Invalid naming the field, LeaseLost, NotFound."""
    answer = checked(answer, lambda: _output(session, principal, item_id))
    return _act(
        session,
        principal,
        item_id,
        token,
        "verdict",
        verdict=answer.verdict,
        error_types=list(answer.error_types),
        spans=json.dumps(list(answer.spans)),
        correction=answer.correction,
        note=answer.note,
    )


def skip(
    session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID, reason: str
) -> models.ReviewItem:
    """Pass over an item, saying why; the second skip escalates it, whoever skips. Raises like submit."""
    review = _act(session, principal, item_id, token, "skip", reason=required_text("reason", reason))
    return session.get_one(models.ReviewItem, review.item_id, populate_existing=True)


def escalate(
    session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID, reason: str
) -> models.ReviewItem:
    """Hand an item to the leads, saying why. Raises like submit."""
    review = _act(session, principal, item_id, token, "escalate", reason=required_text("reason", reason))
    return session.get_one(models.ReviewItem, review.item_id, populate_existing=True)


_NOTHING_SAID: dict[str, Any] = {
    "verdict": None,
    "error_types": [],
    "spans": "[]",
    "correction": None,
    "note": None,
    "reason": None,
}


def _act(
    session: orm.Session, principal: access.Principal, item_id: uuid.UUID, token: uuid.UUID, action: str, **said: Any
) -> models.Review:
    values = _NOTHING_SAID | said
    values |= {"id": ids.uuid7(), "action": action, "item": item_id, "token": token, "most": MAX_SKIPS}
    values |= {"project": principal.project_id, "me": review_leases.person(principal)}
    values["is_bound"] = blindness.binds(principal)
    if action != "skip":
        del values["most"]
    appended = sa.select(models.Review).from_statement(_ACTS[action])
    review: models.Review | None = session.scalars(appended, values).one_or_none()
    if review is None:
        raise review_leases.lost(session, principal, item_id)
    return review


def _output(session: orm.Session, principal: access.Principal, item_id: uuid.UUID) -> str:
    """What the item is about. Raises NotFound."""
    output = session.scalar(
        sa.select(models.EventBody.output)
        .join(models.ReviewItem, models.ReviewItem.event_id == models.EventBody.id)
        .where(models.ReviewItem.id == item_id, models.ReviewItem.project_id == principal.project_id)
    )
    if output is None:
        raise errors.NotFound(f"There is no review item {item_id} in this project.", id=str(item_id))
    return output


_LAST_ACT = sa.text(
    f"""
    SELECT r.id, r.action, r.reviewer_id, r.created_at, u.login, r.created_at < now() - :within AS is_old
    FROM reviews r JOIN users u ON u.id = r.reviewer_id
    WHERE r.item_id = :item AND {review_leases.EFFECTIVE}
    ORDER BY r.created_at DESC, r.id DESC LIMIT 1
    """
)

# An item is with the leads while an escalation stands or two skips do.
_TAKE_BACK = sa.text(
    f"""
    WITH item AS (
        UPDATE review_items i SET
            leased_by = :me, lease_token = :token, leased_at = now(), lease_until = now() + :lease, done_at = NULL,
            skips = i.skips - :skipped,
            state = CASE WHEN i.skips - :skipped >= :most OR EXISTS (
                SELECT FROM reviews r
                WHERE r.item_id = i.id AND r.action = 'escalate' AND r.id <> :undoes AND {review_leases.EFFECTIVE}
            ) THEN 'escalated' ELSE 'leased' END
        WHERE i.id = :item RETURNING i.id, i.project_id, i.event_id
    )
    INSERT INTO reviews (id, project_id, item_id, event_id, reviewer_id, action, lease_token, undoes, created_at)
    SELECT :id, project_id, id, event_id, :me, 'undo', :token, :undoes, clock_timestamp() FROM item
    """
)


def undo(session: orm.Session, principal: access.Principal, item_id: uuid.UUID) -> Held:
    """Take back one's own last act on an item and lease it again; the act stays written, a row says it is undone.

    Raises NotFound, Conflict when the last act is another's, older than UNDO_WITHIN or none, or MAX_HELD are held;
    LeaseLost while another holds the item.
    """
    me = review_leases.person(principal)
    review_leases.lock_reviewer(session, principal.project_id, me)
    item = _locked(session, principal, item_id)
    act = _own_last_act(session, item_id, me)
    is_live = item.lease_until is not None and item.lease_until > session.scalars(sa.select(sa.func.now())).one()
    if is_live and item.leased_by != me:
        raise review_leases.lost(session, principal, item_id)
    if not is_live:
        review_leases.require_room(session, principal.project_id, me)
    values: dict[str, Any] = {"id": ids.uuid7(), "me": me, "item": item_id, "undoes": act.id, "token": uuid.uuid4()}
    values |= {"skipped": int(act.action == "skip"), "most": MAX_SKIPS, "lease": LEASE}
    session.execute(_TAKE_BACK, values)
    session.refresh(item)
    assert item.lease_token is not None
    assert item.lease_until is not None
    return Held(item, Lease(item.lease_token, item.lease_until))


def _locked(session: orm.Session, principal: access.Principal, item_id: uuid.UUID) -> models.ReviewItem:
    item = session.get(models.ReviewItem, item_id, with_for_update=True, populate_existing=True)
    if item is None or item.project_id != principal.project_id:
        raise errors.NotFound(f"There is no review item {item_id} in this project.", id=str(item_id))
    return item


def _own_last_act(session: orm.Session, item_id: uuid.UUID, me: uuid.UUID) -> sa.Row[Any]:
    act = session.execute(_LAST_ACT, {"item": item_id, "within": UNDO_WITHIN}).one_or_none()
    if act is None:
        raise errors.Conflict("There is nothing to take back on this item.", field="item")
    if act.reviewer_id != me:
        raise errors.Conflict(
            f"The last act on this item is {act.login}'s, at {act.created_at:%Y-%m-%d %H:%M:%S} UTC; only they can "
            "take it back.",
            field="item",
        )
    if act.is_old:
        minutes = int(UNDO_WITHIN.total_seconds() // 60)
        raise errors.Conflict(
            f"This was more than {minutes} minutes ago and stands now; ask a lead to look at it again.",
            field="item",
            limit=int(UNDO_WITHIN.total_seconds()),
        )
    return act


# Reading


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Of one project now. `open`, `held` and `escalated` share no item; `oldest` is when the oldest open one came."""

    open: int
    held: int
    escalated: int
    done_today: int
    oldest: dt.datetime | None


_COUNTS = sa.text(
    """
    SELECT
        count(*) FILTER (WHERE state <> 'escalated' AND NOT is_live) AS open,
        count(*) FILTER (WHERE is_live) AS held,
        count(*) FILTER (WHERE state = 'escalated' AND NOT is_live) AS escalated,
        min(created_at) FILTER (WHERE state <> 'escalated' AND NOT is_live) AS oldest
    FROM (
        SELECT state, created_at, coalesce(lease_until > now(), false) AS is_live FROM review_items
        WHERE project_id = :project AND state IN ('open', 'leased')
        UNION ALL
        SELECT state, created_at, coalesce(lease_until > now(), false) FROM review_items
        WHERE project_id = :project AND state = 'escalated'
    ) AS waiting
    """
)

_DONE = sa.text(
    f"""
    SELECT count(*) FROM reviews r
    WHERE r.project_id = :project AND r.id >= :midnight AND r.action = 'verdict' AND {review_leases.EFFECTIVE}
    """
)


def counts(session: orm.Session, project_id: uuid.UUID) -> QueueCounts:
    """Today is the UTC day."""
    row = session.execute(_COUNTS, {"project": project_id}).one()
    midnight = dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    done = session.scalar(_DONE, {"project": project_id, "midnight": ids.first(midnight)})
    return QueueCounts(row.open, row.held, row.escalated, done or 0, row.oldest)


@dataclass(frozen=True, slots=True)
class Act:
    """One row of the log with who wrote it, and whether a later row took it back."""

    review: models.Review
    login: str
    is_undone: bool


def recent(session: orm.Session, project_id: uuid.UUID, user_id: uuid.UUID | None, limit: int = 20) -> list[Act]:
    """The newest acts first, of one person or of all; undo rows are left out, what they took back is marked."""
    undoing = orm.aliased(models.Review)
    statement = (
        sa.select(models.Review, models.User.login, sa.exists().where(undoing.undoes == models.Review.id))
        .join(models.User, models.User.id == models.Review.reviewer_id)
        .where(models.Review.project_id == project_id, models.Review.undoes.is_(None))
        .order_by(models.Review.id.desc())
        .limit(limit)
    )
    if user_id is not None:
        statement = statement.where(models.Review.reviewer_id == user_id)
    return [Act(review, login, is_undone) for review, login, is_undone in session.execute(statement)]


def history(session: orm.Session, project_id: uuid.UUID, event_id: uuid.UUID) -> list[models.Review]:
    """Every act on the event's item in the order they happened, undone ones and undos too."""
    review = models.Review
    found = sa.select(review).where(review.project_id == project_id, review.event_id == event_id)
    return list(session.scalars(found.order_by(review.created_at, review.id)))
