"""What alert rules are judged on: counts per slice of a window and of the week before it, each read once for all rules.

Cells are read at the grain of the rollup key and added up here, so that one statement serves every rule of a window,
every scope and the sub-slices that a message names. Late events are left out of rates: a backlog of yesterday that
arrives now says nothing of now.
"""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import cmer_series
from cmerwatch.shapes import DIMENSIONS, Slice

WEEK = dt.timedelta(days=7)
DAYS_BACK = 14  # two weeks: with one, a slice that is new could not be told from one that rests at weekends

_READ = ("scored", "unscorable", "invalid_image", "model_error", "undecided", "outdated", "n", "flagged", "low")
_OPEN = ("waiting", "quarantined")


@dataclass(slots=True)
class Counts:
    """Additive. n and flagged are without late events; low has them, as rollups keep no late column for it."""

    scored: int = 0
    unscorable: int = 0
    invalid_image: int = 0
    model_error: int = 0
    undecided: int = 0
    outdated: int = 0  # decided when checked, but by a policy version that is not in force any more
    n: int = 0
    flagged: int = 0
    low: int = 0
    waiting: int = 0
    quarantined: int = 0
    first: dt.datetime | None = None  # start of the first bucket with a decision of the version in force
    version: int = 0  # of the policy in force; 0 where nothing was counted
    outdated_by: int = 0  # the newest other version that decided any; 0 where none did

    def add(self, other: Counts) -> None:
        for name in (*_READ, *_OPEN):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.version, self.outdated_by = max(self.version, other.version), max(self.outdated_by, other.outdated_by)
        self.first = min((at for at in (self.first, other.first) if at is not None), default=None)

    @property
    def accepted(self) -> int:
        return self.looked_at + self.model_error + self.waiting + self.quarantined

    @property
    def looked_at(self) -> int:
        return self.scored + self.unscorable + self.invalid_image

    @property
    def coverage(self) -> float | None:
        return self.looked_at / self.accepted if self.accepted else None

    def rate(self, metric: str) -> tuple[int, int]:
        """(hits, of how many): flagged of n for cmer, low of all decided for uer."""
        return (self.flagged, self.n) if metric == "cmer" else (self.low, self.scored - self.undecided)


@dataclass(frozen=True)
class Cells:
    """Counts per whole slice: the finest there is, from which every wider slice is added up.

    What was added up or parted once is kept: each of a thousand slices asks for its own part and for the whole, and
    going through all cells every time took nine seconds per bucket.
    """

    cells: Mapping[Slice, Counts]
    _parts: dict[str, dict[str, Cells]] = field(default_factory=dict, repr=False, compare=False)

    def within(self, match: Mapping[str, str]) -> Cells:
        found = self
        for name, value in match.items():
            found = found._parted(name).get(value, NONE)
        return found

    @functools.cached_property
    def total(self) -> Counts:
        """Not to be changed."""
        return _sum(self.cells.values())

    def by(self, dimension: str) -> dict[str, Counts]:
        return {value: part.total for value, part in self._parted(dimension).items()}

    def _parted(self, dimension: str) -> dict[str, Cells]:
        if dimension not in self._parts:
            at = DIMENSIONS.index(dimension)
            found: dict[str, dict[Slice, Counts]] = {}
            for key, own in self.cells.items():
                found.setdefault(key[at], {})[key] = own
            self._parts[dimension] = {value: Cells(cells) for value, cells in found.items()}
        return self._parts[dimension]


NONE = Cells({})


def _sum(counts: Any) -> Counts:
    made = Counts()
    for one in counts:
        made.add(one)
    return made


