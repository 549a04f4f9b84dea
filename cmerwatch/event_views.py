"""Reading events back: one whole, or a thin page of many."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, fetches, ids, models
from cmerwatch.shapes import DIMENSIONS

STATES = ("waiting", "checked", "quarantined")


@dataclass(frozen=True, slots=True)
class EventView:
    """One event with everything known of it; check, decision and review are None until they exist."""

    event: models.Event
    body: models.EventBody
    state: str  # one of STATES
    work: models.Work | None
    check: models.Check | None
    checker: models.Checker | None
    decision: models.DecisionRow | None
    review: models.ReviewItem | None
    verdict: models.Review | None  # the newest that nobody took back
    judgement: models.Judgement | None
    fetches: list[models.ImageFetch]  # of pictures that it names by address

    @property
    def awaits_pictures(self) -> bool:
        return self.work is not None and self.work.state == models.FETCHING


def get(session: orm.Session, project_id: uuid.UUID, event_id: uuid.UUID) -> EventView:
    """Raises NotFound for an absent event and for another project's alike.

    Of several checks the newest checker's is shown, with the newest decision about that very check.
    """
    event = session.scalar(
        sa.select(models.Event).where(models.Event.id == event_id, models.Event.project_id == project_id)
    )
    if event is None:
        raise errors.NotFound(f"There is no event {event_id} in this project.", id=str(event_id))
    work = session.get(models.Work, event_id)
    check = session.scalars(
        sa.select(models.Check).where(models.Check.event_id == event_id).order_by(models.Check.checker_id.desc())
    ).first()
    decision = (
        session.scalars(
            sa.select(models.DecisionRow)
            .where(models.DecisionRow.event_id == event_id, models.DecisionRow.checker_id == check.checker_id)
            .order_by(models.DecisionRow.policy_version.desc())
        ).first()
        if check
        else None
    )
    return EventView(
        event=event,
        body=session.get_one(models.EventBody, event_id),
        state=state_of(work.state if work else None, check is not None),
        work=work,
        check=check,
        checker=session.get(models.Checker, check.checker_id) if check else None,
        decision=decision,
        review=session.scalar(
            sa.select(models.ReviewItem).where(
                models.ReviewItem.project_id == project_id, models.ReviewItem.event_id == event_id
            )
        ),
        verdict=_verdict(session, project_id, event_id),
        judgement=session.get(models.Judgement, (event_id, check.checker_id)) if check else None,
        fetches=fetches.of(session, event_id),
    )


def _verdict(session: orm.Session, project_id: uuid.UUID, event_id: uuid.UUID) -> models.Review | None:
    review, undo = models.Review, orm.aliased(models.Review)
    found = sa.select(review).where(
        review.project_id == project_id,
        review.event_id == event_id,
        review.action == "verdict",
        ~sa.exists().where(undo.undoes == review.id),
    )
    return session.scalars(found.order_by(review.created_at.desc()).limit(1)).first()


def state_of(work_state: int | None, has_check: bool) -> str:
    if work_state == models.QUARANTINED:
        return "quarantined"
    return "checked" if has_check else "waiting"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """None means any. `dimensions` maps a dimension to its exact value ('' = absent)."""

    event_key: str | None = None
    dimensions: dict[str, str] = field(default_factory=dict)
    flagged: bool | None = None
    outcome: str | None = None
    state: str | None = None
    start: dt.datetime | None = None
    end: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class EventRow:
    id: uuid.UUID
    event_key: str | None
    received_at: dt.datetime
    dimensions: dict[str, str]
    images: list[str]
    confidence: float | None
    prompt: str
    output: str
    state: str
    outcome: str | None
    similarity: float | None
    score: float | None
    flagged: bool | None


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[EventRow]
    next_cursor: str | None


def find(
    session: orm.Session, project_id: uuid.UUID, wanted: EventFilter, cursor: str | None = None, limit: int = 50
) -> Page:
    """Newest first by id (keyset: stable while events arrive). Prompt and output are cut to 300 characters."""
    values: dict[str, Any] = {"project": project_id, "limit": limit + 1, **_values(wanted, cursor)}
    rows = session.execute(sa.text(_sql(wanted, cursor is not None)), values).all()
    page = [_row(row) for row in rows[:limit]]
    return Page(page, str(page[-1].id) if len(rows) > limit else None)


def _sql(wanted: EventFilter, has_cursor: bool) -> str:
    """Built from our own column names only; every value is bound."""
    where = ["e.project_id = :project"]
    where += [f"e.{name} = :dim_{name}" for name in DIMENSIONS if name in wanted.dimensions]
    where += ["e.id < :cursor"] if has_cursor else []
    where += ["e.id >= :start"] if wanted.start else []
    where += ["e.id < :end"] if wanted.end else []
    where += [_OF_KEY] if wanted.event_key is not None else []
    where += ["c.outcome = :outcome"] if wanted.outcome else []
    where += ["coalesce(d.flagged, false) = :flagged"] if wanted.flagged is not None else []
    where += [_EVER_FLAGGED] if wanted.flagged else []
    where += [_STATE_SQL[wanted.state]] if wanted.state else []
    dims = ", ".join(f"e.{name}" for name in DIMENSIONS)
    return f"""
        SELECT e.id, e.event_key, e.received_at, {dims}, e.images, e.geo_p, left(b.prompt, 300) AS prompt,
            left(b.output, 300) AS output, w.state AS work_state, c.outcome, c.similarity, c.score, d.flagged
        FROM events e
        JOIN event_bodies b ON b.id = e.id
        LEFT JOIN work w ON w.event_id = e.id
        LEFT JOIN LATERAL (
            SELECT * FROM checks WHERE event_id = e.id ORDER BY checker_id DESC LIMIT 1
        ) c ON true
        LEFT JOIN LATERAL (
            SELECT flagged FROM decisions WHERE event_id = e.id AND checker_id = c.checker_id
            ORDER BY policy_version DESC LIMIT 1
        ) d ON true
        WHERE {" AND ".join(where)}
        ORDER BY e.id DESC LIMIT :limit
    """


# Events have no index on the sender's id: the idempotency key leads to the one event that bears it.
_OF_KEY = "e.id = (SELECT event_id FROM ingest_keys WHERE project_id = :project AND key_hash = :key_hash)"

# Flagged events are few: their own small index finds them, instead of a look at every event's newest decision.
_EVER_FLAGGED = "e.id IN (SELECT event_id FROM decisions WHERE project_id = :project AND flagged)"

_STATE_SQL = {
    "waiting": "w.state <> 9",
    "quarantined": "w.state = 9",
    "checked": "w.event_id IS NULL",
}


def _values(wanted: EventFilter, cursor: str | None) -> dict[str, Any]:
    values: dict[str, Any] = {f"dim_{name}": value for name, value in wanted.dimensions.items()}
    if cursor is not None:
        values["cursor"] = _cursor(cursor)
    if wanted.start:
        values["start"] = ids.first(wanted.start)
    if wanted.end:
        values["end"] = ids.first(wanted.end)
    if wanted.event_key is not None:
        values["key_hash"] = ids.key_hash(wanted.event_key)
    for name in ("outcome", "flagged"):
        values[name] = getattr(wanted, name)
    return values


def _cursor(cursor: str) -> uuid.UUID:
    try:
        return uuid.UUID(cursor)
    except ValueError:
        raise errors.Invalid("cursor is not one this API gave; use next_cursor as it came.", field="cursor") from None


def _row(row: sa.Row[Any]) -> EventRow:
    return EventRow(
        id=row.id,
        event_key=row.event_key,
        received_at=row.received_at,
        dimensions={name: getattr(row, name) for name in DIMENSIONS},
        images=row.images,
        confidence=row.geo_p,
        prompt=row.prompt,
        output=row.output,
        state=state_of(row.work_state, row.outcome is not None),
        outcome=row.outcome,
        similarity=row.similarity,
        score=row.score,
        flagged=row.flagged,
    )
