"""The books: every accepted event is somewhere, hour by hour, and the sums agree or say by how much they do not."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import fastapi
import sqlalchemy as sa
from fastapi import Depends, Form
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, blobs, checks, db, errors, ledger, models, queue
from cmerwatch.ledger import LedgerRow
from cmerwatch_web import deps
from cmerwatch_web.console import auth, overview, pages, views
from cmerwatch_web.console.views import View

router = fastapi.APIRouter(route_class=pages.Page)

Operator = Annotated[access.Principal, Depends(auth.allowed("operate"))]

COLUMNS = {
    "accepted": "Accepted",
    "scored": "Scored",
    "unscorable": "Not scorable",
    "invalid_image": "Unreadable",
    "model_error": "Failed",
    "quarantined": "Quarantined",
    "waiting": "Waiting",
}

HOURLY_UP_TO = dt.timedelta(days=2)
DEFAULT_WINDOW = "24h"  # every event of the window is counted while the page waits: eight days are for who asks


@router.get("/ledger")
def show_ledger(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    view = overview.aligned(views.read(request.query_params, default=DEFAULT_WINDOW)).cleared()
    rows = _count_hours(session, viewer, view)
    by_day = view.end - view.start > HOURLY_UP_TO
    counted = rows or []
    return pages.render(
        request,
        "ledger.html",
        viewer=viewer,
        view=view,
        is_counted=rows is not None,
        lines=_days(counted, view) if by_day else [(row, None) for row in reversed(counted)],
        by_day=by_day,
        totals=ledger.totals(counted),
        difference=sum(row.difference for row in counted),
        unbalanced=sum(row.difference != 0 for row in counted),
        columns=COLUMNS,
    )


def _count_hours(session: orm.Session, viewer: access.Principal, view: View) -> list[LedgerRow] | None:
    """None when that took too long."""
    try:
        return ledger.hours(session, viewer.project_id, view.start, view.end)
    except errors.Invalid:
        return None


def _days(rows: Sequence[LedgerRow], view: View) -> list[tuple[LedgerRow, str]]:
    """One row per UTC day, newest first, each with the address of its hours."""
    made = []
    for day, of_day in itertools.groupby(rows, key=lambda row: row.hour.date()):
        start = dt.datetime.combine(day, dt.time(), dt.UTC)
        link = view.cleared().during(start, start + dt.timedelta(days=1)).link("/ledger")
        made.append((LedgerRow(start, **ledger.totals(list(of_day))), link))
    return made[::-1]


# The quarantine: what no worker survived

SHOWN = 100


@dataclass(frozen=True, slots=True)
class Stuck:
    """One quarantined event. A display copy exists only where some worker got as far as decoding."""

    work: models.Work
    event: models.Event
    output: str
    has_picture: bool


@router.get("/quarantine")
def show_quarantine(request: Request, session: auth.Session, viewer: auth.Viewer, store: deps.Blobs) -> Response:
    """The oldest first, with what became of those just replayed."""
    rows = checks.quarantined(session, viewer.project_id, limit=SHOWN)
    return pages.render(
        request,
        "quarantine.html",
        viewer=viewer,
        lines=_with_events(session, viewer.project_id, store, rows),
        total=_count(session, viewer.project_id),
        waiting=checks.waiting(session, viewer.project_id),
        replayed=_number(request.query_params.get("replayed", "")),
    )


def _with_events(
    session: orm.Session, project_id: uuid.UUID, store: blobs.BlobStore, rows: Sequence[models.Work]
) -> list[Stuck]:
    ids = [row.event_id for row in rows]
    events = {
        event.id: event
        for event in session.scalars(
            sa.select(models.Event).where(models.Event.id.in_(ids), models.Event.project_id == project_id)
        )
    }
    bodies = {
        body.id: body for body in session.scalars(sa.select(models.EventBody).where(models.EventBody.id.in_(ids)))
    }

    def has_picture(event: models.Event) -> bool:
        return bool(event.images) and store.get_display(project_id, event.images[0]) is not None

    found = [(row, events[row.event_id]) for row in rows if row.event_id in events]
    return [Stuck(row, event, bodies[event.id].output, has_picture(event)) for row, event in found]


def _count(session: orm.Session, project_id: uuid.UUID) -> int:
    quarantined = sa.select(sa.func.count()).select_from(models.Work)
    return session.execute(
        quarantined.where(models.Work.project_id == project_id, models.Work.state == models.QUARANTINED)
    ).scalar_one()


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


@router.post("/quarantine/replay")
def replay(session: auth.Session, viewer: Operator, event: Annotated[list[str] | None, Form()] = None) -> Response:
    """Those named, or all; a fresh start each, with all its attempts. A worker is told as soon as it is committed."""
    named = None if event is None else [_id(text) for text in event]
    count = checks.replay(session, viewer.project_id, named)
    if named is not None and not count:
        raise errors.NotFound("These events are not in quarantine any more.")
    access.audit(session, viewer.actor, "events.replay", viewer.project_slug, viewer.project_id, count=count)
    db.after_commit(session, queue.hint, "check")
    return RedirectResponse(f"/quarantine?replayed={count}", 303)


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.NotFound("There is no such event in quarantine.") from None
