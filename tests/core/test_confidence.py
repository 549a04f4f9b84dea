"""Confidence: logprobs first, then what the app says, and never certain for want of knowledge."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import confidence
from cmerwatch.shapes import Confidence

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=50).filter(
    lambda values: len(values) < confidence.CONSTANT_TOKENS or len(set(values)) > 1
)


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


def test_only_tokens_with_content_can_be_the_least_sure_one() -> None:
    tokens = ["▁The", "Ġ", " circle", " is", " red", "."]
    found = confidence.measure([-3.0, -2.0, -0.1, -4.0, -0.5, -5.0], None, tokens=tokens)
    assert found.min_p == pytest.approx(math.exp(-0.5))
    assert found.geo_p == confidence.measure([-3.0, -2.0, -0.1, -4.0, -0.5, -5.0], None).geo_p


def test_where_no_token_has_content_the_least_sure_of_all_counts() -> None:
    assert confidence.measure([-1.0, -2.0], None, tokens=["The", "."]).min_p == pytest.approx(math.exp(-2))


def test_a_digit_is_content() -> None:
    assert confidence.measure([-0.1, -3.0], None, tokens=["There are", " 3"]).min_p == pytest.approx(math.exp(-3))


@pytest.mark.parametrize("mark", ["<|im_end|>", "</s>", "<end_of_turn>", " <|eot_id|>"])
def test_the_marks_of_a_chat_template_are_no_part_of_the_answer(mark: str) -> None:
    assert confidence.measure([-0.1, -9.0], None, tokens=["Red", mark]) == confidence.measure([-0.1], None)


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_one_value_for_every_token_is_no_confidence(value: float) -> None:
    constant = [value] * confidence.CONSTANT_TOKENS
    assert confidence.measure(constant, None) == Confidence(status="constant_logprobs")
    assert confidence.measure(constant, 0.4) == Confidence(geo_p=0.4, status="reported_by_app")
    assert confidence.measure(constant[1:], None).geo_p == pytest.approx(math.exp(value))


@pytest.mark.parametrize("kind", confidence.KINDS)
def test_the_kind_of_the_logprobs_is_kept_where_the_sender_knows_it(kind: str) -> None:
    assert confidence.measure([-0.1], None, kind).status == kind
    assert confidence.measure([-9999.0], None, kind).status == "not_reported"


@given(LOGPROBS, st.data())
def test_content_never_makes_a_model_less_sure_than_all_tokens_do(logprobs: list[float], data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.text(max_size=6), min_size=len(logprobs), max_size=len(logprobs)))
    found, plain = confidence.measure(logprobs, None, tokens=tokens), confidence.measure(logprobs, None)
    assert found.min_p is None or plain.min_p is None or found.min_p >= plain.min_p
