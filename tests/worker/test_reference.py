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


@pytest.mark.parametrize("size", [500, 1000, 4000])
@pytest.mark.parametrize("claims", [1, 3, 10, 30])
def test_over_many_references_five_percent_of_right_outputs_are_low(size: int, claims: int) -> None:
    """One reference of 500 is off by what its own 25 lowest claims say; the mean over references must not be."""
    rng = np.random.default_rng(size + claims)
    low = []
    for _ in range(120):
        made = reference.build({"a": rng.normal(size=size).tolist()}, {})
        us = reference.percentile(made, "a", rng.normal(size=500 * claims).astype(np.float32)).reshape(500, claims)
        low.append(np.mean([reference.score(one) < 0.05 for one in us]))
    assert np.mean(low) == pytest.approx(0.05, abs=0.012)


def test_a_claim_far_below_all_others_is_low_even_in_a_long_output() -> None:
    made = reference.build({"a": sample(1, 500)}, {})
    far = reference.percentile(made, "a", np.array([-40.0], np.float32))[0]
    assert reference.score([far, *[0.5] * 99]) < 0.05


def test_without_mismatched_pairs_nothing_is_said_of_wrong_images() -> None:
    made = reference.from_json(reference.to_json(reference.build({"a": sample(1)}, {})))
    assert reference.mismatch_percentile(made, "a", np.zeros(1, np.float32)) is None
    assert reference.denied_percentile(made, "a", np.zeros(1, np.float32)) is None


def test_a_denied_statement_is_suspicious_when_it_fits(frozen: reference.Reference) -> None:
    at = np.array([-3.0, 1.0], np.float32)
    absent, present = reference.denied_percentile(frozen, "identify", at)  # type: ignore[misc]
    assert absent == pytest.approx(0.5, abs=0.05)
    assert present < 0.01


@pytest.mark.parametrize(
    "counts, enough",
    [
        ({"": (499, 499)}, False),
        ({"": (500, 500)}, True),
        ({"": (500, 499)}, False),
        ({"a": (500, 500), "b": (100, 100)}, False),
        ({"a": (500, 500), "b": (500, 500)}, True),
        ({"a": (2000, 2000), "rare": (100, 100)}, True),
        ({"a": (2500, 0), "b": (2500, 0)}, True),
        ({}, False),
    ],
)
def test_common_prompt_types_are_waited_for_and_rare_ones_are_not(
    counts: dict[str, tuple[int, int]], enough: bool
) -> None:
    assert reference.is_enough(counts) is enough


def test_a_rare_prompt_type_of_the_traffic_is_judged_by_all_claims_together() -> None:
    traffic = [("a", [x], [x - 5]) for x in sample(1)] + [("rare", [x + 4], [x]) for x in sample(2, 100)]
    made = reference.from_traffic(traffic)
    assert set(made.own) == set(made.mismatched) == {"a", reference.POOLED}
    assert len(made.own[reference.POOLED]) == 1100
    again = reference.from_json(json.loads(json.dumps(reference.to_json(made))))
    assert again.version == made.version
    np.testing.assert_array_equal(again.own[reference.POOLED], made.own[reference.POOLED])


def test_pictures_too_alike_for_mismatched_pairs_still_give_a_reference() -> None:
    made = reference.from_traffic(("a", [x], []) for x in sample(1))
    assert set(made.own) == {"a", reference.POOLED}
    assert made.mismatched == {}


@given(st.lists(st.sampled_from(["", "a", "b"]), min_size=600, max_size=700))
def test_any_traffic_gives_a_reference_that_survives_its_file(kinds: list[str]) -> None:
    values = sample(3, len(kinds))
    made = reference.from_traffic((kind, [x], [x - 1]) for kind, x in zip(kinds, values, strict=True))
    assert reference.from_json(json.loads(json.dumps(reference.to_json(made)))).version == made.version
    assert len(made.own[reference.POOLED]) == len(kinds)
