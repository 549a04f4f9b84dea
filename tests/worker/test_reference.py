"""Percentiles among frozen claims, and the score of an output."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch_worker import reference


def sample(seed: int, count: int = 1000, shift: float = 0.0) -> list[float]:
    return (np.random.default_rng(seed).normal(size=count) + shift).tolist()


@pytest.fixture(scope="module")
def frozen() -> reference.Reference:
    own = {"identify": sample(1), "count": sample(2, shift=2.0)}
    return reference.build(own, {"identify": sample(3, shift=-3.0), "count": sample(4, shift=-3.0)})


def test_a_lower_logit_never_has_a_higher_percentile(frozen: reference.Reference) -> None:
    us = reference.percentile(frozen, "identify", np.linspace(-5, 5, 200, dtype=np.float32))
    assert (np.diff(us) >= 0).all()
    assert 0 < us[0] < us[-1] < 1


def test_each_prompt_type_has_its_own_scale(frozen: reference.Reference) -> None:
    zero = np.zeros(1, np.float32)
    assert reference.percentile(frozen, "identify", zero)[0] == pytest.approx(0.5, abs=0.05)
    assert reference.percentile(frozen, "count", zero)[0] < 0.05


def test_an_unknown_prompt_type_is_judged_by_all_claims_together(frozen: reference.Reference) -> None:
    at = np.array([1.0], np.float32)
    assert reference.percentile(frozen, "never seen", at) == reference.percentile(frozen, reference.POOLED, at)
    assert len(frozen.own[reference.POOLED]) == 2000


def test_a_wrong_image_looks_common_among_mismatched_claims_and_rare_among_own(frozen: reference.Reference) -> None:
    at = np.array([-3.0], np.float32)
    assert reference.percentile(frozen, "identify", at)[0] < 0.01
    assert reference.mismatch_percentile(frozen, "identify", at)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("claims", [1, 2, 5, 12])
def test_five_percent_of_right_outputs_score_below_five_percent_at_every_length(
    frozen: reference.Reference, claims: int
) -> None:
    rng = np.random.default_rng(5)
    outputs = [
        reference.percentile(frozen, "identify", rng.normal(size=claims).astype(np.float32)) for _ in range(4000)
    ]
    low = np.mean([reference.score(us) < 0.05 for us in outputs])
    # Sampling error of the reference's own 5 % point: sqrt(.05 * .95 / 1000) = 0.7 points, thrice that allowed.
    assert low == pytest.approx(0.05, abs=0.021)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_score_is_between_its_lowest_percentile_and_one(us: list[float]) -> None:
    assert min(us) - 1e-12 <= reference.score(us) <= 1


def test_an_output_without_claims_has_no_score() -> None:
    with pytest.raises(ValueError, match="at least one"):
        reference.score([])


def test_a_percentile_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="each in"):
        reference.score([0.5, float("nan")])


def test_a_reference_is_the_same_after_its_file_and_in_any_order(frozen: reference.Reference) -> None:
    again = reference.from_json(json.loads(json.dumps(reference.to_json(frozen))))
    assert again.version == frozen.version
    np.testing.assert_array_equal(again.own["identify"], frozen.own["identify"])
    shuffled = sample(1)
    random.Random(0).shuffle(shuffled)
    own = {"count": sample(2, shift=2.0), "identify": shuffled}
    same = reference.build(own, {"identify": sample(3, shift=-3.0), "count": sample(4, shift=-3.0)})
    assert same.version == frozen.version


def test_another_sample_has_another_version(frozen: reference.Reference) -> None:
    other = reference.build({"identify": sample(9)}, {"identify": sample(3)})
    assert other.version != frozen.version


def test_a_sample_that_is_too_small_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match="has 499 own-image claims; a reference needs 500"):
        reference.build({"identify": sample(1, 499)}, {"identify": sample(2)})


def test_a_logit_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        reference.build({"identify": [*sample(1), float("nan")]}, {"identify": sample(2)})