@dataclass(slots=True)
class Numbers:
    """Reads each window once; for one evaluation, in one transaction."""

    session: orm.Session
    project_id: uuid.UUID
    _windows: dict[tuple[dt.datetime, dt.datetime], Cells] = field(default_factory=dict)
    _weeks: dict[dt.datetime, Cells] = field(default_factory=dict)
    _same_hours: dict[tuple[dt.datetime, dt.datetime], list[Cells]] = field(default_factory=dict)
    _judged_by: tuple[int | None, int] | None = None

    @property
    def judged_by(self) -> tuple[int | None, int]:
        """The checker and the policy version in force: rates of others would mean something else."""
        if self._judged_by is None:
            checker = cmer_series.current_checker(self.session, self.project_id)
            version = cmer_series.current_policy_version(self.session, self.project_id)
            self._judged_by = (checker.id if checker else None, version)
        return self._judged_by

    def window(self, start: dt.datetime, end: dt.datetime) -> Cells:
        """[start, end), whole 5-minute buckets, with the work that waits in them."""
        if (start, end) not in self._windows:
            found = self._rows(_cells("rollups_5m"), start, end)
            for row in self._execute(_WORK, start, end):
                own = found.setdefault(_slice(row), Counts())
                own.waiting, own.quarantined = row.waiting, row.quarantined
            self._windows[start, end] = Cells(found)
        return self._windows[start, end]

    def week_before(self, start: dt.datetime) -> Cells:
        """The seven days up to the last whole hour before `start`: what is usual."""
        end = cmer_series.floor(start, 3600)
        if end not in self._weeks:
            self._weeks[end] = Cells(self._rows(_cells("rollups_1h"), end - WEEK, end))
        return self._weeks[end]

    def same_hours(self, start: dt.datetime, end: dt.datetime) -> list[Cells]:
        """The same window 1, 2, ... 14 days earlier."""
        if (start, end) not in self._same_hours:
            found: list[dict[Slice, Counts]] = [{} for _ in range(DAYS_BACK)]
            for row in self._execute(_SAME_HOURS, start, end):
                found[row.day - 1][_slice(row)] = _counts(row)
            self._same_hours[start, end] = [Cells(cells) for cells in found]
        return self._same_hours[start, end]

    def _rows(self, statement: sa.TextClause, start: dt.datetime, end: dt.datetime) -> dict[Slice, Counts]:
        return {_slice(row): _counts(row) for row in self._execute(statement, start, end)}

    def _execute(self, statement: sa.TextClause, start: dt.datetime, end: dt.datetime) -> sa.Result[Any]:
        checker, policy = self.judged_by
        values = {"project": self.project_id, "start": start, "end": end, "checker": checker, "policy": policy}
        return self.session.execute(statement, values)


def _slice(row: sa.Row[Any]) -> Slice:
    return Slice(*(getattr(row, name) for name in DIMENSIONS))


def _counts(row: sa.Row[Any]) -> Counts:
    named = {name: getattr(row, name) for name in (*_READ, "first", "version", "outdated_by")}
    return Counts(**named)


_KEYS = ", ".join(DIMENSIONS)
# What depends on thresholds is counted of the policy version in force only: what another version decided tells
# nothing of this one, but it was looked at.
_OWN = "FILTER (WHERE policy_version = :policy)"
_SEEN = ", ".join(f"sum({name})::int AS {name}" for name in ("scored", "unscorable", "invalid_image", "model_error"))


_SUMS = (
    f"{_KEYS}, min(bucket) FILTER (WHERE policy_version = :policy AND scored > undecided) AS first, {_SEEN}, "
    f"(sum(scored) - coalesce(sum(scored - undecided) {_OWN}, 0))::int AS undecided, "
    "coalesce(sum(scored - undecided) FILTER (WHERE policy_version <> :policy), 0)::int AS outdated, "
    f"coalesce(sum(n - late_n) {_OWN}, 0)::int AS n, "
    f"coalesce(sum(flagged - late_flagged) {_OWN}, 0)::int AS flagged, "
    f"coalesce(sum(low) {_OWN}, 0)::int AS low, CAST(:policy AS int) AS version, "
    "coalesce(max(policy_version) FILTER (WHERE policy_version <> :policy AND scored > undecided), 0) AS outdated_by"
)


_COUNTED = "n, late_n, flagged, late_flagged, low"


def counted(table: str) -> str:
    """The rollups and what the version in force decided again, which brings its decisions only: their outputs are
    counted in the rollups already, as `undecided` by this version."""
    key = f"project_id, bucket, {_KEYS}, checker_id, policy_version"
    return (
        f"(SELECT {key}, scored, unscorable, invalid_image, model_error, undecided, {_COUNTED} FROM {table} "
        f"UNION ALL SELECT {key}, 0, 0, 0, 0, undecided - scored, {_COUNTED} "
        f"FROM {table.replace('rollups', 'redecided')} WHERE policy_version = :policy) AS both_kinds"
    )


@functools.cache
def _cells(table: str) -> sa.TextClause:
    return sa.text(
        f"SELECT {_SUMS} FROM {counted(table)} WHERE project_id = :project AND bucket >= :start AND bucket < :end "
        f"AND checker_id = :checker GROUP BY {_KEYS}"
    )


# LATERAL, so that each day is one look into the index; joined plainly, all of the rollups were read.
_SAME_HOURS = sa.text(
    f"SELECT day, own.* FROM generate_series(1, {DAYS_BACK}) AS day CROSS JOIN LATERAL ("
    f"SELECT {_SUMS} FROM {counted('rollups_5m')} WHERE project_id = :project "
    "AND bucket >= CAST(:start AS timestamptz) - day * interval '1 day' "
    "AND bucket < CAST(:end AS timestamptz) - day * interval '1 day' "
    f"AND checker_id = :checker GROUP BY {_KEYS}) AS own"
)


_WORK = sa.text(
    f"SELECT {_KEYS}, count(*) FILTER (WHERE state <> 9)::int AS waiting, "
    "count(*) FILTER (WHERE state = 9)::int AS quarantined "
    f"FROM work WHERE project_id = :project AND bucket >= :start AND bucket < :end GROUP BY {_KEYS}"
)
