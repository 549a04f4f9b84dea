"""How the queue fares, for whoever leads it: what came, what was answered, and how long an answer takes, by day."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import ids, review_leases

DAYS = 14


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day. What was taken back does not count; `seconds` is the median from taking an item to its verdict,
    None without one."""

    day: dt.date
    came: int
    verdicts: int
    skips: int
    escalations: int
    blind: int
    reviewers: int
    seconds: float | None


# Both tables are read by their ids, which begin with the time: the days before cost nothing.
_DAYS = sa.text(
    f"""
    WITH came AS (
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day, count(*) AS came FROM review_items
        WHERE id >= :since AND project_id = :project GROUP BY 1
    ), acts AS (
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day,
            count(*) FILTER (WHERE action = 'verdict') AS verdicts,
            count(*) FILTER (WHERE action = 'skip') AS skips,
            count(*) FILTER (WHERE action = 'escalate') AS escalations,
            count(*) FILTER (WHERE action = 'verdict' AND is_blind) AS blind,
            count(DISTINCT reviewer_id) AS reviewers,
            percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) FILTER (WHERE action = 'verdict') AS seconds
        FROM reviews r
        WHERE r.project_id = :project AND r.id >= :since AND {review_leases.EFFECTIVE} GROUP BY 1
    )
    SELECT d::date AS day, coalesce(came, 0) AS came, coalesce(verdicts, 0) AS verdicts, coalesce(skips, 0) AS skips,
        coalesce(escalations, 0) AS escalations, coalesce(blind, 0) AS blind, coalesce(reviewers, 0) AS reviewers,
        seconds
    FROM generate_series(CAST(:first AS timestamp), (now() AT TIME ZONE 'UTC'), '1 day') AS d
    LEFT JOIN came ON came.day = d::date LEFT JOIN acts ON acts.day = d::date
    ORDER BY d DESC
    """
)


def days(session: orm.Session, project_id: uuid.UUID, n: int = DAYS) -> list[Day]:
    """The last n days, today first, quiet ones too."""
    first = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=n - 1)
    since = ids.first(dt.datetime.combine(first, dt.time(), dt.UTC))
    rows = session.execute(_DAYS, {"project": project_id, "since": since, "first": first})
    return [Day(*row) for row in rows]
