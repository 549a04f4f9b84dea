"""The demo's sink: what Slack, PagerDuty and a webhook were sent, byte for byte, side by side."""

from __future__ import annotations

import json
from typing import Any

import fastapi
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import errors, models, notify, sink
from cmerwatch_web.console import auth, pages

router = fastapi.APIRouter(route_class=pages.Page)

SHOWN = 10  # of each kind
MAX_PREVIEWED, MAX_TEXTS = 20_000, 20
# The rest of the headers are the HTTP client's own.
HEADERS = ("content-type", "webhook-id", "webhook-timestamp", "webhook-signature")


@router.get("/sink")
def show_sink(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    if not request.app.state.settings.demo_sink:
        raise errors.NotFound("There is nothing at this address.")
    columns = {notify.KINDS[kind].label: sink.listed(session, viewer.project_id, kind, SHOWN) for kind in sink.KINDS}
    return pages.render(request, "sink.html", viewer=viewer, columns=columns, headers=HEADERS, preview=preview)


def preview(message: models.SinkMessage) -> list[str]:
    """The plain texts of a Slack message in their order; nothing for other kinds, or for what is no Slack message."""
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return []
    is_slack = message.kind == "slack" and isinstance(body, dict) and len(message.body) < MAX_PREVIEWED
    return _plain_texts(body.get("blocks"))[:MAX_TEXTS] if is_slack else []


def _plain_texts(node: Any, depth: int = 0) -> list[str]:
    if depth > 5:
        return []
    if isinstance(node, dict) and node.get("type") == "plain_text" and isinstance(node.get("text"), str):
        return [node["text"]]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [text for one in inner for text in _plain_texts(one, depth + 1)]
