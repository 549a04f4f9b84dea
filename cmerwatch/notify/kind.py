"""What a kind of channel is: a message in, a request out; an answer in, what became of the message out. Pure."""

from __future__ import annotations

import datetime as dt
import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cmerwatch.shapes import Notice

Config = dict[str, str]

MAX_HOLD = 3600.0  # of a Retry-After: a service cannot silence an alert for days


@dataclass(frozen=True, slots=True)
class Message:
    """`id` is the same on every try. `is_first`: the receiver was told nothing of this alert before. `is_plain`: the
    service refused the rich layout, so the second try goes without."""

    id: str
    notice: Notice
    is_first: bool = True
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """Ready to send: the body is the exact bytes that were signed."""

    url: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Delivered:
    """The service took it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now. `after`: seconds that the service asked for. `holds`: it asked for all messages, not this one."""

    reason: str
    after: float | None = None
    holds: bool = False


@dataclass(frozen=True, slots=True)
class Plainer:
    """The layout was refused: worth one more try as plain text."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Never. `disables`: no other message will do better until a person mends the channel."""

    reason: str
    disables: bool = False


Outcome = Delivered | Retry | Plainer | Dead


class Kind(Protocol):
    """A module of this package.

    `schedule`: seconds before each retry; after the last one the message is dead. `gap`: seconds between two messages
    of a channel. `has_incidents`: the service keeps something open between a firing and its resolve, known by the
    group of alerts, so a resolve must reach what was triggered, and one without a trigger is pointless.
    `hears_recoveries`: worth a message that some slices of an incident recovered while others fire; that it spread is
    told everywhere.
    """

    @property
    def label(self) -> str: ...
    @property
    def schedule(self) -> tuple[float, ...]: ...
    @property
    def gap(self) -> float: ...
    @property
    def has_incidents(self) -> bool: ...
    @property
    def hears_recoveries(self) -> bool: ...

    def configure(self, given: Mapping[str, str]) -> Config:
        """The configuration to seal. Raises Invalid naming the field."""
        ...

    def url(self, config: Config) -> str: ...

    def hint(self, config: Config) -> str:
        """What may be shown of it."""
        ...

    def request(self, message: Message, config: Config, at: dt.datetime) -> Request:
        """`at` is the moment of this try."""
        ...

    def classify(self, status: int, headers: Mapping[str, str], body: bytes) -> Outcome: ...


def delay(schedule: tuple[float, ...], attempts: int, after: float | None, spread: float) -> float | None:
    """Seconds until the next try after `attempts` failed ones; None when there is none.

    `spread` in [-1, 1] moves the schedule by up to 20 %, so that what failed together does not come back together.
    A Retry-After replaces the schedule within [the schedule, one hour].
    """
    if attempts > len(schedule):
        return None
    base = schedule[attempts - 1] * (1 + 0.2 * spread)
    return base if after is None else max(base, min(after, MAX_HOLD))


def retry_after(headers: Mapping[str, str], at: dt.datetime | None = None) -> float | None:
    """Seconds of a Retry-After header: a number or a date; None when there is none that can be read."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, (until - (at or dt.datetime.now(dt.UTC))).total_seconds())


def passing(status: int, headers: Mapping[str, str]) -> Retry:
    """What another try may mend, with the status in words."""
    if 300 <= status < 400:
        return Retry(f"The service answered {status}: it points elsewhere, and redirects are not followed.")
    if status == 429:
        return Retry("The service answered 429: too many messages.", retry_after(headers), holds=True)
    return Retry(f"The service answered {status}.", retry_after(headers))
