"""When a rule would have fired over the stored history: the same judging and the same states, before it is saved.

What the past looked like then is not kept: outputs checked late count here as if they had been checked at once.
"""

from __future__ import annotations

import bisect
import datetime as dt
import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_judging, alert_rules, cmer_series, models
from cmerwatch.alert_judging import Judgement
from cmerwatch.alert_numbers import DAYS_BACK, WEEK, Counts, counted
from cmerwatch.alert_rules import RuleFields
from cmerwatch.alert_states import Standing, next_state
from cmerwatch.shapes import BUCKET_SECONDS, DIMENSIONS

DAYS = 7
MOST_SLICES = 40  # of one scope, the biggest: a preview must answer while somebody waits
BUCKET = dt.timedelta(seconds=BUCKET_SECONDS)
_COLUMNS = ("accepted", "looked_at", "decided", "of", "hits")


@dataclass(frozen=True, slots=True)
class WouldFire:
    slice: dict[str, str]
    fired_at: dt.datetime
    ended_at: dt.datetime | None  # None: it would fire now


@dataclass(frozen=True, slots=True)
class Backtest:
    """`left_out` counts the smaller slices that were not looked at."""

    start: dt.datetime
    end: dt.datetime
    episodes: list[WouldFire]
    slices: int
    left_out: int


def run(session: orm.Session, project_id: uuid.UUID, fields: RuleFields, now: dt.datetime | None = None) -> Backtest:
    """Over the last seven days. Raises Invalid for fields that make no rule."""
    rule = models.AlertRule()
    alert_rules.write(rule, alert_rules.checked(fields))
    end = cmer_series.floor(now or dt.datetime.now(dt.UTC), BUCKET_SECONDS)
    reader = _Reader(session, project_id, rule, end - DAYS * dt.timedelta(days=1), end)
    whole = reader.line({})
    episodes: list[WouldFire] = []
    slices, left_out = reader.slices()
    for of in slices:
        own = whole if of == dict(rule.match) else reader.line(of)
        episodes += _episodes(rule, of, own, whole, reader.start, end)
    episodes.sort(key=lambda one: one.fired_at, reverse=True)
    return Backtest(reader.start, end, episodes, len(slices), left_out)


class _Line:
    """One slice's counts over time as running sums, so that any window is two look-ups."""

    def __init__(self, first: dt.datetime, buckets: int, rows: Mapping[dt.datetime, Any], metric: str) -> None:
        self.first, self.metric = first, metric
        self.sums = {name: [0, *itertools.accumulate(self._column(rows, name, buckets))] for name in _COLUMNS}
        self.busy = [i for i in range(buckets) if self.sums["decided"][i + 1] > self.sums["decided"][i]]

    def _column(self, rows: Mapping[dt.datetime, Any], name: str, buckets: int) -> list[int]:
        column = [0] * buckets
        for at, row in rows.items():
            column[int((at - self.first) / BUCKET)] = getattr(row, name)
        return column

    def between(self, start: dt.datetime, end: dt.datetime) -> Counts:
        """[start, end) as counts that judge alike: what is of no kind that matters stands as unscorable."""
        i, j = self._index(start), self._index(end)
        accepted, looked_at, _, of, hits = (self.sums[name][j] - self.sums[name][i] for name in _COLUMNS)
        busy = bisect.bisect_left(self.busy, i)
        first = self.first + self.busy[busy] * BUCKET if busy < len(self.busy) and self.busy[busy] < j else None
        told = {"n": of, "flagged": hits} if self.metric == "cmer" else {"low": hits}
        return Counts(scored=of, unscorable=looked_at - of, model_error=accepted - looked_at, first=first, **told)

    def _index(self, at: dt.datetime) -> int:
        return min(max(0, int((at - self.first) / BUCKET)), len(self.sums["accepted"]) - 1)


def _episodes(
    rule: models.AlertRule, of: dict[str, str], own: _Line, whole: _Line, start: dt.datetime, end: dt.datetime
) -> list[WouldFire]:
    hold, keep = (dt.timedelta(seconds=each) for each in (rule.for_seconds, rule.keep_firing_seconds))
    standing, evidence, found = Standing("ok", start), dict[str, Any](), list[WouldFire]()
    at = start
    while at < end:
        at += BUCKET
        judged = _judge(rule, own, whole, at, evidence if standing.is_open else None)
        before, standing = standing, next_state(standing, judged.verdict, at, hold, keep)
        evidence = judged.evidence
        if standing.is_open and not before.is_open:
            found.append(WouldFire(of, at, None))
        elif before.is_open and not standing.is_open:
            found[-1] = WouldFire(of, found[-1].fired_at, at)
    return found


