"""Small exact statistics: intervals for rates, quantiles of fixed histograms. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence

SIM_BINS = 400  # cosine on [-1, 1], 0.005 each: quartile error <= 8e-5 over 200 000 samples
SCORE_BINS = 100  # score on [0, 1]


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
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
    total = sum(hist)
    if total == 0:
        return None
    width = (high - low) / len(hist)
    target, seen = q * total, 0
    for index, count in enumerate(hist):
        if count and seen + count >= target:
            return low + width * (index + max(0.0, target - seen) / count)
        seen += count
    return high


def sim_quartiles(hist: Sequence[int]) -> tuple[float, float, float] | None:
    """Lower quartile, median, upper quartile of a similarity histogram."""
    values = [quantile(hist, q, -1.0, 1.0) for q in (0.25, 0.5, 0.75)]
    if any(v is None for v in values):
        return None
    return values[0], values[1], values[2]  # type: ignore[return-value]
