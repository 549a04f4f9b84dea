"""Intervals and histograms against known values, numpy, and properties that hold for all inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import intervals

COUNTS = st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
BIN = 2 / intervals.SIM_BINS


@pytest.mark.parametrize(
    "k, n, low, high",
    [
        # Newcombe 1998, table I, method 3 (score, without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(k: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_of_nothing_nothing_is_known() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)


@given(COUNTS)
def test_wilson_holds_the_rate_within_0_and_1(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = intervals.wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert (low == 0) == (k == 0)
    assert (high == 1) == (k == n)


@given(COUNTS)
def test_wilson_is_symmetric(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = intervals.wilson(k, n)
    assert intervals.wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(COUNTS)
def test_wilson_narrows_with_more_of_the_same(pair: tuple[int, int]) -> None:
    k, n = pair
    (low, high), (wide_low, wide_high) = intervals.wilson(4 * k, 4 * n), intervals.wilson(k, n)
    assert high - low < wide_high - wide_low


@pytest.mark.parametrize(
    "similarity, expected",
    [
        (-1.0, 0),
        (-1.0001, 0),
        (-0.9951, 0),
        (-0.995 + 1e-9, 1),
        (0.0, 200),
        (0.25, 250),
        (0.9951, 399),
        (1.0, 399),
        (1.0000001, 399),
        (-5.0, 0),
        (5.0, 399),
    ],
)
def test_similarities_at_the_edges_fall_in_a_bin(similarity: float, expected: int) -> None:
    assert intervals.sim_bin(similarity) == expected


@pytest.mark.parametrize("score, expected", [(0.0, 0), (0.0499, 4), (0.0501, 5), (0.999, 99), (1.0, 99), (-1e-9, 0)])
def test_scores_at_the_edges_fall_in_a_bin(score: float, expected: int) -> None:
    assert intervals.score_bin(score) == expected


@given(st.floats(-1, 1))
def test_a_similarity_lies_in_its_bin(similarity: float) -> None:
    index = intervals.sim_bin(similarity)
    assert -1 + index * BIN - 1e-9 <= similarity <= -1 + (index + 1) * BIN + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=400))
def test_quartiles_agree_with_numpy_within_a_bin(values: list[float]) -> None:
    hist = [0] * intervals.SIM_BINS
    for value in values:
        hist[intervals.sim_bin(value)] += 1
    found = intervals.sim_quartiles(hist)
    assert found is not None
    for q, mine in zip((0.25, 0.5, 0.75), found, strict=True):
        # The sample quantile itself is any point between two neighbours; ours must touch that stretch.
        low = np.quantile(values, q, method="inverted_cdf")
        high = np.quantile(values, q, method="higher")
        assert min(low, high) - BIN - 1e-9 <= mine <= max(low, high) + BIN + 1e-9
    assert found[0] <= found[1] <= found[2]


def test_quartiles_of_many_values_are_close() -> None:
    values = np.random.default_rng(7).normal(0.3, 0.08, 20_000).clip(-1, 1)
    hist = np.bincount([intervals.sim_bin(value) for value in values], minlength=intervals.SIM_BINS).tolist()
    assert intervals.sim_quartiles(hist) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]), abs=5e-4)


def test_an_empty_histogram_has_no_quartiles() -> None:
    assert intervals.sim_quartiles([0] * intervals.SIM_BINS) is None
    assert intervals.quantile([0, 0], 0.5, 0, 1) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 370))
def test_quartiles_of_a_part_are_those_of_the_whole_it_is_cut_from(part: list[int], first: int) -> None:
    whole = intervals.add_up([(first, part), (0, [0])], intervals.SIM_BINS)
    assert whole[first : first + len(part)] == part
    found, wanted = intervals.sim_quartiles(part, first), intervals.sim_quartiles(whole)
    assert (found is None) == (wanted is None) == (not any(part))
    if found is not None:
        assert found == pytest.approx(wanted)


def test_quantiles_at_the_ends_are_the_ends_of_what_is_there() -> None:
    assert intervals.quantile([0, 4, 0, 0], 0.0, 0.0, 1.0) == pytest.approx(0.25)
    assert intervals.quantile([0, 4, 0, 0], 1.0, 0.0, 1.0) == pytest.approx(0.5)
    assert not math.isnan(intervals.quantile([1], 0.5, 0.0, 1.0) or 0.0)
