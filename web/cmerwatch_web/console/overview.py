"""The front page: CMER over a window, over time and by each dimension, always with n, interval and coverage."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fastapi
import sqlalchemy as sa
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, cmer_series, models
from cmerwatch.cmer_series import CmerRow
from cmerwatch_web import charts
from cmerwatch_web.console import auth, pages, text, views
from cmerwatch_web.console.views import View

router = fastapi.APIRouter(route_class=pages.Page)

TABLES = ("endpoint", "prompt_type", "customer", "model_version")
ROWS = 8  # of one table before "show all"
VERSIONS = 5  # drawn by colour; the rest share one
WIDER = (1, 2, 3, 4, 6, 8, 12, 24)  # buckets per point of the chart
WORTH_A_MARK = 0.01  # share of the outputs a version needs before its arrival is marked
ENOUGH = 50  # outputs per point aimed at: what alerts, too, ask for before they trust a rate

_COUNTED = (
    "scored",
    "unscorable",
    "invalid_image",
    "model_error",
    "undecided",
    "n",
    "flagged",
    "low",
    "low_unconfirmed",
    "waiting",
    "quarantined",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: a value of a dimension, its numbers, its whisker and where a click leads."""

    value: str
    row: CmerRow
    whisker: str
    link: str
    flagged_link: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Table:
    dimension: str
    lines: list[Line]
    hidden: int
    all_link: str
    clear_link: str | None


@dataclass(frozen=True, slots=True)
class Series:
    """The chart: bins, and the versions by which its bars are stacked; `legend` has those that occur, with colours."""

    bins: list[charts.Bin]
    versions: list[str]
    legend: list[tuple[int, str]]
    markers: list[charts.Marker]
    bin_seconds: int


