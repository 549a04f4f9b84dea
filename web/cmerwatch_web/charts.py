"""Charts as SVG text: numbers in, markup out, no database, no request, no script.

Widths are percentages and heights pixels, so that one chart fits a phone and a wide screen without scaled text; only
the shapes inside a `plot` are stretched. Looks come from classes in app.css, because the pages' CSP allows no inline
style. Everything is built as an ElementTree, which escapes names and values; `_markup` is the one place that marks
text as safe.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import markupsafe

PLOT = 1000.0  # units of a stretched plot: more than any screen has pixels per series, so rounding never shows
CEILINGS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
FEW = 30  # below this a point is drawn hollow: its interval is wider than 30 percentage points at worst
VERSION_COLOURS = 6
MARKER_GAP = 20  # percent of the width between two markers' names; closer ones keep their line only


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of the timeline: counts, the 95 % interval of flagged / n, volume by model version, quartiles.

    `flagged` is None where it is kept from the reader, and then there is no rate either.
    """

    start: dt.datetime
    end: dt.datetime
    n: int
    flagged: int | None
    low: float
    high: float
    volumes: tuple[int, ...] = ()
    quartiles: tuple[float, float, float] | None = None

    @property
    def rate(self) -> float | None:
        return self.flagged / self.n if self.n and self.flagged is not None else None


@dataclass(frozen=True, slots=True)
class Marker:
    """A moment worth a vertical line, such as the first output of a new model version."""

    at: dt.datetime
    label: str


def percent(value: float | None, digits: int = 1) -> str:
    """`0.048` -> `4.8%`; a share that rounds to zero or to all without being so keeps its sign: `<0.1%`, `>99.9%`."""
    if value is None:
        return "–"
    smallest = 10.0**-digits
    shown = round(value * 100, digits)
    if value > 0 and shown == 0:
        return f"<{smallest:.{digits}f}%"
    if value < 1 and shown == 100:
        return f">{100 - smallest:.{digits}f}%"
    return f"{shown:.{digits}f}%" if value not in (0, 1) else f"{shown:.0f}%"


def ceiling(bins: Iterable[Bin]) -> float:
    """The top of the rate axis: the first round number over every rate that means something and most intervals.

    Points of few outputs, and the widest tenth of the intervals, may leave the plot: one bucket whose only output was
    flagged must not flatten the rest.
    """
    known = [one for one in bins if one.rate is not None]
    if not known:
        return CEILINGS[2]
    solid = [one for one in known if one.n >= FEW] or known
    highs = sorted(one.high for one in solid)
    reach = max([highs[int(0.9 * (len(highs) - 1))], *(one.rate or 0.0 for one in solid)])
    return next((top for top in CEILINGS if top >= reach), 1.0)


# --- the timeline -------------------------------------------------------------------------------

_TOP, _RATE_HEIGHT, _BARS_TOP, _BARS_HEIGHT, _HEIGHT = 24, 166, 212, 42, 274


def timeline(
    bins: Sequence[Bin], versions: Sequence[str], markers: Sequence[Marker], summary: str
) -> markupsafe.Markup:
    """CMER with its interval band above, outputs per bucket stacked by model version beneath.

    `summary` is what a reader who cannot see the chart is told; the numbers stand in the page's table.
    """
    top = ceiling(bins)
    chart = _element("svg", class_="timeline", width="100%", height=_HEIGHT, role="img", aria_label=summary)
    chart.extend(_rate_axis(top))
    plot = _plot(chart, _TOP, _RATE_HEIGHT)
    plot.extend(_band(bins, top))
    plot.extend(_lines(bins, top))
    chart.extend(_dots(bins, top))
    chart.extend(_bars(bins, len(versions)))
    chart.extend(_marker_lines(bins, markers))
    chart.extend(_time_axis(bins))
    chart.extend(_hover(bins, versions))
    return _markup(chart)


