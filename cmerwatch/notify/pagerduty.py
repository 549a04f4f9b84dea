"""PagerDuty Events API v2: an incident is triggered, added to, and resolved under one key per group of alerts."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from cmerwatch.notify import fields, words
from cmerwatch.notify.kind import Config, Dead, Delivered, Message, Outcome, Request, Retry, passing
from cmerwatch.shapes import Notice

label = "PagerDuty"
schedule: tuple[float, ...] = (5, 30, 60, 120, 300) + (600,) * 143  # as Slack's: for a day
gap = 0.6  # 100 a minute; PagerDuty takes about 120 per key
has_incidents = True
hears_recoveries = True

EVENTS_URL = "https://events.pagerduty.com/v2/enqueue"
MAX_SUMMARY, MAX_BODY = 1_024, 512_000
MAX_SOURCE = 200

_SEVERITIES = {"info": "info", "warning": "warning", "critical": "critical"}


def configure(given: Mapping[str, str]) -> Config:
    fields.only(given, "routing_key", "url")
    key = fields.token(given, "routing_key", r"[A-Za-z0-9]{32}", "the 32 letters and digits of an Events API v2 key")
    return {"routing_key": key, "url": given.get("url", "").strip() or EVENTS_URL}


def url(config: Config) -> str:
    return config["url"]


def hint(config: Config) -> str:
    elsewhere = "" if config["url"] == EVENTS_URL else f" at {urlsplit(config['url']).netloc}"
    return f"key …{config['routing_key'][-4:]}{elsewhere}"


def request(message: Message, config: Config, at: dt.datetime) -> Request:
    payload = event(message, config["routing_key"])
    body = _encoded(payload)
    if len(body) > MAX_BODY:
        payload["payload"]["custom_details"] = {"left_out": "The details were over PagerDuty's limit; open the link."}
        body = _encoded(payload)
    return Request(config["url"], {"Content-Type": "application/json"}, body)


def event(message: Message, routing_key: str) -> dict[str, Any]:
    notice = message.notice
    is_resolve = notice.status == "resolved"
    made: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if is_resolve else "trigger",
        "dedup_key": f"cmerwatch:test:{message.id}" if notice.status == "test" else dedup_key(notice),
    }
    return made if is_resolve else made | _description(message)


def dedup_key(notice: Notice) -> str:
    """The same for all messages of a group: a trigger while its incident is open only adds to it, and pages nobody.

    Without a group, as the release before had it: its incidents must still be found.
    """
    known = [notice.group_id] if notice.group_id else [notice.rule_id, json.dumps(notice.slice, sort_keys=True)]
    identity = "|".join([notice.project, *known])
    return "cmerwatch:" + hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
    if status == 202:
        return Delivered()
    if status == 400 and b"routing" in body.lower():
        return Dead("PagerDuty answered 400: it does not know this routing key.", disables=True)
    if status == 400:
        return Dead("PagerDuty answered 400 and will not take this event.")
    if status in (401, 403, 404, 410):
        return Dead(f"PagerDuty answered {status}: this key or address is not valid there.", disables=True)
    if 200 <= status < 300:
        return Retry(f"PagerDuty answered {status} instead of 202: the event was not taken.")
    return passing(status, headers)


def _description(message: Message) -> dict[str, Any]:
    notice = message.notice
    links = [(notice.link, "Open the slice"), (notice.events_link, "See outputs")]
    links += [(target, words.cut(said, MAX_SOURCE)) for said, target in words.parts(notice)]
    details = asdict(notice) | {
        "facts": dict(words.facts(notice)),
        "firing": [said for said, _ in words.parts(notice)] + list(filter(None, [words.unlisted(notice)])),
        "remarks": words.remarks(notice),
    }
    return {
        "client": "cmerwatch",
        **({"client_url": notice.link} if _is_web(notice.link) else {}),
        "links": [{"href": href, "text": text} for href, text in links if _is_web(href)],
        "payload": {
            "summary": words.cut(words.headline(message), MAX_SUMMARY),
            "source": words.cut(words.subject(notice), MAX_SOURCE),
            "severity": _SEVERITIES.get(notice.severity, "error"),
            "timestamp": notice.fired_at,
            "group": words.cut(notice.project, MAX_SOURCE),
            "class": words.cut(notice.rule, MAX_SOURCE),
            "custom_details": details,
        },
    }


def _encoded(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")


def _is_web(link: str) -> bool:
    return link.startswith(("https://", "http://"))
