"""CMER over time and by dimension, read from rollups only: fast at any history, and always with n and coverage."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, intervals, models
from cmerwatch.cmer import Rate
from cmerwatch.shapes import COUNTS, DIMENSIONS

_GRAINS = {86_400: "1d", 3600: "1h", 300: "5m"}
# What depends on thresholds; everything else is the same under every policy version.
_DECIDED = ("n", "flagged", "low", "low_unconfirmed")
WIDTHS = {"5m": 300, "1h": 3600, "1d": 86_400, "all": 0}
DEFAULT_WINDOW = dt.timedelta(days=8)


@dataclass(frozen=True, slots=True)
class CmerRow:
    """One bucket of one group. cmer = flagged / n with its 95 % Wilson interval; uer = low / decided.

    Where fewer outputs than `fewest` count, cmer and uer are of none, and flagged_shown and sim_quartiles are None:
    that is how a row is given to whom single outputs are kept from.
    """

    start: dt.datetime
    group: dict[str, str]
    scored: int
    unscorable: int
    invalid_image: int
    model_error: int
    undecided: int
    n: int
    flagged: int
    low: int
    low_unconfirmed: int
    waiting: int
    quarantined: int
    sim_hist: list[int]  # from the first to the last bin that has something
    sim_first: int = 0  # the bin it begins with
    fewest: int = 0

    @property
    def cmer(self) -> Rate:
        return self._rate(self.flagged, self.n)

    @property
    def uer(self) -> Rate:
        return self._rate(self.low, self.decided)

    def _rate(self, successes: int, n: int) -> Rate:
        return Rate(successes, n) if n >= self.fewest else Rate(0, 0)

    @property
    def decided(self) -> int:
        return self.scored - self.undecided

    @property
    def flagged_shown(self) -> int | None:
        return self.flagged if self.n >= self.fewest else None

    @property
    def accepted(self) -> int:
        looked_at = self.scored + self.unscorable + self.invalid_image + self.model_error
        return looked_at + self.waiting + self.quarantined

    @property
    def coverage(self) -> float | None:
        """(accepted - waiting - quarantined - model_error) / accepted: the share that was looked at."""
        if not self.accepted:
            return None
        return 1 - (self.waiting + self.quarantined + self.model_error) / self.accepted

    @property
    def sim_quartiles(self) -> tuple[float, float, float] | None:
        if sum(self.sim_hist) < self.fewest:
            return None
        return intervals.sim_quartiles(self.sim_hist, self.sim_first)


def current_checker(session: orm.Session, project_id: uuid.UUID) -> models.Checker | None:
    """The checker that counted this project's newest bucket; None before the first check."""
    whole = models.Margin1h
    return session.scalar(
        sa.select(models.Checker)
        .join(whole, whole.checker_id == models.Checker.id)
        .where(whole.project_id == project_id, whole.dimension == "", ~whole.again)
        .order_by(whole.bucket.desc(), models.Checker.id.desc())
        .limit(1)
    )


def checker(session: orm.Session, project_id: uuid.UUID, checker_id: int) -> models.Checker | None:
    """None unless it has counted something of this project."""
    whole = models.Margin1h
    counted = sa.exists().where(whole.project_id == project_id, whole.dimension == "", whole.checker_id == checker_id)
    return session.scalar(sa.select(models.Checker).where(models.Checker.id == checker_id, counted))


@dataclass(frozen=True, slots=True)
class Seen:
    """A checker that counted something in a window: since which hour of it, and how many outputs."""

    checker: models.Checker
    first: dt.datetime
    outputs: int


def checkers(session: orm.Session, project_id: uuid.UUID, start: dt.datetime, end: dt.datetime) -> list[Seen]:
    """All that counted in the hours of [start, end), in the order they began: their rates mean different things, and
    are never added up."""
    whole, first = models.Margin1h, sa.func.min(models.Margin1h.bucket)
    counted = whole.scored + whole.unscorable + whole.invalid_image + whole.model_error
    rows = session.execute(
        sa.select(models.Checker, first, sa.func.sum(counted))
        .join(whole, whole.checker_id == models.Checker.id)
        .where(whole.project_id == project_id, whole.dimension == "", ~whole.again)
        .where(whole.bucket >= floor(start, 3600), whole.bucket < end)
        .group_by(models.Checker.id)
        .order_by(first, models.Checker.id)
    )
    return [Seen(checker, at, int(outputs)) for checker, at, outputs in rows]


def current_policy_version(session: orm.Session, project_id: uuid.UUID) -> int:
    latest = sa.select(sa.func.max(models.PolicyVersion.version)).where(models.PolicyVersion.project_id == project_id)
    return session.scalar(latest) or 1


def redecided_under(session: orm.Session, project_id: uuid.UUID) -> int | None:
    """The newest version under which all of history was decided again; None where it never was."""
    done = sa.select(sa.func.max(models.Redecision.policy_version))
    return session.scalar(
        done.where(models.Redecision.project_id == project_id, models.Redecision.finished_at.is_not(None))
    )


