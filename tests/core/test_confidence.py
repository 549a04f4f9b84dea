"""Confidence: logprobs first, then what the app says, and never certain for want of knowledge."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import confidence
from cmerwatch.shapes import Confidence

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=50)


def test_the_worked_example_of_one_doubtful_digit() -> None:
    """19 tokens at .99 and one at .05: the mean hides it, the minimum does not."""
    found = confidence.measure([math.log(0.99)] * 19 + [math.log(0.05)], None)
    assert found.mean_p == pytest.approx(0.943, abs=5e-4)
    assert found.geo_p == pytest.approx(0.853, abs=5e-4)
    assert found.min_p == pytest.approx(0.05)
    assert (found.n_tokens, found.status) == (20, "present")


@given(LOGPROBS)
def test_the_geometric_mean_lies_between_the_minimum_and_the_mean(logprobs: list[float]) -> None:
    found = confidence.measure(logprobs, None)
    assert found.geo_p is not None
    assert found.mean_p is not None
    assert found.min_p is not None
    assert 0 < found.min_p <= found.geo_p * (1 + 1e-9)
    assert found.geo_p <= found.mean_p * (1 + 1e-9) <= 1 + 1e-9


@given(LOGPROBS, st.floats(0, 1))
def test_logprobs_beat_a_reported_confidence(logprobs: list[float], reported: float) -> None:
    assert confidence.measure(logprobs, reported) == confidence.measure(logprobs, None)


@pytest.mark.parametrize("logprobs", [None, [], [None, None], [-9999.0, -9999.0]])
def test_without_a_known_logprob_the_app_is_believed(logprobs: list[float | None] | None) -> None:
    assert confidence.measure(logprobs, 0.4) == Confidence(geo_p=0.4, status="reported_by_app")
    assert confidence.measure(logprobs, None) == Confidence(status="not_reported")
    assert confidence.measure(logprobs, None, "refused_by_provider").status == "refused_by_provider"


def test_a_provider_sentinel_is_left_out_of_the_mean() -> None:
    assert confidence.measure([-0.1, -9999.0, None, -0.3], None) == confidence.measure([-0.1, -0.3], None)


def test_zero_reported_is_zero_and_not_unknown() -> None:
    assert confidence.measure(None, 0.0).geo_p == 0.0
