"""Windows of time in queries: `from` and `to`, ISO 8601 with a time zone, read the same way everywhere."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from fastapi import Query

from cmerwatch import errors

From = Annotated[str | None, Query(alias="from", description="ISO 8601 with a time zone; included.")]
To = Annotated[str | None, Query(description="ISO 8601 with a time zone; excluded.")]

# Whoever asks widens a window to whole buckets and takes the default one off its end: past these, Python's own
# calendar ends on the way.
YEARS = range(1900, 9999)


def moment(text: str | None, field: str) -> dt.datetime | None:
    """Raises Invalid naming the field."""
    if text is None:
        return None
    try:
        # An unescaped + in a query reads as a space: "2026-11-24T09:00:00 01:00" can only have meant an offset.
        at = dt.datetime.fromisoformat(text[:-6] + "+" + text[-5:] if text[-6:-5] == " " and "T" in text else text)
        if at.tzinfo is None:
            raise errors.Invalid(f"`{field}` has no time zone; end it with Z.", field=field)
        at = at.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise errors.Invalid(f"`{field}` must be a time such as 2026-11-24T09:00:00Z.", field=field) from None
    if at.year not in YEARS:
        raise errors.Invalid(
            f"`{field}` must lie in the years {YEARS[0]} to {YEARS[-1]}.", field=field, limit=[YEARS[0], YEARS[-1]]
        )
    return at


def window(
    start: str | None, end: str | None, default: dt.timedelta, most: dt.timedelta
) -> tuple[dt.datetime, dt.datetime]:
    """[from, to); without `to` until now, without `from` the default before it. Raises Invalid."""
    last = moment(end, "to") or dt.datetime.now(dt.UTC)
    first = moment(start, "from") or last - default
    if first >= last:
        raise errors.Invalid("`from` must be before `to`.", field="from")
    if last - first > most:
        raise errors.Invalid(f"`from` and `to` may be at most {most.days} days apart.", field="from", limit=most.days)
    return first, last
