"""Slack incoming webhooks, in Block Kit; also what speaks the same, such as Mattermost's."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cmerwatch.notify import fields, words
from cmerwatch.notify.kind import Config, Dead, Delivered, Message, Outcome, Plainer, Request, Retry, passing
from cmerwatch.shapes import Notice

label = "Slack"
# 5 s, 30 s, 1, 2 and 5 minutes, then every 10 minutes for a day.
schedule: tuple[float, ...] = (5, 30, 60, 120, 300) + (600,) * 143
gap = 1.0  # Slack allows one message a second per webhook
has_incidents = False
hears_recoveries = False  # people read it: that it grows smaller they are told with its end

# Slack's limits are 50 blocks, 150 and 3 000 characters, 10 fields of 2 000, and about 13 000 in all, which no page
# of theirs states; these stay well below their sum.
MAX_HEADER, MAX_SECTION, MAX_FIELD, MAX_FIELDS, MAX_LINK = 150, 2_000, 250, 10, 1_500
MAX_PART, MAX_PART_LINK, PARTS = 150, 400, MAX_FIELDS // 2

_PERMANENT = ("invalid_token", "no_active_hooks", "no_service", "channel_is_archived", "action_prohibited")
_LAYOUT = ("invalid_payload", "invalid_blocks", "invalid_attachments", "msg_blocks_too_long", "too_many_attachments")


def configure(given: Mapping[str, str]) -> Config:
    fields.only(given, "url")
    return {"url": fields.url(given, "url")}


def url(config: Config) -> str:
    return config["url"]


def hint(config: Config) -> str:
    return fields.masked_url(config["url"])


def request(message: Message, config: Config, at: dt.datetime) -> Request:
    payload = plain(message) if message.is_plain else rich(message)
    body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
    return Request(config["url"], {"Content-Type": "application/json; charset=utf-8"}, body)


def rich(message: Message) -> dict[str, Any]:
    """Every untrusted string stands in plain_text, where Slack reads no markup; what is left is escaped."""
    notice = message.notice
    blocks: list[dict[str, Any]] = [{"type": "header", "text": _plain(words.headline(message), MAX_HEADER)}]
    if not _is_short(message):
        shown = [_plain(f"{name}\n{value}", MAX_FIELD) for name, value in words.facts(notice)[:MAX_FIELDS]]
        blocks.append({"type": "section", "fields": shown})
    blocks += _parts(notice)
    remarks = "\n".join(_remarks(message))
    if remarks:
        blocks.append({"type": "section", "text": _plain(remarks, MAX_SECTION)})
    links = " · ".join(filter(None, [_link(notice.link, "Open the slice"), _link(notice.events_link, "See outputs")]))
    if links:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": links, "verbatim": True}})
    blocks.append({"type": "context", "elements": [_plain(f"cmerwatch · message {message.id}", MAX_FIELD)]})
    return {**_always(message), "blocks": blocks}


def plain(message: Message) -> dict[str, Any]:
    notice = message.notice
    facts = [] if _is_short(message) else [f"{name}: {value}" for name, value in words.facts(notice)]
    lines = [words.headline(message), *facts, *(said for said, _ in words.parts(notice)), *_remarks(message)]
    text = words.cut("\n".join(lines), MAX_SECTION)
    link = escape(_safe(notice.link))
    return {**_always(message), "text": escape(text) + (f"\n{link}" if link else ""), "mrkdwn": False}


def _is_short(message: Message) -> bool:
    """What was told before needs no telling again when an incident spreads."""
    return message.notice.status == "update" and not message.is_first


def _parts(notice: Notice) -> list[dict[str, Any]]:
    """Two columns, each slice beside its link: a name must stand in plain text, and a link cannot."""
    fields = []
    for said, target in words.parts(notice):
        fields.append(_plain(said, MAX_PART))
        found = _link(target, "Open") if len(target) <= MAX_PART_LINK else ""
        fields.append({"type": "mrkdwn", "text": found, "verbatim": True} if found else _plain("–", 1))
    return [{"type": "section", "fields": fields[at : at + 2 * PARTS]} for at in range(0, len(fields), 2 * PARTS)]


def _remarks(message: Message) -> list[str]:
    said = [] if _is_short(message) else words.remarks(message.notice)
    return [*filter(None, [words.unlisted(message.notice)]), *said]


def escape(text: str) -> str:
    """Slack's three: without them <!channel> in a model's output would call everyone."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
    """200 alone is not success: the body must be `ok`."""
    said = body[:200].decode("utf-8", "replace").strip()
    if status == 200 and said == "ok":
        return Delivered()
    if any(code in said for code in _LAYOUT):
        return Plainer(f"Slack refused the message's layout ({status}).")
    if status in (403, 404, 410) or any(code in said for code in _PERMANENT):
        return Dead(f"Slack answered {status}: this webhook was removed or is not allowed to post.", disables=True)
    if status == 200:
        return Retry("Slack answered 200, but not `ok`: the message was not taken.")
    if 400 <= status < 500 and status not in (408, 425, 429):
        return Dead(f"Slack answered {status} and will not take this message.")
    return passing(status, headers)


def _always(message: Message) -> dict[str, Any]:
    """`text` is what notifications and screen readers say. Links in it are not fetched by Slack."""
    text = escape(words.cut(words.headline(message), MAX_HEADER * 2))
    return {"text": text, "unfurl_links": False, "unfurl_media": False}


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": words.cut(text, limit), "emoji": False}


def _link(target: str, text: str) -> str:
    safe = escape(_safe(target))
    return f"<{safe}|{text}>" if safe else ""


def _safe(target: str) -> str:
    """Only http(s), without the characters that end Slack's link syntax; '' for anything else or too long."""
    safe = quote(target, safe="%/:?#[]@!$&'()*+,;=~-._", errors="replace")
    return safe if safe.startswith(("https://", "http://")) and len(safe) <= MAX_LINK else ""
