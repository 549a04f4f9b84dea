"""The demo's sink: what Slack, PagerDuty and a webhook were sent, byte for byte, side by side."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Line:
    """What one text of a Slack message says, and (address, text) of the links beside it."""

    text: str
    links: tuple[tuple[str, str], ...] = ()

    @property
    def is_wide(self) -> bool:
        return len(self.text) > 70 or bool(self.links)


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
        preview=lambda message: preview(message, own),
    )


def preview(message: models.SinkMessage, own: str) -> list[Line]:
    """The texts of a Slack message in their order, each with the links beside it that lead into this console: anybody
    may post here, so no others. Nothing for other kinds, or for what is no Slack message."""
    try:
        body = json.loads(message.body)
    except (ValueError, RecursionError):
        return []
    is_slack = message.kind == "slack" and isinstance(body, dict) and len(message.body) < MAX_PREVIEWED
    return _lines(body.get("blocks"), own)[:MAX_TEXTS] if is_slack else []


def _lines(blocks: Any, own: str) -> list[Line]:
    lines: list[Line] = []
    for text, is_field in _texts(blocks):
        if text["type"] == "plain_text":
            lines.append(Line(text["text"]))
        elif links := _links(text["text"], own):
            # Of two columns the second is the link of what the first says.
            if is_field and lines and not lines[-1].links:
                lines[-1] = Line(lines[-1].text, links)
            else:
                lines.append(Line("", links))
    return lines


def _links(text: str, own: str) -> tuple[tuple[str, str], ...]:
    found = re.findall(r"<(https?://[^|<>\"\\\s]+)\|([^<>\"\\]{1,60})>", text)
    named = [(html.unescape(address), html.unescape(label)) for address, label in found[:MAX_TEXTS]]
    return tuple((address, label) for address, label in named if address.startswith(own.rstrip("/") + "/"))


def _texts(node: Any, is_field: bool = False, depth: int = 0) -> list[tuple[dict[str, Any], bool]]:
    """Slack's text objects in their order, and whether each is a field of two columns."""
    if depth > 5:
        return []
    if isinstance(node, list):
        return [found for one in node for found in _texts(one, is_field, depth + 1)]
    if not isinstance(node, dict):
        return []
    if node.get("type") in ("plain_text", "mrkdwn") and isinstance(node.get("text"), str):
        return [(node, is_field)]
    return [found for name, one in node.items() for found in _texts(one, name == "fields", depth + 1)]
