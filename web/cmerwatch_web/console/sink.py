"""The demo's sink: what Slack, PagerDuty and a webhook were sent, byte for byte, side by side."""

from __future__ import annotations

import html
import json
import re
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
    own = request.app.state.settings.public_url
    columns = {notify.KINDS[kind].label: sink.listed(session, viewer.project_id, kind, SHOWN) for kind in sink.KINDS}
    return pages.render(
        request,
        "sink.html",
        viewer=viewer,
        columns=columns,
        headers=HEADERS,
        preview=preview,
        links=lambda message: links(message, own),
    )


def preview(message: models.SinkMessage) -> list[str]:
    """The plain texts of a Slack message in their order; nothing for other kinds, or for what is no Slack message."""
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return []
    is_slack = message.kind == "slack" and isinstance(body, dict) and len(message.body) < MAX_PREVIEWED
    return _plain_texts(body.get("blocks"))[:MAX_TEXTS] if is_slack else []


def links(message: models.SinkMessage, own: str) -> list[tuple[str, str]]:
    """(address, text) of a Slack message's links into this console; anybody may post here, so no others."""
    if message.kind != "slack" or len(message.body) >= MAX_PREVIEWED:
        return []
    found = re.findall(r"<(https?://[^|<>\"\\\s]+)\|([^<>\"\\]{1,60})>", message.body)
    named = [(html.unescape(address), html.unescape(text)) for address, text in found[:MAX_TEXTS]]
    return [(address, text) for address, text in named if address.startswith(own.rstrip("/") + "/")]


def _plain_texts(node: Any, depth: int = 0) -> list[str]:
    if depth > 5:
        return []
    if isinstance(node, dict) and node.get("type") == "plain_text" and isinstance(node.get("text"), str):
        return [node["text"]]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [text for one in inner for text in _plain_texts(one, depth + 1)]