def _rate_axis(top: float) -> list[ET.Element]:
    made = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + _RATE_HEIGHT * (1 - share)
        made.append(_element("line", class_="grid", x1=0, x2="100%", y1=y, y2=y))
        digits = 1 if (top * share * 100) % 1 else 0
        made.append(_text(2, y - 4, percent(top * share, digits) if share else "0%", "axis"))
    made.append(
        _element("line", class_="grid", x1=0, x2="100%", y1=_BARS_TOP + _BARS_HEIGHT, y2=_BARS_TOP + _BARS_HEIGHT)
    )
    return made


def _runs(bins: Sequence[Bin]) -> list[list[int]]:
    """Indices of neighbouring bins that have a rate: a bin without one breaks the line, it is not zero."""
    runs: list[list[int]] = []
    for i, one in enumerate(bins):
        if one.rate is None:
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _band(bins: Sequence[Bin], top: float) -> list[ET.Element]:
    made = []
    for run in _runs(bins):
        up = [(_middle(i, bins), _down(bins[i].high, top)) for i in run]
        back = [(_middle(i, bins), _down(bins[i].low, top)) for i in reversed(run)]
        made.append(_element("polygon", class_="band", points=_points([*up, *back])))
    return made


def _lines(bins: Sequence[Bin], top: float) -> list[ET.Element]:
    return [
        _element(
            "polyline",
            class_="rate",
            vector_effect="non-scaling-stroke",
            points=_points([(_middle(i, bins), _held(bins[i].rate or 0.0, top)) for i in run]),
        )
        for run in _runs(bins)
    ]


def _dots(bins: Sequence[Bin], top: float) -> list[ET.Element]:
    """Beyond 100 points the dots would hide the line they stand on, so only lone and thin ones are kept."""
    alone = {run[0] for run in _runs(bins) if len(run) == 1}
    made = []
    for i, one in enumerate(bins):
        if one.rate is not None and (len(bins) <= 100 or i in alone):
            y = _TOP + _RATE_HEIGHT * _held(one.rate or 0.0, top) / PLOT
            kind = "dot few" if one.n < FEW else "dot"
            made.append(_element("circle", class_=kind, cx=_share(_middle(i, bins)), cy=y, r=3))
    return made


def _bars(bins: Sequence[Bin], versions: int) -> list[ET.Element]:
    most = max((sum(one.volumes) for one in bins), default=0)
    if not most:
        return []
    made = [_text(2, _BARS_TOP - 5, f"outputs, at most {most:,}", "axis")]
    width = 100 / len(bins)
    for i, one in enumerate(bins):
        base = float(_BARS_TOP + _BARS_HEIGHT)
        for j, volume in enumerate(one.volumes[:versions]):
            height = _BARS_HEIGHT * volume / most
            base -= height
            if volume:
                x, w = f"{i * width + width * 0.1:.3f}%", f"{width * 0.8:.3f}%"
                made.append(_element("rect", class_=f"bar v{j % VERSION_COLOURS}", x=x, width=w, y=base, height=height))
    return made


def _marker_lines(bins: Sequence[Bin], markers: Sequence[Marker]) -> list[ET.Element]:
    made, named = [], -100.0
    for marker in sorted(markers, key=lambda marker: marker.at):
        share = _at(marker.at, bins)
        if share is None:
            continue
        x = f"{share:.3f}%"
        made.append(_element("line", class_="marker", x1=x, x2=x, y1=14, y2=_BARS_TOP + _BARS_HEIGHT))
        if share - named >= MARKER_GAP:
            made.append(_text(x, 10, marker.label, "marker-label", "end" if share > 60 else "start"))
            named = share
    return made


