"""What other thresholds would have flagged, from counters alone: exact where the counters can say, bounds where not."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import cmer_series, intervals, policies
from cmerwatch.policies import Rule
from cmerwatch.shapes import DIMENSIONS, Slice

WINDOW = dt.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of n outputs with a known confidence, `before` were flagged; the new rules flag `least` to `most` of them."""

    n: int
    before: int
    least: int
    most: int

    @property
    def is_exact(self) -> bool:
        return self.least == self.most

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.n + other.n, self.before + other.before, self.least + other.least, self.most + other.most)


NOTHING = Estimate(0, 0, 0, 0)


def estimate(
    session: orm.Session,
    project_id: uuid.UUID,
    checker_id: int | None,
    rules: Sequence[Mapping[str, Any]],
    start: dt.datetime,
    end: dt.datetime,
) -> list[Estimate]:
    """One per rule, in the order given, over outputs as the overview counts them in [start, end): as they were decided
    when they were checked, or again since. Whole hours, so that the overview of the same window has the same numbers.

    Raises Invalid for rules that could not be saved.
    """
    new = policies.parse(0, rules)
    order = {policies.parse_match(rule): index for index, rule in enumerate(rules)}
    found = [NOTHING] * len(rules)
    again = cmer_series.redecided_under(session, project_id) or 0
    values = {"project": project_id, "checker": checker_id, "start": _hour(start), "end": end, "again": again}
    rows = session.execute(_ROWS, values).all()
    in_force = policies.at(session, {(project_id, row.policy_version) for row in rows})
    for row in rows:
        of = Slice(*(getattr(row, name) for name in DIMENSIONS))
        was = in_force.get((project_id, row.policy_version))
        rule = new.rule_for(of)
        index = order[rule.match]
        found[index] += compare(was.rule_for(of) if was else None, rule, row.n, row.flagged, row.score_hist)
    return found


def compare(was: Rule | None, will: Rule, n: int, flagged: int, score_hist: Sequence[int]) -> Estimate:
    """One slice. score_hist: the scores of its outputs over the old confidence threshold, in bins of a hundredth.

    Same confidence threshold: exact but for a threshold inside a bin. A higher one lets an unknown part of those go;
    a lower one adds some of the rest, whose scores were not kept. Of cosines nothing is kept beside the confidence.
    """
    if was is not None and (was.conf_threshold, was.sim_threshold, was.measure) == (
        will.conf_threshold,
        will.sim_threshold,
        will.measure,
    ):
        return Estimate(n, flagged, flagged, flagged)
    if was is None or will.measure != "score":
        return Estimate(n, flagged, 0, n)
    least, most = _below(score_hist, will.sim_threshold)
    if will.conf_threshold > was.conf_threshold:
        return Estimate(n, flagged, 0, most)
    if will.conf_threshold < was.conf_threshold:
        return Estimate(n, flagged, least, most + n - sum(score_hist))
    return Estimate(n, flagged, least, most)


def _below(score_hist: Sequence[int], threshold: float) -> tuple[int, int]:
    """How many lie below for certain, and how many may: a threshold inside a bin leaves that bin open."""
    at = round(threshold * intervals.SCORE_BINS, 6)
    whole = int(at)
    return sum(score_hist[:whole]), sum(score_hist[: whole + (at > whole)])


def _hour(at: dt.datetime) -> dt.datetime:
    return at.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)


_DIMS = ", ".join(DIMENSIONS)
_BINS = ", ".join(f"coalesce(sum(score_hist[{index}]), 0)" for index in range(1, intervals.SCORE_BINS + 1))
_READ = f"SELECT {_DIMS}, policy_version, n, flagged, score_hist FROM"
_WHERE = "WHERE project_id = :project AND checker_id = :checker AND bucket >= :start AND bucket < :end"
# Of history that was decided again the newer decisions, as cmer_series reads it: never both of one output.
_ROWS = sa.text(
    f"""
    SELECT {_DIMS}, policy_version, sum(n)::int AS n, sum(flagged)::int AS flagged, ARRAY[{_BINS}]::int[] AS score_hist
    FROM (
        {_READ} rollups_1h {_WHERE} AND policy_version >= :again
        UNION ALL {_READ} redecided_1h {_WHERE} AND policy_version = :again
    ) AS both_kinds
    GROUP BY {_DIMS}, policy_version HAVING sum(n) > 0
    """
)
