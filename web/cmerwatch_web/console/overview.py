"""The front page: CMER over a window, over time and by each dimension, always with n, interval and coverage."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import fastapi
import sqlalchemy as sa
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, blindness, cmer_series, errors, models, policies, redecide
from cmerwatch.cmer_series import CmerRow
from cmerwatch_web import charts
from cmerwatch_web.console import auth, pages, series, views
from cmerwatch_web.console.views import View

router = fastapi.APIRouter(route_class=pages.Page)

TABLES = ("endpoint", "prompt_type", "customer", "model_version")
ROWS = 8  # of one table before "show all"
VERSIONS = 5  # drawn in a colour of their own; the rest share one


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


@router.get("/")
def overview(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    view = aligned(views.read(request.query_params))
    in_use = cmer_series.current_checker(session, viewer.project_id)
    checker = in_use if view.checker is None else _checker(session, viewer, view.checker)
    read = Reader(session, viewer.project_id, checker.id if checker else None)
    bucket = series.bucket(view)[0]
    counts = read.counts(view, bucket, "model_version")
    fewest = blindness.fewest(session, viewer)
    total = replace(series.add(counts, view.start), fewest=fewest)
    context: dict[str, Any] = {
        "viewer": viewer,
        "view": view,
        "total": total,
        "checker": checker,
        "in_use": in_use,
        "fewest": fewest,
        "misfit": policies.misfit_now(session, viewer.project_id, checker),
    }
    if not total.accepted and not view.filters and not has_events(session, viewer):
        return pages.render(request, "first_run.html", **context)
    similarity = read.rows(view, bucket)
    quartiles = replace(series.add(similarity, view.start), fewest=fewest).sim_quartiles
    made = series.make(counts, similarity, view, _palette(read, view, counts), fewest)
    changes = policies.changes(session, viewer.project_id, view.start, view.end)
    seen = cmer_series.checkers(session, viewer.project_id, view.start, view.end)
    markers = [*made.markers, *series.policy_markers(changes), *series.checker_markers(seen, checker)]
    shown_in_full = request.query_params.get("all")
    return pages.render(
        request,
        "overview.html",
        **context,
        series=made,
        policy_changes=changes,
        is_decided_again=bool(changes) and _is_decided_again(session, viewer, changes[-1].version),
        others=[one for one in seen if checker and one.checker.id != checker.id],
        timeline=charts.timeline(made.bins, made.versions, markers, _summary(total, view)),
        quartiles=quartiles,
        quartiles_chart=charts.quartiles(made.bins, _similarity_summary(quartiles)),
        tables=[_table(read, view, name, shown_in_full == name, fewest) for name in TABLES],
    )


def _is_decided_again(session: orm.Session, viewer: access.Principal, version: int) -> bool:
    """Whether all of history counts as this version decides: then its beginning is no step in the chart."""
    done = redecide.progress(session, viewer.project_id).get(version)
    return done is not None and done.finished_at is not None


def _checker(session: orm.Session, viewer: access.Principal, checker_id: int) -> models.Checker:
    """The one named in the address, if it ever checked anything of this project."""
    found = cmer_series.checker(session, viewer.project_id, checker_id)
    if found is None:
        raise errors.Invalid("`checker` names none that ever checked here.", field="checker")
    return found


def aligned(view: View) -> View:
    """The window widened to whole buckets, so that the chart, the tables and the headline count the same events."""
    grain = 300 if view.end - view.start <= dt.timedelta(hours=2) else 3600
    end = cmer_series.floor(view.end, grain)
    end = end if end == view.end else end + dt.timedelta(seconds=grain)
    return replace(view, start=cmer_series.floor(view.start, grain), end=end)


def has_events(session: orm.Session, viewer: access.Principal) -> bool:
    found = sa.select(models.Event.id).where(models.Event.project_id == viewer.project_id).limit(1)
    return session.scalar(found) is not None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the same project and checker for every chart and table of the page."""

    session: orm.Session
    project_id: uuid.UUID
    checker_id: int | None

    def counts(self, view: View, bucket: str, *by: str) -> list[CmerRow]:
        """Counts only: the histograms, which cost most, are read once, for the quartiles."""
        return self.rows(view, bucket, *by, histograms=False)

    def rows(self, view: View, bucket: str, *by: str, histograms: bool = True) -> list[CmerRow]:
        return cmer_series.query(
            self.session,
            self.project_id,
            view.start,
            view.end,
            bucket,
            by,
            view.chosen,
            checker_id=self.checker_id,
            histograms=histograms,
        )


def _palette(read: Reader, view: View, counts: Sequence[CmerRow]) -> list[str]:
    """The versions with a colour of their own, by name. Of the whole project, so that a filter changes no colour;
    `counts` are those of the page, by version."""
    rows = read.counts(view.cleared(), "all", "model_version") if view.filters else counts
    accepted: Counter[str] = Counter()
    for row in rows:
        accepted[row.group["model_version"]] += row.accepted
    biggest = sorted(accepted, key=lambda name: (-accepted[name], name))[:VERSIONS]
    return sorted(biggest, key=lambda name: (not name, name))


def _table(read: Reader, view: View, dimension: str, in_full: bool, fewest: int) -> Table:
    """All values of the dimension within the rest of the slice, worst first: by the interval's lower end, and those of
    few outputs after the others, because one unlucky output of one has a lower end of 21 %."""
    around = view.widened(dimension)
    rows = [replace(row, fewest=fewest) for row in read.counts(around, "all", dimension)]
    chosen = view.chosen.get(dimension)
    rows.sort(key=_place)
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


def _place(row: CmerRow) -> tuple[bool, float, float, int]:
    """By what the reader is shown: the order must not tell a rate that is kept."""
    worst = -row.cmer.interval[0] if row.cmer.n else 1.0
    return row.n < charts.FEW, worst, -(row.cmer.value or 0), -row.accepted


def _scale(rows: Sequence[CmerRow]) -> float:
    """The right end of a table's whiskers: over every rate, and over the intervals of rows with enough events."""
    reach = [row.cmer.value or 0.0 for row in rows if row.cmer.n]
    reach += [row.cmer.interval[1] for row in rows if row.cmer.n >= charts.FEW]
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
    if not total.cmer.n:
        return f"CMER from {when}: no rate to show, n {total.n:,}. The table below has every point."
    return (
        f"CMER from {when}: {charts.percent(total.cmer.value)} overall, "
        f"95% interval {charts.percent(low)} to {charts.percent(high)}, n {total.n:,}. The table below has every point."
    )


def _similarity_summary(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "No similarity to show."
    return "Similarity over time; overall lower quartile {:.3f}, median {:.3f}, upper quartile {:.3f}.".format(*found)