def _time_axis(bins: Sequence[Bin]) -> list[ET.Element]:
    """Five times at most, each at the start of a bin, the last at the end; phones hide the second and fourth."""
    if not bins:
        return []
    span = bins[-1].end - bins[0].start
    shown = "%H:%M" if span <= dt.timedelta(hours=3) else "%a %H:%M" if span <= dt.timedelta(days=3) else "%a %-d %b"
    made = [_text("0%", _HEIGHT - 4, format(bins[0].start, shown), "axis")]
    for quarter in (1, 2, 3) if len(bins) >= 4 else ():
        i = round(len(bins) * quarter / 4)
        kind = "axis" if quarter == 2 else "axis minor"
        made.append(_text(f"{100 * i / len(bins):.2f}%", _HEIGHT - 4, format(bins[i].start, shown), kind, "middle"))
    return [*made, _text("100%", _HEIGHT - 4, format(bins[-1].end, shown), "axis", "end")]


def _hover(bins: Sequence[Bin], versions: Sequence[str]) -> list[ET.Element]:
    """Invisible columns whose <title> is the browser's own tooltip; `data-i` lets the script show it at once."""
    width, made = 100 / max(len(bins), 1), []
    for i, one in enumerate(bins):
        column = _element(
            "rect", class_="hit", x=f"{i * width:.3f}%", width=f"{width:.3f}%", y=0, height=_BARS_TOP + _BARS_HEIGHT
        )
        title = _element("title")
        title.text = describe(one, versions)
        column.append(title)
        made.append(column)
    return made


def describe(one: Bin, versions: Sequence[str] = ()) -> str:
    """The bucket in words: when, rate, interval, n."""
    when = f"{one.start:%a %-d %b %H:%M}–{one.end:%H:%M}"
    if not one.n:
        return f"{when}: no outputs that count"
    by = ", ".join(f"{name} {count:,}" for name, count in zip(versions, one.volumes, strict=False) if count)
    behind = f"; {by}" if by else ""
    if one.flagged is None:
        return f"{when}: {one.n:,} count, too few to show their rate{behind}"
    return (
        f"{when}: CMER {percent(one.rate)} ({percent(one.low)} to {percent(one.high)}), "
        f"{one.flagged:,} flagged of {one.n:,}{behind}"
    )


# --- small ones ---------------------------------------------------------------------------------


def whisker(value: float | None, low: float, high: float, top: float) -> markupsafe.Markup:
    """A rate and its interval on the scale 0..top of its table; hidden from readers, as the row says it in numbers."""
    chart = _element("svg", class_="whisker", width="100%", height=16, aria_hidden="true")
    chart.append(_element("line", class_="track", x1=0, x2="100%", y1=8, y2=8))
    if value is not None and top > 0:
        chart.append(_element("line", class_="reach", x1=_of(low, top), x2=_of(high, top), y1=8, y2=8))
        for end in (low, high):
            if end <= top:
                chart.append(_element("line", class_="cap", x1=_of(end, top), x2=_of(end, top), y1=5, y2=11))
        chart.append(_element("circle", class_="point", cx=_of(value, top), cy=8, r=3.5))
    return _markup(chart)


def quartiles(bins: Sequence[Bin], summary: str) -> markupsafe.Markup:
    """Similarity over time: the band from lower to upper quartile and the median."""
    chart = _element("svg", class_="quartiles", width="100%", height=56, role="img", aria_label=summary)
    known = [one.quartiles for one in bins if one.quartiles]
    if not known:
        return _markup(chart)
    low, high = min(q[0] for q in known), max(q[2] for q in known)
    pad = (high - low) * 0.08 or 0.01
    low, high = low - pad, high + pad
    plot = _plot(chart, 2, 52)
    for run in _runs_of([one.quartiles is not None for one in bins]):
        at = [(_middle(i, bins), bins[i].quartiles or (0.0, 0.0, 0.0)) for i in run]
        upper = [(x, PLOT * (high - q[2]) / (high - low)) for x, q in at]
        lower = [(x, PLOT * (high - q[0]) / (high - low)) for x, q in reversed(at)]
        middle = [(x, PLOT * (high - q[1]) / (high - low)) for x, q in at]
        plot.append(_element("polygon", class_="qband", points=_points([*upper, *lower])))
        plot.append(_element("polyline", class_="qmid", vector_effect="non-scaling-stroke", points=_points(middle)))
    return _markup(chart)


