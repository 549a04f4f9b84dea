"""Day partitions of the tables split on UUIDv7 ids: made ahead, counted, never by a migration.

The one place in the core that commits: partition DDL runs on its own connection, because inside a caller's
transaction it would hold its lock on the parent until that transaction ends.
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from cmerwatch import ids
from cmerwatch.models import PARTITIONED

AHEAD_DAYS = 8


def ensure(engine: sa.Engine, first: dt.date, last: dt.date) -> int:
    """Make the partitions of each UTC day in [first, last]; returns how many were made. Safe to race and repeat."""
    made, day = 0, first
    while day <= last:
        with engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7263046)"))
            made += _make_day(connection, day, _existing(connection))
        day += dt.timedelta(days=1)
    return made


def ensure_ahead(engine: sa.Engine, days: int = AHEAD_DAYS) -> int:
    """Yesterday (a clock that jumps back), today and `days` more."""
    today = dt.datetime.now(dt.UTC).date()
    return ensure(engine, today - dt.timedelta(days=1), today + dt.timedelta(days=days))


def days_ahead(connection: sa.Connection) -> int:
    """How many days from today on have every partition; 0 means that ingest is about to refuse."""
    existing, day, count = _existing(connection), dt.datetime.now(dt.UTC).date(), 0
    while all(_name(table, day) in existing for table in PARTITIONED):
        count, day = count + 1, day + dt.timedelta(days=1)
    return count


def _make_day(connection: sa.Connection, day: dt.date, existing: set[str]) -> int:
    start = dt.datetime.combine(day, dt.time(), dt.UTC)
    low, high = ids.first(start), ids.first(start + dt.timedelta(days=1))
    made = 0
    for table in PARTITIONED:
        name = _name(table, day)
        if name not in existing:
            # Names come from our own table list and a date, bounds from UUIDs: nothing here is foreign text.
            # Made apart and attached: CREATE TABLE ... PARTITION OF would lock the parent against every reader, and
            # behind one slow query of the console all ingest would wait.
            connection.execute(sa.text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
            connection.execute(
                sa.text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")
            )
            made += 1
    return made


def _existing(connection: sa.Connection) -> set[str]:
    rows = connection.execute(
        sa.text("SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind = 'r'")
    )
    return set(rows.scalars())


def _name(table: str, day: dt.date) -> str:
    return f"{table}_p{day:%Y%m%d}"
