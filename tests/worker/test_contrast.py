"""A claim against itself with one thing changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch_worker import contrast
from cmerwatch_worker.claims import Claim
from tests.worker.colours import Colours


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The cup is left of the plate.", ["right of the plate", "left of the bowl"]),
        ("There are 3 dogs.", ["4 dogs", "2 dogs", "5 dogs", "1 dogs", "3 cats"]),
        ("Two men wear hats.", ["Three men", "One men", "Two women"]),
        ("A Red sign.", ["A Green sign.", "A Yellow sign."]),
    ],
)
def test_numbers_colours_objects_and_sides_are_changed_one_at_a_time(text: str, expected: list[str]) -> None:
    found = [edited for slot in contrast.edits(text) for edited in slot]
    for part in expected:
        assert any(part in edited for edited in found), (part, found)


@pytest.mark.parametrize("text", ["Something else.", "0 things", "红色的圆。", "", "Room 1024"])
def test_where_nothing_can_be_changed_there_is_no_edit(text: str) -> None:
    assert contrast.edits(text) == []


@given(st.lists(st.sampled_from(["red", "3", "two", "left", "dog", "house", ",", "Blue"]), max_size=30))
def test_every_edit_differs_in_one_word_and_their_number_is_bounded(words: list[str]) -> None:
    slots = contrast.edits(" ".join(words))
    assert len(slots) <= contrast.SLOTS
    for slot in slots:
        assert 1 <= len(slot) <= contrast.EDITS
        for edited in slot:
            assert sum(a != b for a, b in zip(words, edited.split(" "), strict=True)) == 1


def test_the_margin_is_the_least_share_among_any_words_edits() -> None:
    assert contrast.margin(10.0, 0.3, []) == 0.0
    assert contrast.margin(10.0, 0.3, [[0.3]]) == pytest.approx(math.log(0.5))
    assert contrast.margin(10.0, 0.3, [[-9.0], [0.3, 0.3]]) == pytest.approx(math.log(1 / 3))


def test_a_denied_claim_has_no_edits() -> None:
    checker = contrast.Contrasting(Colours())
    assert checker.edits(Claim(0, 9, "a red dog")) != []
    assert checker.edits(Claim(0, 2, "no", "There is a red dog.", negated=True)) == []


def test_an_edit_over_the_context_is_left_out() -> None:
    class Short(Colours):
        context_length = 3

    assert contrast.Contrasting(Short()).edits(Claim(0, 9, "a red dog")) == []


def test_the_margin_counts_in_the_unit_of_the_checkers_logit() -> None:
    class Biased(Colours):
        logit_scale = 100.0
        logit_bias: float | None = -10.0

    class Plain(Colours):
        logit_scale = 100.0

    assert contrast.logit(Biased(), 0.3, -2.0) == pytest.approx(20 + contrast.WEIGHT * -2.0, abs=1e-4)
    assert contrast.logit(Plain(), 0.3, -2.0) == pytest.approx(0.3 + contrast.WEIGHT * -0.02, abs=1e-6)
    assert contrast.logit(Plain(), 0.3, None) == pytest.approx(0.3)


def test_a_claim_is_put_against_its_edits_on_its_own_best_picture() -> None:
    checker = contrast.Contrasting(Colours())
    images = np.eye(4, dtype=np.float32)[:2]
    text, edit = images[1], np.array([[0.9, 0.1, 0, 0]], np.float32)
    assert checker.margin(images, text, [edit]) > math.log(0.5)
