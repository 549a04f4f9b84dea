"""Kinds of channels: one file each, and one line here."""

from __future__ import annotations

from cmerwatch.notify import pagerduty, slack, webhook
from cmerwatch.notify.kind import (
    Config,
    Dead,
    Delivered,
    Kind,
    Message,
    Outcome,
    Plainer,
    Request,
    Retry,
    delay,
    retry_after,
)

__all__ = [
    "KINDS",
    "Config",
    "Dead",
    "Delivered",
    "Kind",
    "Message",
    "Outcome",
    "Plainer",
    "Request",
    "Retry",
    "delay",
    "retry_after",
]

KINDS: dict[str, Kind] = {
    "slack": slack,
    "pagerduty": pagerduty,
    "webhook": webhook,
}
