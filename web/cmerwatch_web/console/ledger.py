"""The books: every accepted event is somewhere, hour by hour, and the sums agree or say by how much they do not."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence

import fastapi
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import ledger
from cmerwatch.ledger import LedgerRow
from cmerwatch_web.console import auth, overview, pages, views
from cmerwatch_web.console.views import View

router = fastapi.APIRouter(route_class=pages.Page)

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


@router.get("/ledger")
def show_ledger(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    view = overview.aligned(views.read(request.query_params))
    rows = ledger.hours(session, viewer.project_id, view.start, view.end)
    by_day = view.end - view.start > HOURLY_UP_TO
    return pages.render(
        request,
        "ledger.html",
        viewer=viewer,
        view=view.cleared(),
        lines=_days(rows, view) if by_day else [(row, None) for row in reversed(rows)],
        by_day=by_day,
        totals=ledger.totals(rows),
        difference=sum(row.difference for row in rows),
        unbalanced=sum(row.difference != 0 for row in rows),
        columns=COLUMNS,
    )


def _days(rows: Sequence[LedgerRow], view: View) -> list[tuple[LedgerRow, str]]:
    """One row per UTC day, newest first, each with the address of its hours."""
    made = []
    for day, of_day in itertools.groupby(rows, key=lambda row: row.hour.date()):
        start = dt.datetime.combine(day, dt.time(), dt.UTC)
        link = view.cleared().during(start, start + dt.timedelta(days=1)).link("/ledger")
        made.append((LedgerRow(start, **ledger.totals(list(of_day))), link))
    return made[::-1]
