"""Rollup rows made into the points of a chart: sums, sensible widths, versions with colours of their own. Pure."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cmerwatch import cmer_series, intervals, models
from cmerwatch.cmer_series import CmerRow
from cmerwatch.shapes import COUNTS
from cmerwatch_web import charts
from cmerwatch_web.console import text
from cmerwatch_web.console.views import View

WIDER = (1, 2, 3, 4, 6, 8, 12, 24)  # buckets per point of the chart
ENOUGH = 50  # outputs per point aimed at: what alerts, too, ask for before they trust a rate
POINTS = 12  # that stay, however few outputs there are
WORTH_A_MARK = 0.01  # share of the outputs a version needs before its arrival is marked

COUNTED = (*COUNTS, "waiting", "quarantined")


@dataclass(frozen=True, slots=True)
class Series:
    """The chart: bins, and the versions by which its bars are stacked; `legend` has those that occur, with colours."""

    bins: list[charts.Bin]
    versions: list[str]
    legend: list[tuple[int, str]]
    markers: list[charts.Marker]
    bin_seconds: int


def bucket(view: View) -> tuple[str, int]:
    """The rollup width to read for a window, by name and in seconds: at most 336 of them."""
    span = view.end - view.start
    if span <= dt.timedelta(hours=3):
        return "5m", 300
    return ("1h", 3600) if span <= dt.timedelta(days=14) else ("1d", 86_400)


def add(rows: Iterable[CmerRow], start: dt.datetime) -> CmerRow:
    """The sum of rows: every column is additive, the histograms bin by bin."""
    rows = list(rows)
    return CmerRow(
        start=start,
        group={},
        **{name: sum(getattr(row, name) for row in rows) for name in COUNTED},
        sim_hist=intervals.add_up(((row.sim_first, row.sim_hist) for row in rows), intervals.SIM_BINS),
    )


def make(
    counts: Sequence[CmerRow], similarity: Sequence[CmerRow], view: View, versions: Sequence[str], fewest: int = 0
) -> Series:
    """`counts` are by bucket and model version, `similarity` by bucket with histograms; points of fewer outputs than
    `fewest` have no rate."""
    seconds = bucket(view)[1]
    width = dt.timedelta(seconds=seconds * _wide(counts, view, seconds))
    of_counts, of_similarity = _by_point(counts, view.start, width), _by_point(similarity, view.start, width)
    bins, start, i = [], view.start, 0
    while start < view.end:
        end = min(start + width, view.end)
        of_bin = of_counts.get(i, ())
        total = replace(add(of_bin, start), fewest=fewest)
        quartiles = replace(add(of_similarity.get(i, ()), start), fewest=fewest).sim_quartiles
        bins.append(_bin(total, end, quartiles, _volumes(of_bin, versions)))
        start, i = end, i + 1
    names = [text.visible(name) or "(none)" for name in versions] + ["others"]
    legend = [(i, name) for i, name in enumerate(names) if any(one.volumes[i] for one in bins)]
    return Series(bins, names, legend, _markers(counts, versions, bins), int(width.total_seconds()))


def _by_point(rows: Iterable[CmerRow], start: dt.datetime, width: dt.timedelta) -> dict[int, list[CmerRow]]:
    """By the number of the point; a day that begins before the window belongs to the first."""
    found: dict[int, list[CmerRow]] = {}
    for row in rows:
        found.setdefault(max(0, (row.start - start) // width), []).append(row)
    return found


def _wide(rows: Sequence[CmerRow], view: View, seconds: int) -> int:
    """Buckets per point: the fewest with which half of the points hold enough outputs to mean something."""
    counts: dict[int, int] = {}
    for row in rows:
        i = int((row.start - view.start).total_seconds()) // seconds
        counts[i] = counts.get(i, 0) + row.n
    most = max(1, int((view.end - view.start).total_seconds()) // seconds // POINTS)
    for wide in WIDER:
        points: dict[int, int] = {}
        for i, n in counts.items():
            points[i // wide] = points.get(i // wide, 0) + n
        enough = points and statistics.median(points.values()) >= ENOUGH
        if enough or wide >= most:
            return wide
    return WIDER[-1]


def _bin(
    total: CmerRow, end: dt.datetime, quartiles: tuple[float, float, float] | None, volumes: tuple[int, ...]
) -> charts.Bin:
    low, high = total.cmer.interval
    return charts.Bin(total.start, end, total.n, total.flagged_shown, low, high, volumes, quartiles)


def _volumes(rows: Sequence[CmerRow], versions: Sequence[str]) -> tuple[int, ...]:
    """What was accepted of each version, and of all others together."""
    by_version = [sum(row.accepted for row in rows if row.group["model_version"] == name) for name in versions]
    return (*by_version, sum(row.accepted for row in rows) - sum(by_version))


def _markers(rows: Sequence[CmerRow], versions: Sequence[str], bins: Sequence[charts.Bin]) -> list[charts.Marker]:
    """Where a version first shows up after others were there: the line stands before its first bar, and says when."""
    first = {name: [row.start for row in rows if row.group["model_version"] == name] for name in versions}
    accepted = {name: sum(row.accepted for row in rows if row.group["model_version"] == name) for name in versions}
    made = []
    for name, starts in first.items():
        if not starts or min(starts) == rows[0].start or accepted[name] < WORTH_A_MARK * sum(accepted.values()):
            continue
        at = max(one.start for one in bins if one.start <= min(starts))
        called = text.shorten(text.visible(name), 24) or "(none)"
        made.append(charts.Marker(at, f"{called} from {min(starts):%-d %b %H:%M}"))
    return made


def checker_markers(seen: Sequence[cmer_series.Seen], shown: models.Checker | None) -> list[charts.Marker]:
    """Where the checker that is shown took over, if another counted before it in this window."""
    own = next((one for one in seen if shown is not None and one.checker.id == shown.id), None)
    if own is None or not any(one.first < own.first for one in seen):
        return []
    called = text.shorten(text.visible(own.checker.label), 24)
    return [charts.Marker(own.first, f"checker {called} from {own.first:%-d %b %H:%M}")]


def policy_markers(changes: Iterable[models.PolicyVersion]) -> list[charts.Marker]:
    """Where thresholds changed: a step of the curve there may be the policy's, not the model's."""
    return [
        charts.Marker(one.created_at, f"policy {one.version} from {one.created_at:%-d %b %H:%M}") for one in changes
    ]