def _judge(rule: models.AlertRule, own: _Line, whole: _Line, at: dt.datetime, kept: dict[str, Any] | None) -> Judgement:
    """`kept`: the evidence of the reading before while it fires, else None."""
    start = at - dt.timedelta(seconds=rule.window_seconds)
    window = own.between(start, at)
    hour = cmer_series.floor(start, 3600)
    if rule.kind == "no_data":
        days = [dt.timedelta(days=day) for day in range(1, DAYS_BACK + 1)]
        return alert_judging.judge_no_data(
            rule,
            window,
            own.between(hour - WEEK, hour),
            lambda: [own.between(start - back, at - back) for back in days],
            kept is not None,
        )
    line = alert_judging.kept_line(kept or {})
    if line is None and window.rate(rule.metric)[1] >= rule.min_n:
        usual, project = (one.between(hour - WEEK, hour) for one in (own, whole))
        line = alert_judging.line_of(rule, usual, project, start)
    return alert_judging.judge(rule, window, line)


class _Reader:
    """Reads what the rule looks at, one statement per slice's dimension."""

    def __init__(
        self, session: orm.Session, project_id: uuid.UUID, rule: models.AlertRule, start: dt.datetime, end: dt.datetime
    ) -> None:
        self.session, self.rule, self.start, self.end = session, rule, start, end
        back = dt.timedelta(days=DAYS_BACK) if rule.kind == "no_data" else WEEK
        self.first = cmer_series.floor(start - dt.timedelta(seconds=rule.window_seconds) - back, 3600)
        checker = cmer_series.current_checker(session, project_id)
        self.values = {
            "project": project_id,
            "checker": checker.id if checker else None,
            "policy": cmer_series.current_policy_version(session, project_id),
            "start": self.first,
            "end": end,
            "most": MOST_SLICES,
        }

    def slices(self) -> tuple[list[dict[str, str]], int]:
        """The biggest values of each scope, and how many were left out."""
        found: list[dict[str, str]] = []
        left_out = 0
        for scope in self.rule.scopes:
            if scope == "project" or scope in self.rule.match:
                found += [dict(self.rule.match)] if dict(self.rule.match) not in found else []
                continue
            rows = self._execute(_biggest(scope, tuple(self.rule.match)), self.rule.match).all()
            found += [{**self.rule.match, scope: row.value} for row in rows]
            left_out += max(0, rows[0].values - len(rows)) if rows else 0
        return found, left_out

    def line(self, of: Mapping[str, str]) -> _Line:
        match = {**self.rule.match, **of}
        rows = {row.bucket: row for row in self._execute(_over_time(tuple(match), self.rule.metric), match)}
        return _Line(self.first, int((self.end - self.first) / BUCKET), rows, self.rule.metric)

    def _execute(self, statement: sa.TextClause, match: Mapping[str, str]) -> sa.Result[Any]:
        wanted = {f"dim_{name}": value for name, value in match.items()}
        return self.session.execute(statement, self.values | wanted)


_RANGE = "project_id = :project AND bucket >= :start AND bucket < :end AND checker_id = :checker"
_LOOKED_AT = "sum(scored + unscorable + invalid_image)"
_OWN = "FILTER (WHERE policy_version = :policy)"
_RATES = {
    "cmer": f"coalesce(sum(n - late_n) {_OWN}, 0)::int AS of, coalesce(sum(flagged - late_flagged) {_OWN}, 0)::int",
    "uer": f"coalesce(sum(scored - undecided) {_OWN}, 0)::int AS of, coalesce(sum(low) {_OWN}, 0)::int",
}


def _where(match: tuple[str, ...]) -> str:
    """Of our own column names only; every value is bound."""
    return _RANGE + "".join(f" AND {name} = :dim_{name}" for name in DIMENSIONS if name in match)


def _over_time(match: tuple[str, ...], metric: str) -> sa.TextClause:
    return sa.text(
        f"SELECT bucket, {_LOOKED_AT}::int AS looked_at, ({_LOOKED_AT} + sum(model_error))::int AS accepted, "
        f"coalesce(sum(scored - undecided) {_OWN}, 0)::int AS decided, {_RATES[metric]} AS hits "
        f"FROM {counted('rollups_5m')} WHERE {_where(match)} GROUP BY bucket"
    )


def _biggest(scope: str, match: tuple[str, ...]) -> sa.TextClause:
    return sa.text(
        f"SELECT {scope} AS value, count(*) OVER ()::int AS values FROM rollups_1h "
        f"WHERE {_where(match)} AND {scope} <> '' GROUP BY {scope} ORDER BY sum(scored) DESC, {scope} LIMIT :most"
    )
