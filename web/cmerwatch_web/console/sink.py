"""The demo's sink: what Slack, PagerDuty and a webhook were sent, byte for byte, side by side."""

from __future__ import annotations

import fastapi
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import errors, notify, sink
from cmerwatch_web.console import auth, pages

router = fastapi.APIRouter(route_class=pages.Page)

SHOWN = 10  # of each kind
# The rest of the headers are the HTTP client's own.
HEADERS = ("content-type", "webhook-id", "webhook-timestamp", "webhook-signature")


@router.get("/sink")
def show_sink(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    if not request.app.state.settings.demo_sink:
        raise errors.NotFound("There is nothing at this address.")
    columns = {notify.KINDS[kind].label: sink.listed(session, viewer.project_id, kind, SHOWN) for kind in sink.KINDS}
    return pages.render(request, "sink.html", viewer=viewer, columns=columns, headers=HEADERS)
