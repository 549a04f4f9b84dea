"""Small exact statistics: intervals for rates and AUROC, quantiles of fixed histograms. Numbers in, numbers out."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

SIM_BINS = 400  # cosine on [-1, 1], 0.005 each: quartile error <= 8e-5 over 200 000 samples
SCORE_BINS = 100  # score on [0, 1]


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a rate; (0, 1) when n is 0, because nothing is known."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return max(0.0, low), min(1.0, high)


def sim_bin(similarity: float) -> int:
    """Histogram bin of a cosine; the ends take what rounding pushes over them."""
    return min(SIM_BINS - 1, max(0, int((similarity + 1.0) * SIM_BINS / 2)))


def score_bin(score: float) -> int:
    return min(SCORE_BINS - 1, max(0, int(score * SCORE_BINS)))


def quantile(hist: Sequence[int], q: float, low: float, high: float) -> float | None:
    """The q-quantile of a histogram over [low, high], interpolated within its bin; None when empty."""
    return _quantiles(hist, (q,), low, high)[0] if any(hist) else None


def _quantiles(hist: Sequence[int], shares: Sequence[float], low: float, high: float) -> list[float]:
    """Of a histogram that is not empty. The sums are made once: an answer may hold ten thousand histograms."""
    below = [0, *accumulate(hist)]
    width = (high - low) / len(hist)
    found = []
    for q in shares:
        target = q * below[-1]
        # The first bin that reaches the target; where that is 0, the first with anything in it.
        index = (bisect.bisect_left(below, target) if target > 0 else bisect.bisect_right(below, 0)) - 1
        found.append(low + width * (index + (target - below[index]) / hist[index]))
    return found


def sim_quartiles(hist: Sequence[int], first: int = 0) -> tuple[float, float, float] | None:
    """Lower quartile, median, upper quartile of a similarity histogram; `first` is the bin it begins with."""
    if not any(hist):
        return None
    low, width = -1.0, 2.0 / SIM_BINS
    ends = low + width * first, low + width * (first + len(hist))
    lower, median, upper = _quantiles(hist, (0.25, 0.5, 0.75), *ends)
    return lower, median, upper


def add_up(hists: Iterable[tuple[int, Sequence[int]]], bins: int) -> list[int]:
    """The sum of histograms, each given with the bin it begins with."""
    total = [0] * bins
    for first, hist in hists:
        for at, count in enumerate(hist, first):
            total[at] += count
    return total


@dataclass(frozen=True, slots=True)
class Auroc:
    """Chance that a hallucinated output scores below a correct one, ties counting half, with its 95 % interval."""

    value: float
    low: float
    high: float
    correct: int
    hallucinated: int

    @property
    def includes_chance(self) -> bool:
        return self.low <= 0.5 <= self.high


def auroc(
    correct: Sequence[float],
    hallucinated: Sequence[float],
    correct_groups: Sequence[Hashable] | None = None,
    hallucinated_groups: Sequence[Hashable] | None = None,
    z: float = 1.959964,
) -> Auroc | None:
    """AUROC of scores that are low where suspicious; None unless there are outputs of both kinds.

    The interval is DeLong's, in Obuchowski's form for clusters (1997): outputs of one group, say of one picture, rise
    and fall together, so groups count, not outputs. It is made on the logit scale, which keeps it within (0, 1).
    Where the variance comes out as nothing (a perfect separation, or one single group of a kind), the bound is
    Wilson's for as many independent pairs as there are groups of the rarer kind.
    """
    if not correct or not hallucinated:
        return None
    below, above = sorted(hallucinated), sorted(correct)
    # Each output's own share of pairs won: DeLong's structural components.
    of_correct = [_share_below(below, score) for score in correct]
    of_hallucinated = [1.0 - _share_below(above, score) for score in hallucinated]
    value = math.fsum(of_correct) / len(of_correct)
    first = _by_group(of_correct, correct_groups, "correct", value)
    second = _by_group(of_hallucinated, hallucinated_groups, "hallucinated", value)
    variance = _clustered_variance(first, second, len(correct), len(hallucinated))
    if variance <= 1e-15 or not 0.0 < value < 1.0:
        pairs = min(len(first), len(second))
        low, high = wilson(value * pairs, pairs, z)
    else:
        centre, half = math.log(value / (1 - value)), z * math.sqrt(variance) / (value * (1 - value))
        low, high = _logistic(centre - half), _logistic(centre + half)
    return Auroc(value, low, high, len(correct), len(hallucinated))


def _share_below(ordered: Sequence[float], score: float) -> float:
    return (bisect.bisect_left(ordered, score) + bisect.bisect_right(ordered, score)) / 2 / len(ordered)


def _by_group(
    components: Sequence[float], groups: Sequence[Hashable] | None, kind: str, mean: float
) -> dict[Hashable, float]:
    """Sums of deviations by group; without groups every output is its own, and no group holds both kinds."""
    sums: dict[Hashable, float] = {}
    named: Sequence[Hashable] = groups if groups is not None else [(kind, i) for i in range(len(components))]
    for group, component in zip(named, components, strict=True):
        sums[group] = sums.get(group, 0.0) + component - mean
    return sums


def _clustered_variance(first: dict[Hashable, float], second: dict[Hashable, float], m: int, n: int) -> float:
    """Zero where a kind has a single group: nothing can be said of how groups differ."""
    if len(first) < 2 or len(second) < 2:
        return 0.0
    every = len(first.keys() | second.keys())
    own = len(first) / (len(first) - 1) * math.fsum(a * a for a in first.values()) / m**2
    other = len(second) / (len(second) - 1) * math.fsum(b * b for b in second.values()) / n**2
    both = every / (every - 1) * math.fsum(first[g] * second[g] for g in first.keys() & second.keys()) / (m * n)
    return max(0.0, own + other + 2 * both)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@dataclass(frozen=True, slots=True)
class Budget:
    """What flagging the lowest `share` of the outputs finds. Flagged and caught are expected counts: ties are cut."""

    share: float
    flagged: float
    caught: float
    precision: float
    recall: float


def at_budget(correct: Sequence[float], hallucinated: Sequence[float], share: float) -> Budget | None:
    """Flag the lowest `share` of all scores; of equal scores at the edge each is flagged with the same chance."""
    if not correct or not hallucinated:
        return None
    left = budget = share * (len(correct) + len(hallucinated))
    caught = 0.0
    marked = sorted([(score, 0) for score in correct] + [(score, 1) for score in hallucinated])
    for _, tied in groupby(marked, key=lambda pair: pair[0]):
        wrong = [is_wrong for _, is_wrong in tied]
        taken = min(left, len(wrong))
        caught += sum(wrong) * taken / len(wrong)
        left -= taken
        if left <= 0:
            break
    return Budget(share, budget, caught, caught / budget if budget else 0.0, caught / len(hallucinated))