@router.get("/")
def overview(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    view = aligned(views.read(request.query_params))
    rows = _rows(session, viewer, view)
    total = add(rows, view.start)
    context: dict[str, Any] = {
        "viewer": viewer,
        "view": view,
        "total": total,
        "checker": cmer_series.current_checker(session, viewer.project_id),
    }
    if not total.accepted and not view.filters and not has_events(session, viewer):
        return pages.render(request, "first_run.html", **context)
    shown_in_full = request.query_params.get("all")
    series = make_series(rows, view, _palette(session, viewer, view))
    return pages.render(
        request,
        "overview.html",
        **context,
        series=series,
        timeline=charts.timeline(series.bins, series.versions, series.markers, _summary(total, view)),
        quartiles=charts.quartiles(series.bins, _similarity_summary(total)),
        tables=[_table(session, viewer, view, name, shown_in_full == name) for name in TABLES],
    )


def aligned(view: View) -> View:
    """The window widened to whole buckets, so that the chart, the tables and the headline count the same events."""
    grain = 300 if view.end - view.start <= dt.timedelta(hours=2) else 3600
    end = cmer_series.floor(view.end, grain)
    end = end if end == view.end else end + dt.timedelta(seconds=grain)
    return replace(view, start=cmer_series.floor(view.start, grain), end=end)


def has_events(session: orm.Session, viewer: access.Principal) -> bool:
    found = sa.select(models.Event.id).where(models.Event.project_id == viewer.project_id).limit(1)
    return session.scalar(found) is not None


def add(rows: Iterable[CmerRow], start: dt.datetime) -> CmerRow:
    """The sum of rows: every column is additive, the histograms bin by bin."""
    rows = list(rows)
    return CmerRow(
        start=start,
        group={},
        **{name: sum(getattr(row, name) for row in rows) for name in _COUNTED},
        sim_hist=[sum(column) for column in zip(*(row.sim_hist for row in rows), strict=True)],
        score_hist=[sum(column) for column in zip(*(row.score_hist for row in rows), strict=True)],
    )


def _bucket(view: View) -> tuple[str, int]:
    span = view.end - view.start
    if span <= dt.timedelta(hours=3):
        return "5m", 300
    return ("1h", 3600) if span <= dt.timedelta(days=14) else ("1d", 86_400)


def _rows(session: orm.Session, viewer: access.Principal, view: View) -> list[CmerRow]:
    """By bucket and model version: one read for the headline, the line, the bars and the quartiles."""
    return cmer_series.query(
        session,
        viewer.project_id,
        view.start,
        view.end,
        bucket=_bucket(view)[0],
        group_by=("model_version",),
        filters=view.chosen,
    )


def _palette(session: orm.Session, viewer: access.Principal, view: View) -> list[str]:
    """The versions with a colour of their own, by name. Of the whole project, so that a filter changes no colour."""
    rows = _by(session, viewer, view.cleared(), "model_version")
    biggest = sorted(rows, key=lambda row: -row.accepted)[:VERSIONS]
    return sorted((row.group["model_version"] for row in biggest), key=lambda name: (not name, name))


def make_series(rows: Sequence[CmerRow], view: View, versions: Sequence[str]) -> Series:
    seconds = _bucket(view)[1]
    width = dt.timedelta(seconds=seconds * _wide(rows, view, seconds))
    bins, start = [], view.start
    while start < view.end:
        end = min(start + width, view.end)
        bins.append(_bin([row for row in rows if start <= row.start < end], start, end, versions))
        start = end
    names = [text.visible(name) or "(none)" for name in versions] + ["others"]
    legend = [(i, name) for i, name in enumerate(names) if any(one.volumes[i] for one in bins)]
    return Series(bins, names, legend, _markers(rows, versions, bins), int(width.total_seconds()))


def _wide(rows: Sequence[CmerRow], view: View, seconds: int) -> int:
    """Buckets per point: the fewest with which half of the points hold enough events to mean something."""
    counts: dict[int, int] = {}
    for row in rows:
        i = int((row.start - view.start).total_seconds()) // seconds
        counts[i] = counts.get(i, 0) + row.n
    most = max(1, int((view.end - view.start).total_seconds()) // seconds // 12)  # at least 12 points stay
    for wide in WIDER:
        points: dict[int, int] = {}
        for i, n in counts.items():
            points[i // wide] = points.get(i // wide, 0) + n
        enough = points and statistics.median(points.values()) >= ENOUGH
        if enough or wide >= most:
            return wide
    return WIDER[-1]


def _bin(rows: Sequence[CmerRow], start: dt.datetime, end: dt.datetime, versions: Sequence[str]) -> charts.Bin:
    total = add(rows, start) if rows else None
    by_version = [sum(row.accepted for row in rows if row.group["model_version"] == name) for name in versions]
    low, high = total.cmer.interval if total else (0.0, 1.0)
    return charts.Bin(
        start=start,
        end=end,
        n=total.n if total else 0,
        flagged=total.flagged if total else 0,
        low=low,
        high=high,
        volumes=(*by_version, sum(row.accepted for row in rows) - sum(by_version)),
        quartiles=total.sim_quartiles if total else None,
    )


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


def _by(session: orm.Session, viewer: access.Principal, view: View, dimension: str) -> list[CmerRow]:
    return cmer_series.query(session, viewer.project_id, view.start, view.end, "all", (dimension,), view.chosen)


def _table(session: orm.Session, viewer: access.Principal, view: View, dimension: str, in_full: bool) -> Table:
    """All values of the dimension within the rest of the slice, worst first: by the interval's lower end, because
    the rate alone would put one unlucky event of one on top."""
    around = view.widened(dimension)
    rows = _by(session, viewer, around, dimension)
    chosen = view.chosen.get(dimension)
    rows.sort(key=lambda row: (-row.cmer.interval[0] if row.n else 1.0, -(row.cmer.value or 0), -row.accepted))
    kept = rows if in_full else rows[:ROWS]
    if chosen is not None and not any(row.group[dimension] == chosen for row in kept):
        kept = [*kept, *(row for row in rows if row.group[dimension] == chosen)]
    top = _scale(kept)
    return Table(
        dimension,
        [_line(row, dimension, around, chosen, top) for row in kept],
        len(rows) - len(kept),
        view.link("/", all=dimension) + f"#{dimension}",
        around.link() if chosen is not None else None,
    )


def _scale(rows: Sequence[CmerRow]) -> float:
    """The right end of a table's whiskers: over every rate, and over the intervals of rows with enough events."""
    reach = [row.cmer.value or 0.0 for row in rows if row.n]
    reach += [row.cmer.interval[1] for row in rows if row.n >= charts.FEW]
    return max(0.02, *reach) if reach else 1.0


def _line(row: CmerRow, dimension: str, around: View, chosen: str | None, top: float) -> Line:
    value = row.group[dimension]
    narrowed = around.narrowed(dimension, value)
    return Line(
        value=value,
        row=row,
        whisker=charts.whisker(row.cmer.value, *row.cmer.interval, top),
        link=narrowed.link(),
        flagged_link=narrowed.link("/events", show="flagged"),
        is_chosen=value == chosen,
    )


def _summary(total: CmerRow, view: View) -> str:
    low, high = total.cmer.interval
    when = f"{view.start:%d %B %H:%M} to {view.end:%d %B %H:%M} UTC"
    return (
        f"CMER from {when}: {charts.percent(total.cmer.value)} overall, "
        f"95% interval {charts.percent(low)} to {charts.percent(high)}, n {total.n:,}. The table below has every point."
    )


def _similarity_summary(total: CmerRow) -> str:
    found = total.sim_quartiles
    if found is None:
        return "No similarity yet."
    return "Similarity over time; overall lower quartile {:.3f}, median {:.3f}, upper quartile {:.3f}.".format(*found)
