"""Charts as text: what is drawn, where, and what a reader who cannot see it is told."""

from __future__ import annotations

import datetime as dt
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import intervals
from cmerwatch_web import charts
from cmerwatch_web.charts import Bin, Marker
from cmerwatch_web.console import text

START = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def bins(*counts: tuple[int, int], volumes: tuple[int, ...] = (5,)) -> list[Bin]:
    """One hourly bin per (flagged, n), with its true interval."""
    return [
        Bin(START + i * HOUR, START + (i + 1) * HOUR, n, flagged, *intervals.wilson(flagged, n), volumes)
        for i, (flagged, n) in enumerate(counts)
    ]


def drawn(markup: str, kind: str) -> list[ET.Element]:
    """The elements with this class, from markup that must be well-formed XML."""
    return [one for one in ET.fromstring(markup).iter() if kind in (one.get("class") or "").split()]


def timeline(some: list[Bin], versions: tuple[str, ...] = ("v1",), markers: tuple[Marker, ...] = ()) -> str:
    return charts.timeline(some, versions, markers, "what it says")


def test_the_line_breaks_where_nothing_arrived_instead_of_falling_to_zero() -> None:
    lines = drawn(timeline(bins((5, 50), (4, 50), (0, 0), (6, 50), (7, 50))), "rate")
    assert [len(line.get("points", "").split()) for line in lines] == [2, 2]


def test_a_rate_stands_at_its_height_between_zero_and_the_top_of_the_axis() -> None:
    [line] = drawn(timeline(bins((0, 100), (10, 100), (20, 100))), "rate")
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights[0] == charts.PLOT  # zero is the bottom
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2)


def test_the_band_holds_the_line_and_reaches_from_the_lower_to_the_upper_end() -> None:
    some = bins((10, 100), (10, 100))
    [band] = drawn(timeline(some), "band")
    [line] = drawn(timeline(some), "rate")
    heights = [float(point.split(",")[1]) for point in band.get("points", "").split()]
    middle = float(line.get("points", "").split()[0].split(",")[1])
    assert min(heights) < middle < max(heights)
    top = charts.ceiling(some)
    assert max(heights) == pytest.approx(charts.PLOT * (1 - some[0].low / top), abs=0.1)


def test_a_point_of_few_outputs_is_drawn_hollow() -> None:
    kinds = [dot.get("class") for dot in drawn(timeline(bins((1, charts.FEW - 1), (1, charts.FEW))), "dot")]
    assert kinds == ["dot few", "dot"]


def test_a_lone_bucket_with_a_huge_interval_does_not_flatten_the_others() -> None:
    many = bins(*[(5, 200)] * 20, (1, 1))
    assert charts.ceiling(many) <= 0.1
    assert charts.ceiling(bins(*[(5, 200)] * 20, (0, 1))) <= 0.1
    last = drawn(timeline(many), "dot")[-1]
    assert last.get("class") == "dot few"
    assert float(last.get("cy", "")) == min(float(dot.get("cy", "")) for dot in drawn(timeline(many), "dot"))


def test_the_axis_reaches_over_every_rate() -> None:
    assert charts.ceiling(bins((5, 200), (150, 200))) >= 0.75


def test_bars_are_stacked_by_version_and_add_up_to_the_volume() -> None:
    markup = timeline(bins((1, 40), (1, 40), volumes=(30, 10)), ("v1", "v2"))
    first, second = drawn(markup, "v0")[0], drawn(markup, "v1")[0]
    assert float(first.get("height", "")) == pytest.approx(3 * float(second.get("height", "")), rel=1e-3)
    assert float(second.get("y", "")) + float(second.get("height", "")) == pytest.approx(
        float(first.get("y", "")), abs=0.01
    )


def test_a_marker_stands_before_the_first_bar_of_its_bin_though_the_last_bin_is_shorter() -> None:
    some = [*bins((1, 50), (1, 50), (1, 50)), Bin(START + 3 * HOUR, START + 3.5 * HOUR, 10, 1, 0.0, 0.4, (5,))]
    [line] = drawn(timeline(some, markers=(Marker(START + 2 * HOUR, "v2 from 02:00"),)), "marker")
    assert line.get("x1") == "50.000%"


def test_a_marker_outside_the_window_is_not_drawn() -> None:
    assert drawn(timeline(bins((1, 50)), markers=(Marker(START - HOUR, "v2"),)), "marker") == []


