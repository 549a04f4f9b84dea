"""The legacy rule on arrays, and rates that carry their n."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import cmer

UP, RIGHT, LEFT = [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]


def test_an_error_is_sure_of_itself_and_unlike_its_image() -> None:
    images = [RIGHT, RIGHT, RIGHT, RIGHT]
    texts = [UP, RIGHT, UP, LEFT]  # cosines 0, 1, 0, -1
    confidence = [0.9, 0.9, 0.5, 0.95]
    assert cmer.cross_modal_error_rate(images, texts, confidence) == 0.5


def test_thresholds_are_strict() -> None:
    half = [math.sqrt(3) / 2, 0.5]  # its cosine with UP is 0.5
    assert cmer.cross_modal_error_rate([half], [UP], [0.81], sim_threshold=0.5 + 1e-9) == 1
    assert cmer.cross_modal_error_rate([RIGHT], [UP], [0.9], sim_threshold=0.0) == 0
    assert cmer.cross_modal_error_rate([RIGHT], [UP], [0.8]) == 0


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_an_unknown_confidence_is_left_out_and_not_taken_for_doubt(unknown: float | None) -> None:
    assert cmer.cross_modal_error_rate([RIGHT, RIGHT], [UP, UP], [0.9, unknown]) == 1
    assert cmer.cross_modal_error_rate([RIGHT], [UP], [unknown]) is None


def test_numpy_arrays_will_do() -> None:
    rng = np.random.default_rng(1)
    images, texts, confidence = rng.normal(size=(50, 8)), rng.normal(size=(50, 8)), rng.uniform(size=50)
    cosines = (images * texts).sum(1) / np.linalg.norm(images, axis=1) / np.linalg.norm(texts, axis=1)
    expected = ((confidence > 0.8) & (cosines < 0.25)).mean()
    assert cmer.cross_modal_error_rate(images, texts, confidence) == pytest.approx(expected)  # type: ignore[arg-type]


def test_nothing_has_no_rate() -> None:
    assert cmer.cross_modal_error_rate([], [], []) is None


@pytest.mark.parametrize(
    "images, texts, confidence, said",
    [
        ([UP], [UP, UP], [0.9], "1, 2 and 1 rows"),
        ([UP], [[1.0, 0.0, 0.0]], [0.9], "2 and 3 dimensions"),
        ([[0.0, 0.0]], [UP], [0.9], "all zeros"),
        ([[math.nan, 0.0]], [UP], [0.9], "not finite"),
        ([[math.inf, 0.0]], [UP], [0.9], "not finite"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    images: list[list[float]], texts: list[list[float]], confidence: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        cmer.cross_modal_error_rate(images, texts, confidence)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8).filter(lambda v: math.hypot(*v) > 1e-3))
def test_a_vector_is_like_itself_at_any_length(vector: list[float]) -> None:
    assert cmer.cosine(vector, [3 * x for x in vector]) == pytest.approx(1)
    assert cmer.cosine(vector, [-x for x in vector]) == pytest.approx(-1)


def test_a_rate_without_events_has_no_value_and_the_widest_interval() -> None:
    assert (cmer.Rate(0, 0).value, cmer.Rate(0, 0).interval) == (None, (0.0, 1.0))
    assert cmer.Rate(3, 12).value == 0.25
