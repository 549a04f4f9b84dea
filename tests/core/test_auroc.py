"""AUROC against its definition, its interval against simulation, and budgets against counting by hand."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import intervals

SCORES = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30)
SEEN_AS_AVERAGE = 0.8143  # of the simulation below: Phi(1.264 / sqrt(2))


def measured(correct: list[float], hallucinated: list[float], **groups: list[int]) -> intervals.Auroc:
    found = intervals.auroc(correct, hallucinated, **groups)  # type: ignore[arg-type]
    assert found is not None
    return found


@given(SCORES, SCORES)
def test_it_is_the_share_of_pairs_in_the_right_order(correct: list[float], hallucinated: list[float]) -> None:
    pairs = [1.0 if h < c else 0.5 if h == c else 0.0 for c in correct for h in hallucinated]
    found = measured(correct, hallucinated)
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1
    assert (found.correct, found.hallucinated) == (len(correct), len(hallucinated))


def test_the_variance_is_delongs() -> None:
    """By the definition: the sample variances of each kind's own shares of pairs won."""
    rng = random.Random(1)
    correct, hallucinated = [rng.gauss(1, 1) for _ in range(40)], [rng.gauss(0, 1) for _ in range(25)]
    own = [statistics.fmean(h < c for h in hallucinated) for c in correct]
    other = [statistics.fmean(h < c for c in correct) for h in hallucinated]
    variance = statistics.variance(own) / 40 + statistics.variance(other) / 25
    found = measured(correct, hallucinated)
    logit = statistics.NormalDist().inv_cdf(0.975) * variance**0.5 / (found.value * (1 - found.value))
    odds = found.value / (1 - found.value)
    assert found.high / (1 - found.high) == pytest.approx(odds * 2.718281828459045**logit, rel=1e-4)
    assert found.low / (1 - found.low) == pytest.approx(odds / 2.718281828459045**logit, rel=1e-4)


def draw(rng: random.Random, pictures: int, shared: float) -> dict[str, list[float] | list[int]]:
    """Each picture gives three correct and two hallucinated outputs that share some of their noise."""
    correct, hallucinated, of_correct, of_hallucinated = [], [], list[int](), list[int]()
    for picture in range(pictures):
        common, other = rng.gauss(0, shared**0.5), rng.gauss(0, shared**0.5)
        for _ in range(3):
            correct.append(1.264 + common + rng.gauss(0, (1 - shared) ** 0.5))
            of_correct.append(picture)
        for _ in range(2):
            hallucinated.append(other + rng.gauss(0, (1 - shared) ** 0.5))
            of_hallucinated.append(picture)
    return {
        "correct": correct,
        "hallucinated": hallucinated,
        "correct_groups": of_correct,
        "hallucinated_groups": of_hallucinated,
    }


def coverage(shared: float, by_picture: bool) -> float:
    rng, hits = random.Random(11), 0
    for _ in range(300):
        drawn = draw(rng, 30, shared)
        if not by_picture:
            drawn = {name: drawn[name] for name in ("correct", "hallucinated")}
        found = intervals.auroc(**drawn)  # type: ignore[arg-type]
        assert found is not None
        hits += found.low <= SEEN_AS_AVERAGE <= found.high
    return hits / 300


def test_the_interval_holds_the_truth_19_times_in_20() -> None:
    assert 0.92 <= coverage(shared=0.0, by_picture=False) <= 0.98


def test_outputs_of_one_picture_count_as_one_picture() -> None:
    assert 0.92 <= coverage(shared=0.8, by_picture=True) <= 0.98
    # What grouping is for: taken as independent the same outputs would promise far too much.
    assert coverage(shared=0.8, by_picture=False) < 0.88


def test_a_perfect_separation_of_few_outputs_is_not_called_certain() -> None:
    found = measured([3.0] * 10, [1.0] * 200)
    assert found.value == 1
    assert found.high == 1
    assert found.low == pytest.approx(intervals.wilson(10, 10)[0])


def test_a_checker_that_says_always_the_same_is_at_chance() -> None:
    found = measured([0.3] * 50, [0.3] * 50)
    assert found.value == 0.5
    assert found.includes_chance


def test_one_picture_alone_proves_nothing() -> None:
    found = measured([0.9, 0.8, 0.7], [0.1, 0.75], correct_groups=[1, 1, 1], hallucinated_groups=[1, 1])
    assert found.includes_chance


def test_without_outputs_of_both_kinds_there_is_no_auroc() -> None:
    assert intervals.auroc([], [0.1]) is None
    assert intervals.auroc([0.1], []) is None
    assert intervals.at_budget([], [0.1], 0.1) is None


def test_a_budget_flags_the_lowest_scores() -> None:
    found = intervals.at_budget([0.2, 0.5, 0.6, 0.7, 0.8, 0.9], [0.1, 0.3, 0.4, 0.95], 0.3)
    assert found is not None
    assert (found.flagged, found.caught) == (pytest.approx(3), pytest.approx(2))
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 4)


def test_equal_scores_at_the_edge_of_a_budget_are_flagged_in_proportion() -> None:
    found = intervals.at_budget([0.5] * 60, [0.5] * 40, 0.1)
    assert found is not None
    assert found.precision == pytest.approx(0.4)
    assert found.recall == pytest.approx(0.1)


@given(SCORES, SCORES, st.floats(0.01, 1.0))
def test_a_budget_never_finds_more_than_there_is(correct: list[float], hallucinated: list[float], share: float) -> None:
    found = intervals.at_budget(correct, hallucinated, share)
    assert found is not None
    assert 0 <= found.caught <= min(found.flagged, len(hallucinated)) + 1e-9
