"""The gate of the shipped demo bundle: it sees what it is claimed to see, in pictures of any origin."""

import random

import numpy as np
import pytest

from cmerwatch_worker import checkers, reference
from cmerwatch_worker.checkers.base import Checker
from toy_vlm import build_bundle, captions, evaluate_checker
from toy_vlm.evaluate_checker import Auroc


@pytest.fixture(scope="module")
def demo() -> Checker:
    return checkers.load("demo")


@pytest.fixture(scope="module")
def measured(demo: Checker) -> dict[str, Auroc]:
    return evaluate_checker.held_out(demo, 500)


def test_true_sentences_score_above_edited_ones_on_held_out_scenes(measured: dict[str, Auroc]) -> None:
    assert measured["claimed"].value >= 0.95


@pytest.mark.parametrize("kind", captions.CLAIMED_EDITS)
def test_each_claimed_kind_of_error_is_seen(measured: dict[str, Auroc], kind: str) -> None:
    assert measured[kind].value >= 0.93


def test_a_sentence_about_another_scene_is_seen(measured: dict[str, Auroc]) -> None:
    assert measured["other scene"].value >= 0.97


def test_the_documented_blind_spot_is_still_one(measured: dict[str, Auroc]) -> None:
    """A checker that learned to see relations should have the documents that call it blind to them changed."""
    assert 0.35 < measured["relation"].value < 0.65


def test_it_holds_on_plain_shapes_drawn_without_the_renderer(demo: Checker) -> None:
    assert evaluate_checker.plain_shapes(demo, 400).value >= 0.95


def test_one_in_twenty_right_answers_lies_below_the_five_percent_point(demo: Checker) -> None:
    assert demo.reference is not None
    fresh = build_bundle.freeze(demo, build_bundle.drawn(random.Random(99), 600))
    low = {
        kind: np.mean(reference.percentile(demo.reference, kind, fresh.own[kind]) < 0.05) for kind in captions.PROMPTS
    }
    # Three standard errors of two samples: sqrt(.05 * .95 * (1/600 + 1/900)) = 1.15 points each.
    assert all(abs(share - 0.05) <= 0.035 for share in low.values()), low


def test_an_answer_about_another_picture_lies_far_below_right_answers(demo: Checker) -> None:
    assert demo.reference is not None
    fresh = build_bundle.freeze(demo, build_bundle.drawn(random.Random(98), 600))
    for kind in captions.PROMPTS:
        flagged = np.mean(reference.percentile(demo.reference, kind, fresh.mismatched[kind]) < 0.05)
        assert flagged > 0.7, kind
