"""The books: every accepted event is somewhere, hour by hour, and the sums agree or say by how much they do not."""

from __future__ import annotations

import fastapi
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import ledger
from cmerwatch_web.console import auth, overview, pages, views

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


@router.get("/ledger")
def show_ledger(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    view = overview.aligned(views.read(request.query_params))
    rows = ledger.hours(session, viewer.project_id, view.start, view.end)
    return pages.render(
        request,
        "ledger.html",
        viewer=viewer,
        view=view.cleared(),
        rows=list(reversed(rows)),
        totals=ledger.totals(rows),
        difference=sum(row.difference for row in rows),
        unbalanced=sum(row.difference != 0 for row in rows),
        columns=COLUMNS,
    )