def test_markers_close_together_keep_their_lines_and_only_the_first_name() -> None:
    some = bins(*[(1, 50)] * 20)
    markup = timeline(some, markers=(Marker(START + 10 * HOUR, "a"), Marker(START + 11 * HOUR, "b")))
    assert len(drawn(markup, "marker")) == 2
    assert [name.text for name in drawn(markup, "marker-label")] == ["a"]


def test_names_from_outside_are_escaped_and_never_become_markup() -> None:
    hostile = '"><script>alert(1)</script>'
    markup = timeline(bins((1, 50)), (hostile,), (Marker(START, hostile),))
    assert "<script" not in markup
    assert drawn(markup, "marker-label")[0].text == hostile


def test_every_column_says_its_numbers_in_words() -> None:
    titles = [one.text for one in ET.fromstring(timeline(bins((3, 60), (0, 0)))).iter() if one.tag == "title"]
    assert titles == [
        "Fri 20 Nov 00:00–01:00: CMER 5.0% (1.7% to 13.7%), 3 flagged of 60; v1 5",
        "Fri 20 Nov 01:00–02:00: no outputs that count",
    ]


def test_charts_use_no_inline_style_or_handler_which_the_pages_forbid() -> None:
    some = bins((1, 50), (2, 50))
    made = [
        timeline(some),
        charts.whisker(0.1, 0.05, 0.2, 0.3),
        charts.gauge(0.9, 0.8, bad_below=False, summary="x"),
        charts.quartiles([Bin(START, START + HOUR, 1, 0, 0, 1, (), (0.1, 0.2, 0.3))], "x"),
    ]
    for markup in made:
        for one in ET.fromstring(markup).iter():
            assert not [name for name in one.attrib if name == "style" or name.startswith("on")]


@pytest.mark.parametrize(
    "markup",
    [timeline(bins((1, 50))), charts.quartiles([], "x"), charts.gauge(None, 0.8, bad_below=False, summary="x")],
)
def test_a_chart_that_says_something_has_a_text_for_those_who_cannot_see_it(markup: str) -> None:
    root = ET.fromstring(markup)
    assert root.get("role") == "img"
    assert root.get("aria-label")


def test_a_whisker_repeats_its_row_and_is_hidden_from_readers() -> None:
    assert ET.fromstring(charts.whisker(0.1, 0.05, 0.2, 0.4)).get("aria-hidden") == "true"


def test_a_whisker_lies_on_the_scale_of_its_table() -> None:
    markup = charts.whisker(0.1, 0.05, 0.2, 0.4)
    assert drawn(markup, "point")[0].get("cx") == "25.00%"
    assert (drawn(markup, "reach")[0].get("x1"), drawn(markup, "reach")[0].get("x2")) == ("12.50%", "50.00%")


def test_an_end_past_the_scale_is_cut_without_a_cap() -> None:
    markup = charts.whisker(0.1, 0.05, 0.9, 0.4)
    assert drawn(markup, "reach")[0].get("x2") == "100.00%"
    assert len(drawn(markup, "cap")) == 1


def test_a_gauge_marks_a_value_on_the_side_that_counts() -> None:
    assert drawn(charts.gauge(0.03, 0.05, bad_below=True, summary="x"), "bad")
    assert not drawn(charts.gauge(0.05, 0.05, bad_below=True, summary="x"), "bad")  # below, not at
    assert drawn(charts.gauge(0.81, 0.8, bad_below=False, summary="x"), "bad")
    assert not drawn(charts.gauge(0.8, 0.8, bad_below=False, summary="x"), "bad")  # over, not at


def test_a_gauge_without_a_value_has_no_point() -> None:
    assert not drawn(charts.gauge(None, 0.8, bad_below=False, summary="x"), "point")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0%"), (0.048, "4.8%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (1, "100%"), (0.5, "50.0%")],
)
def test_a_share_never_rounds_into_none_or_all(value: float | None, shown: str) -> None:
    assert charts.percent(value) == shown


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)).map(lambda pair: (min(pair), max(pair))), max_size=60),
    st.text(max_size=30),
)
def test_any_counts_and_any_name_give_a_well_formed_chart(counts: list[tuple[int, int]], name: str) -> None:
    markup = timeline(bins(*counts), (text.visible(name),), (Marker(START, text.visible(name)),))
    root = ET.fromstring(markup)
    for one in root.iter("polyline"):
        for point in (one.get("points") or "").split():
            assert all(0 <= float(number) <= charts.PLOT for number in point.split(","))