def query(
    session: orm.Session,
    project_id: uuid.UUID,
    start: dt.datetime,
    end: dt.datetime,
    bucket: str = "1h",
    group_by: Sequence[str] = (),
    filters: Mapping[str, str] | None = None,
    checker_id: int | None = None,
    policy_version: int | None = None,
    histograms: bool = True,
    most: int | None = None,
) -> list[CmerRow]:
    """Rows ordered by start and group; bucket "all" gives one row per group. Buckets are UTC by received_at.

    start is rounded down and end up to whole buckets of the finest table read (5 minutes; whole hours for "1h" and
    "1d"). Without a checker the current one is read. Without a policy version each output counts as it was decided when
    it was checked, under the version in force then, or as it was decided again since: a new version changes what
    follows and blanks nothing, and `policies.changes` says where a window holds more than one. With a version, only its
    own decisions count, and what it did not decide is `undecided`. Who needs no quartiles asks for no histograms, and
    gets empty ones. Of more than `most` rows only the first `most` are read.
    """
    filters = dict(filters or {})
    _require_known(bucket, group_by, filters)
    if checker_id is None:
        found = current_checker(session, project_id)
        checker_id = found.id if found else None
    finest = 3600 if bucket in ("1h", "1d") else 300
    again = policy_version or redecided_under(session, project_id)
    asked = _Asked(
        bucket=bucket,
        group_by=tuple(group_by),
        filters=tuple(filters),
        pieces=_pieces(floor(start, finest), _ceil(end, finest), WIDTHS[bucket] or 86_400),
        own="policy_version = :policy" if policy_version is not None else "policy_version >= :again" if again else "",
    )
    values: dict[str, Any] = {
        "project": project_id,
        "start": floor(start, finest),
        "end": _ceil(end, finest),
        "width": WIDTHS[bucket],
        "checker": checker_id,
        "policy": policy_version,
        "again": again,
        "most": most,
        **{f"dim_{name}": value for name, value in filters.items()},
        **asked.ends(),
    }
    if not asked.pieces:
        return []
    hist = _NO_HIST
    if histograms:
        hist = _merged(asked) if asked.is_stored else _bin_by_bin(session, values, asked)
    rows = session.execute(sa.text(_sql(asked, hist)), values).all()
    return [_row(tuple(row), asked.group_by) for row in rows]


