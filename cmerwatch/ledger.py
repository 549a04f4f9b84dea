"""Where every accepted event is now, hour by hour. Event rows are counted on their own, so the books can disagree."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import ids


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

_HOURS = sa.text(
    """
    WITH accepted AS (
        SELECT date_trunc('hour', received_at, 'UTC') AS hour, count(*) AS n FROM events
        WHERE project_id = :project AND id >= :low AND id < :high GROUP BY 1
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
)


def hours(session: orm.Session, project_id: uuid.UUID, start: dt.datetime, end: dt.datetime) -> list[LedgerRow]:
    """One row per hour that has anything; start and end are widened to whole UTC hours."""
    start, whole = _hour(start), _hour(end)
    end = whole if whole == end else whole + dt.timedelta(hours=1)
    values = {"project": project_id, "start": start, "end": end, "low": ids.first(start), "high": ids.first(end)}
    return [
        LedgerRow(row.hour, *(int(getattr(row, name)) for name in COUNTS)) for row in session.execute(_HOURS, values)
    ]


def _hour(at: dt.datetime) -> dt.datetime:
    """Start of the UTC hour: in a zone half an hour off, the local one would cut a bucket in two."""
    return at.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)


def totals(rows: Sequence[LedgerRow]) -> dict[str, int]:
    """The sum of every column."""
    return {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
