"""Where every accepted event is now, hour by hour. Event rows are counted on their own, so the books can disagree."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields

import psycopg
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, ids


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """accepted comes from event rows; outcomes from rollups; waiting and quarantined from open work."""

    hour: dt.datetime
    accepted: int
    scored: int
    unscorable: int
    invalid_image: int
    model_error: int
    quarantined: int
    waiting: int

    @property
    def difference(self) -> int:
        """0 when the hour balances; positive when events are unaccounted for, negative when counted twice."""
        return self.accepted - sum(int(getattr(self, name)) for name in OUTCOMES)


COUNTS = tuple(f.name for f in fields(LedgerRow) if f.name != "hour")
OUTCOMES = COUNTS[1:]
HOUR = dt.timedelta(hours=1)

_TOO_MANY = (
    "Counting every event between `from` and `to` took too long and was stopped. Ask for a shorter time between them."
)

# One count per hour, each over the index on (project_id, id), of which ids name the hour: reading received_at of every
# row took 10 times as long. Each with its ends written out: a join with a list of hours is never counted in parallel.
# All in one statement: of two, the second would see events that came after the first.
_ACCEPTED = (
    "SELECT to_timestamp({seconds}) AS hour, count(*) AS n FROM events "
    "WHERE project_id = :project AND id >= '{low}' AND id < '{high}' HAVING count(*) > 0"
)

_HOURS = """
    WITH accepted AS (
        {accepted}
    ), done AS (
        SELECT bucket AS hour, sum(scored) AS scored, sum(unscorable) AS unscorable,
            sum(invalid_image) AS invalid_image, sum(model_error) AS model_error
        FROM rollups_1h WHERE project_id = :project AND bucket >= :start AND bucket < :end GROUP BY 1
    ), open AS (
        SELECT date_trunc('hour', bucket, 'UTC') AS hour, count(*) FILTER (WHERE state = 9) AS quarantined,
            count(*) FILTER (WHERE state <> 9) AS waiting
        FROM work WHERE project_id = :project AND bucket >= :start AND bucket < :end GROUP BY 1
    )
    SELECT hour, coalesce(accepted.n, 0) AS accepted, coalesce(scored, 0) AS scored,
        coalesce(unscorable, 0) AS unscorable, coalesce(invalid_image, 0) AS invalid_image,
        coalesce(model_error, 0) AS model_error, coalesce(quarantined, 0) AS quarantined,
        coalesce(waiting, 0) AS waiting
    FROM accepted FULL JOIN done USING (hour) FULL JOIN open USING (hour) ORDER BY hour
"""


def hours(session: orm.Session, project_id: uuid.UUID, start: dt.datetime, end: dt.datetime) -> list[LedgerRow]:
    """One row per hour that has anything; start and end are widened to whole UTC hours.

    Raises Invalid when the database's time for one statement ends before all is counted; the session stays usable.
    """
    start, whole = _hour(start), _hour(end)
    end = whole if whole == end else whole + HOUR
    if end <= start:
        return []
    values = {"project": project_id, "start": start, "end": end}
    try:
        with session.begin_nested():
            found = session.execute(sa.text(_sql(start, end)), values).all()
    except sa.exc.OperationalError as error:
        if isinstance(error.orig, psycopg.errors.QueryCanceled):
            raise errors.Invalid(_TOO_MANY, field="from") from None
        raise
    return [LedgerRow(row.hour, *(int(getattr(row, name)) for name in COUNTS)) for row in found]


def _sql(start: dt.datetime, end: dt.datetime) -> str:
    counts = [
        _ACCEPTED.format(seconds=int(hour.timestamp()), low=ids.first(hour), high=ids.first(hour + HOUR))
        for hour in (start + n * HOUR for n in range((end - start) // HOUR))
    ]
    return _HOURS.format(accepted=_union(counts))


def _union(parts: Sequence[str]) -> str:
    """By halves: of a year in a row, each hour inside the one before, Postgres' parser runs out of stack."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_union(parts[:middle])}\nUNION ALL {_union(parts[middle:])})"


def _hour(at: dt.datetime) -> dt.datetime:
    """Start of the UTC hour: in a zone half an hour off, the local one would cut a bucket in two."""
    return at.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)


def totals(rows: Sequence[LedgerRow]) -> dict[str, int]:
    """The sum of every column."""
    return {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
