"""What a page looks at: a window of time and a slice, read from the address and written back into links."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from cmerwatch import errors
from cmerwatch.shapes import DIMENSIONS
from cmerwatch_web.api import times

WINDOWS = {
    "30m": ("30 min", dt.timedelta(minutes=30)),
    "1h": ("1 hour", dt.timedelta(hours=1)),
    "24h": ("24 hours", dt.timedelta(hours=24)),
    "8d": ("8 days", dt.timedelta(days=8)),
}
DEFAULT_WINDOW = "8d"
LONGEST = dt.timedelta(days=400)
NAMES = {
    "endpoint": "Endpoint",
    "prompt_type": "Prompt type",
    "customer": "Customer",
    "model": "Model",
    "model_version": "Model version",
    "environment": "Environment",
}


@dataclass(frozen=True, slots=True)
class View:
    """[start, end) in UTC and the dimension values looked at. `window` is None when the address gave the ends."""

    start: dt.datetime
    end: dt.datetime
    window: str | None
    filters: tuple[tuple[str, str], ...] = ()
    checker: int | None = None  # whose numbers the overview shows; None is the one in use

    @property
    def chosen(self) -> dict[str, str]:
        return dict(self.filters)

    def link(self, path: str = "/", **extra: str) -> str:
        """The address of `path` with this window and slice; `extra` adds parameters of that page."""
        of = [("checker", str(self.checker))] if self.checker is not None and path == "/" else []
        return f"{path}?{urlencode([*self._window(), *self.filters, *of, *extra.items()])}"

    def by_checker(self, checker: int | None) -> View:
        return replace(self, checker=checker)

    def narrowed(self, dimension: str, value: str) -> View:
        return replace(self, filters=tuple((self.chosen | {dimension: value}).items()))

    def widened(self, dimension: str) -> View:
        return replace(self, filters=tuple((k, v) for k, v in self.filters if k != dimension))

    def moved(self, window: str) -> View:
        return replace(self, window=window)

    def during(self, start: dt.datetime, end: dt.datetime) -> View:
        return replace(self, window=None, start=start, end=end)

    def cleared(self) -> View:
        return replace(self, filters=())

    def _window(self) -> list[tuple[str, str]]:
        if self.window is not None:
            return [("window", self.window)]
        return [("from", _written(self.start)), ("to", _written(self.end))]


def read(query: Mapping[str, str], now: dt.datetime | None = None, default: str = DEFAULT_WINDOW) -> View:
    """The view an address names, of the window `default` where it names none; raises Invalid naming the parameter.

    A dimension given empty means "has none".
    """
    filters = tuple((name, query[name]) for name in DIMENSIONS if name in query)
    checker = _number("checker", query["checker"]) if query.get("checker") else None
    now = now or dt.datetime.now(dt.UTC)
    if "from" in query or "to" in query:
        end = _moment("to", query["to"]) if query.get("to") else now
        start = _moment("from", query["from"]) if query.get("from") else end - WINDOWS[default][1]
        if not dt.timedelta(0) < end - start <= LONGEST:
            raise errors.Invalid("`from` must lie before `to`, and at most 400 days before it.", field="from")
        return View(start, end, None, filters, checker)
    window = query.get("window") or default
    if window not in WINDOWS:
        raise errors.Invalid(f"`window` must be one of {', '.join(WINDOWS)}.", field="window")
    return View(now - WINDOWS[window][1], now, window, filters, checker)


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise errors.Invalid(f"`{name}` must be a whole number.", field=name)
    return int(value)


def _written(moment: dt.datetime) -> str:
    """Exact: a second cut off the end of a window would hide the newest events from the next page of a list."""
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _moment(name: str, value: str) -> dt.datetime:
    try:
        # A "+00:00" that was not encoded arrives as a space.
        found = dt.datetime.fromisoformat(value.strip().replace(" 00:00", "+00:00"))
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    except (ValueError, OverflowError):  # the year 1 of another zone lies before all years
        raise errors.Invalid(f"`{name}` must be a time such as 2026-11-24T09:00:00Z.", field=name) from None
    if found.year not in times.YEARS:
        raise errors.Invalid(
            f"`{name}` must lie in the years {times.YEARS[0]} to {times.YEARS[-1]}.", field=name, limit=times.YEARS[-1]
        )
    return found
