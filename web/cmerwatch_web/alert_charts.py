"""An alert as a picture: the rate its rule looked at, window after window, its interval, and the line. Numbers in,
markup out."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import markupsafe

from cmerwatch_web import charts
from cmerwatch_web.charts import PLOT


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rule saw at `at`: the rate of the window that ended then, None for an empty one."""

    at: dt.datetime
    n: int
    rate: float | None
    low: float
    high: float


def draw(
    readings: Sequence[Reading],
    line: float | None,
    min_n: int,
    marks: Sequence[dt.datetime],
    summary: str,
    height: int = 64,
    with_axes: bool = False,
) -> markupsafe.Markup:
    """`marks` are moments worth a vertical line: when it fired, when it ended. Readings of fewer than `min_n` are
    drawn thin, because the rule decides nothing on them."""
    top = _top(readings, line)
    room = 18 if with_axes else 0
    chart = charts._element(
        "svg", class_="alert-chart", width="100%", height=height + room, role="img", aria_label=summary
    )
    if with_axes:
        chart.extend(_axes(readings, top, height))
    plot = charts._plot(chart, 0, height)
    solid = [one.rate is not None and one.n >= min_n for one in readings]
    for run in charts._runs_of(solid):
        plot.append(_band([(i, readings[i]) for i in run], len(readings), top))
    for run in charts._runs_of([one.rate is not None for one in readings]):
        plot.append(_rate([(i, readings[i]) for i in run], len(readings), top, "rate few"))
    for run in charts._runs_of(solid):
        plot.append(_rate([(i, readings[i]) for i in run], len(readings), top, "rate"))
    if line is not None:
        y = height * (1 - min(line, top) / top)
        chart.append(charts._element("line", class_="alert-line", x1=0, x2="100%", y1=y, y2=y))
    for mark in marks:
        if readings and readings[0].at <= mark <= readings[-1].at:
            x = _x_of(mark, readings)
            chart.append(charts._element("line", class_="marker", x1=x, x2=x, y1=0, y2=height))
    return charts._markup(chart)


def _top(readings: Sequence[Reading], line: float | None) -> float:
    reach = max([one.rate or 0.0 for one in readings] + [(line or 0.0) * 1.25, 0.02])
    return next((top for top in charts.CEILINGS if top >= reach), 1.0)


def _axes(readings: Sequence[Reading], top: float, height: int) -> list[ET.Element]:
    made = []
    for share in (0.0, 0.5, 1.0):
        y = height * (1 - share)
        made.append(charts._element("line", class_="grid", x1=0, x2="100%", y1=y, y2=y))
        if share:
            made.append(charts._text(2, y + 11, charts.percent(top * share, 1 if top < 0.1 else 0), "axis"))
    if readings:
        ends = ((readings[0], "0%", "start"), (readings[-1], "100%", "end"))
        for one, x, anchor in ends:
            made.append(charts._text(x, height + 14, f"{one.at:%a %-d %b %H:%M}", "axis", anchor))
    return made


def _x(i: int, count: int) -> float:
    return PLOT * i / max(count - 1, 1)


def _x_of(mark: dt.datetime, readings: Sequence[Reading]) -> str:
    first, last = readings[0].at, readings[-1].at
    return f"{100 * ((mark - first) / (last - first) if last > first else 0):.2f}%"


def _y(value: float, top: float) -> float:
    return PLOT * (1 - min(value, top) / top)


def _band(run: Sequence[tuple[int, Reading]], count: int, top: float) -> ET.Element:
    up = [(_x(i, count), _y(one.high, top)) for i, one in run]
    back = [(_x(i, count), _y(one.low, top)) for i, one in reversed(run)]
    return charts._element("polygon", class_="band", points=charts._points([*up, *back]))


def _rate(run: Sequence[tuple[int, Reading]], count: int, top: float, kind: str) -> ET.Element:
    points = [(_x(i, count), _y(one.rate or 0.0, top)) for i, one in run]
    if len(points) == 1:
        points.append((points[0][0] + 4, points[0][1]))
    return charts._element("polyline", class_=kind, vector_effect="non-scaling-stroke", points=charts._points(points))


def sliding(
    counts: Sequence[tuple[dt.datetime, int, int]], start: dt.datetime, end: dt.datetime, window: dt.timedelta
) -> list[tuple[dt.datetime, int, int]]:
    """(end of the window, hits, of how many) for every 5 minutes in [start, end], of (bucket start, hits, of)."""
    step = dt.timedelta(minutes=5)
    at = {bucket: (hits, of) for bucket, hits, of in counts}
    first = start - window
    buckets = [first + i * step for i in range(int((end - first) / step))]
    hits = [0, *itertools.accumulate(at.get(bucket, (0, 0))[0] for bucket in buckets)]
    of = [0, *itertools.accumulate(at.get(bucket, (0, 0))[1] for bucket in buckets)]
    wide = int(window / step)
    return [(first + i * step, hits[i] - hits[i - wide], of[i] - of[i - wide]) for i in range(wide, len(buckets) + 1)]