def _runs_of(known: Sequence[bool]) -> list[list[int]]:
    runs: list[list[int]] = []
    for i, has in enumerate(known):
        if has and runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        elif has:
            runs.append([i])
    return runs


def gauge(value: float | None, threshold: float, *, bad_below: bool, summary: str) -> markupsafe.Markup:
    """A value in [0, 1] against its threshold, the side that counts towards a flag tinted.

    `bad_below` (a score) uses a square-root scale: its thresholds live near 0.05, where a linear one shows nothing.
    """

    def place(x: float) -> str:
        x = min(max(x, 0.0), 1.0)
        return f"{100 * (math.sqrt(x) if bad_below else x):.2f}%"

    chart = _element("svg", class_="gauge", width="100%", height=20, role="img", aria_label=summary)
    chart.append(_element("rect", class_="track", x=0, y=7, width="100%", height=6, rx=3))
    edge = float(place(threshold)[:-1])
    x, width = (0.0, edge) if bad_below else (edge, 100 - edge)
    chart.append(_element("rect", class_="zone", x=f"{x:.2f}%", y=7, width=f"{width:.2f}%", height=6, rx=3))
    chart.append(_element("line", class_="cap", x1=f"{edge:.2f}%", x2=f"{edge:.2f}%", y1=2, y2=18))
    if value is not None:
        counts = value < threshold if bad_below else value > threshold
        kind = "point bad" if counts else "point"
        # Kept 1 % from the ends, where half of the dot would be cut off.
        at = min(max(float(place(value)[:-1]), 1.0), 99.0)
        chart.append(_element("circle", class_=kind, cx=f"{at:.2f}%", cy=10, r=5))
    return _markup(chart)


# --- the builder --------------------------------------------------------------------------------


def _element(tag: str, **attributes: str | float) -> ET.Element:
    """`class_` -> class, `aria_label` -> aria-label; floats get three digits; viewBox keeps its capital."""
    element = ET.Element(tag)
    for name, value in attributes.items():
        key = name.rstrip("_") if name == "class_" else name.replace("_", "-")
        element.set(key, f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value))
    return element


def _text(x: str | float, y: float, words: str, kind: str, anchor: str = "start") -> ET.Element:
    element = _element("text", x=x, y=y, class_=kind, text_anchor=anchor)
    element.text = words
    return element


def _plot(chart: ET.Element, y: int, height: int) -> ET.Element:
    """A stretched square of PLOT x PLOT units over the full width of the chart."""
    plot = _element("svg", x=0, y=y, width="100%", height=height)
    plot.set("viewBox", f"0 0 {PLOT:g} {PLOT:g}")
    plot.set("preserveAspectRatio", "none")
    chart.append(plot)
    return plot


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _middle(i: int, bins: Sequence[Bin]) -> float:
    return PLOT * (i + 0.5) / len(bins)


def _down(value: float, top: float) -> float:
    return PLOT * (1 - value / top)


def _held(value: float, top: float) -> float:
    """The same, kept at the upper edge: a point over the scale stands there, hollow, and says its number on hover."""
    return _down(min(value, top), top)


def _share(x: float) -> str:
    return f"{100 * x / PLOT:.3f}%"


def _of(value: float, top: float) -> str:
    return f"{min(100.0, 100 * value / top):.2f}%"


def _at(moment: dt.datetime, bins: Sequence[Bin]) -> float | None:
    """Where a moment lies, in percent of the width; None outside. Bins are drawn equally wide, even a shorter last."""
    for i, one in enumerate(bins):
        if one.start <= moment < one.end:
            return 100 * (i + (moment - one.start) / (one.end - one.start)) / len(bins)
    return None


def _markup(element: ET.Element) -> markupsafe.Markup:
    return markupsafe.Markup(ET.tostring(element, encoding="unicode"))