Piece = tuple[dt.datetime, dt.datetime, int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What decides how a statement reads. `own`: which rows' decisions count, where not all do; then those made again
    are read beside the live ones. `pieces`: [from, to) in seconds of the grain to read there."""

    bucket: str
    group_by: tuple[str, ...]
    filters: tuple[str, ...]
    pieces: list[Piece]
    own: str

    def ends(self) -> dict[str, dt.datetime]:
        """The bound ends of each piece."""
        made: dict[str, dt.datetime] = {}
        for i, (low, high, _) in enumerate(self.pieces):
            made |= {f"f_{i}": low, f"t_{i}": high}
        return made

    @property
    def is_stored(self) -> bool:
        """Whether each row of the answer is one row of a table, but where policies or checkers changed meanwhile."""
        return self.margin is not None and {grain for _, _, grain in self.pieces} == {WIDTHS[self.bucket]}

    @property
    def margin(self) -> str | None:
        """The one dimension asked about, '' for none, None where rows by slice are needed."""
        names = {*self.group_by, *self.filters}
        return None if len(names) > 1 else "".join(names)


def _pieces(start: dt.datetime, end: dt.datetime, widest: int) -> list[Piece]:
    """The window in the widest buckets that fit: whole days, whole hours on either side, the rest in 5 minutes."""
    for seconds in _GRAINS:
        low, high = _ceil(start, seconds), floor(end, seconds)
        if seconds <= widest and low < high:
            around = _pieces(start, low, widest), _pieces(high, end, widest)
            return [*around[0], (low, high, seconds), *around[1]]
    return []


@dataclass(frozen=True, slots=True)
class _Hist:
    """How the histogram of a group is made, and where it begins, counted from 1."""

    made: str
    first: str


_NO_HIST = _Hist("CAST(NULL AS int[])", "1")


def _merged(asked: _Asked) -> _Hist:
    """The one there is, as it is. Of many rows, a sum for every bin takes a quarter of the time that this takes."""
    return _Hist(f"cmw_sum(sim_hist){' FILTER (WHERE is_live)' if asked.own else ''}", "array_lower(sim_hist, 1)")


def _bin_by_bin(session: orm.Session, values: dict[str, Any], asked: _Asked) -> _Hist:
    """A sum for each bin that any similarity of the project fell into: a fifth of all, so a fifth of the time."""
    whole = _Asked("all", (), (), _pieces(values["start"], values["end"], 86_400), "")
    statement = f"SELECT min(array_lower(sim_hist, 1)), max(array_upper(sim_hist, 1)) FROM {_source(whole)}"
    low, high = session.execute(sa.text(statement), values | whole.ends()).one()
    if low is None:
        return _NO_HIST
    sums = ", ".join(_sum(f"sim_hist[{at}]", asked.own) for at in range(low, high + 1))
    return _Hist(f"ARRAY[{sums}]::int[]", str(low))


def _require_known(bucket: str, group_by: Sequence[str], filters: Mapping[str, str]) -> None:
    if bucket not in WIDTHS:
        raise errors.Invalid(f"bucket is {bucket!r}; it must be one of 5m, 1h, 1d.", field="bucket")
    for field, names in (("group_by", group_by), ("filter", filters)):
        for name in names:
            if name not in DIMENSIONS:
                raise errors.Invalid(f"{name!r} is not a dimension; they are {', '.join(DIMENSIONS)}.", field=field)


def floor(at: dt.datetime, seconds: int) -> dt.datetime:
    """Start of the bucket of that many seconds that holds `at`."""
    whole = int(at.timestamp())
    return dt.datetime.fromtimestamp(whole - whole % seconds, dt.UTC)


def _ceil(at: dt.datetime, seconds: int) -> dt.datetime:
    low = floor(at, seconds)
    return low if low == at else low + dt.timedelta(seconds=seconds)


def _sql(asked: _Asked, hist: _Hist) -> str:
    """Built from our own column and table names only; every value is bound."""
    start = (
        "CAST(:start AS timestamptz)"
        if asked.bucket == "all"
        else "date_bin(make_interval(secs => :width), bucket, timestamptz '2000-01-01 00:00Z')"
    )
    dims = "".join(f", {name}" for name in asked.group_by)
    where = "".join(f" AND {name} = :dim_{name}" for name in asked.filters)
    keys = f"start{dims}"
    sums = ", ".join(f"{_sum(name, asked.own)}::int AS {name}" for name in COUNTS)
    return f"""
        WITH done AS (
            SELECT {start} AS start{dims}, {sums}, {hist.made} AS sim_hist
            FROM {_source(asked)}
            GROUP BY {keys}
        ), open AS (
            SELECT {start} AS start{dims}, count(*) FILTER (WHERE state <> 9)::int AS waiting,
                count(*) FILTER (WHERE state = 9)::int AS quarantined
            FROM work WHERE project_id = :project AND bucket >= :start AND bucket < :end{where}
            GROUP BY {keys}
        )
        SELECT {keys}, {", ".join(f"coalesce({name}, 0) AS {name}" for name in (*COUNTS, "waiting", "quarantined"))},
            coalesce(sim_hist, '{{}}'), coalesce({hist.first}, 1) - 1
        FROM done FULL JOIN open USING ({keys}) ORDER BY {keys} LIMIT :most
    """


def _source(asked: _Asked) -> str:
    """The rows to add up: margins where one dimension is asked about or none, as many as there are values; else rows by
    slice."""
    kinds = [("rollups", "true"), ("redecided", "false")] if asked.own else [("rollups", "true")]
    read = [_read(asked, kind, is_live, i) for kind, is_live in kinds for i in range(len(asked.pieces))]
    return f"({' UNION ALL '.join(read)}) AS counted"


def _read(asked: _Asked, kind: str, is_live: str, i: int) -> str:
    """One piece of the window, of the live rows or of those decided again under one version."""
    of, where = asked.margin, [f"project_id = :project AND bucket >= :f_{i} AND bucket < :t_{i}"]
    grain = _GRAINS[asked.pieces[i][2]]
    dims = ", ".join(asked.group_by)
    if of is None:
        table = f"{kind}_{grain}"
        where += [f"{name} = :dim_{name}" for name in asked.filters]
    else:
        table = f"margins_{grain}"
        where += [f"dimension = '{of}'", f"again = {'false' if is_live == 'true' else 'true'}"]
        where += [f"value = :dim_{name}" for name in asked.filters]
        dims = f"value AS {of}" if asked.group_by else ""
    where += ["(CAST(:checker AS int) IS NULL OR checker_id = :checker)"]
    where += [] if is_live == "true" else ["policy_version = :again"]
    columns = ", ".join(filter(None, ("bucket", dims, "policy_version", *COUNTS, "sim_hist", f"{is_live} AS is_live")))
    return f"SELECT {columns} FROM {table} WHERE {' AND '.join(where)}"


def _sum(column: str, own: str) -> str:
    """One column over all rows; where only some decisions count, what depends on thresholds over those rows alone, and
    everything else over the live ones, which hold each output once."""
    if not own:
        return f"sum({column})"
    if column == "undecided":
        return f"(sum(scored) FILTER (WHERE is_live) - coalesce(sum(scored - undecided) FILTER (WHERE {own}), 0))"
    which = own if column in _DECIDED else "is_live"
    return f"coalesce(sum({column}) FILTER (WHERE {which}), 0)"


def _row(row: Sequence[Any], group_by: Sequence[str]) -> CmerRow:
    """By position, as the statement selects: names would cost as much as the query for thousands of rows."""
    start, *values = row
    *counts, hist, first = values[len(group_by) :]
    counted = [*counts, [count or 0 for count in hist], first]
    return CmerRow(start, dict(zip(group_by, values, strict=False)), *counted)
