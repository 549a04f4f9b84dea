"""Signed webhooks as Standard Webhooks 1.0 has them: any receiver with one of its libraries can verify them."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cmerwatch import errors
from cmerwatch.notify import fields
from cmerwatch.notify.kind import Config, Dead, Delivered, Message, Outcome, Request, passing

label = "Webhook"
# 5 s, 5 and 30 minutes, 2, 5, 10 and 10 hours: receivers of webhooks are often down for a night.
schedule: tuple[float, ...] = (5, 300, 1_800, 7_200, 18_000, 36_000, 36_000)
gap = 0.0
has_incidents = False
hears_recoveries = True

PREFIX = "whsec_"
SECRET_BYTES = 32
MIN_SECRET, MAX_SECRET = 24, 64
ROTATION = dt.timedelta(hours=24)  # how long the secret before signs beside the new one


def configure(given: Mapping[str, str]) -> Config:
    """Without a secret, one is made."""
    fields.only(given, "url", "secret")
    secret = given.get("secret", "").strip() or make_secret()
    _key(secret)
    return {"url": fields.url(given, "url"), "secret": secret}


def make_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def rotated(config: Config, at: dt.datetime) -> Config:
    """A new secret; the one before goes on signing for a day, so that receivers can change theirs meanwhile."""
    old = {"old_secret": config["secret"], "old_until": (at + ROTATION).isoformat()}
    return {"url": config["url"], "secret": make_secret(), **old}


def old_until(config: Config) -> dt.datetime | None:
    """Until when the secret before this one signs too; None where there was none."""
    return dt.datetime.fromisoformat(config["old_until"]) if "old_secret" in config else None


def url(config: Config) -> str:
    return config["url"]


def hint(config: Config) -> str:
    return fields.masked_url(config["url"])


def request(message: Message, config: Config, at: dt.datetime) -> Request:
    body = json.dumps(event(message), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    stamp = str(int(at.timestamp()))
    signatures = [sign(secret, message.id, stamp, body) for secret in _secrets(config, at)]
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "cmerwatch",
        "webhook-id": message.id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(signatures),
    }
    return Request(config["url"], headers, body)


def event(message: Message) -> dict[str, Any]:
    """The same bytes on every try: `timestamp` is when it happened, the header's is when it was sent."""
    notice = message.notice
    happened = {"firing": notice.fired_at, "resolved": notice.resolved_at}.get(notice.status)
    data = asdict(notice) | {"is_first": message.is_first}
    return {"type": f"alert.{notice.status}", "timestamp": happened or notice.window_end, "data": data}


def sign(secret: str, message_id: str, stamp: str, body: bytes) -> str:
    signed = b".".join([message_id.encode(), stamp.encode(), body])
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
    if 200 <= status < 300:
        return Delivered()
    if status == 410:
        return Dead("The receiver answered 410: it is gone and wants no more messages.", disables=True)
    return passing(status, headers)


def _secrets(config: Config, at: dt.datetime) -> list[str]:
    found = [config["secret"]]
    if (until := old_until(config)) is not None and at < until:
        found.append(config["old_secret"])
    return found


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not MIN_SECRET <= len(key) <= MAX_SECRET:
        raise errors.Invalid(
            f"`secret` must be {PREFIX} followed by the base64 of {MIN_SECRET} to {MAX_SECRET} random bytes; "
            "leave it empty and one is made.",
            field="secret",
        )
    return key
