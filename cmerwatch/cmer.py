"""The cross-modal error rate on plain arrays: the public rule, and the shape of a rate that may be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cmerwatch import intervals


@dataclass(frozen=True, slots=True)
class Rate:
    """A share that never travels without its n and its 95 % Wilson interval; `value` is None when n is 0."""

    successes: int
    n: int

    @property
    def value(self) -> float | None:
        return self.successes / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        return intervals.wilson(self.successes, self.n)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of two vectors of equal length; raises ValueError for unequal lengths, a zero vector, NaN or infinity."""
    if len(a) != len(b):
        raise ValueError(f"the embeddings have {len(a)} and {len(b)} dimensions; they must come from one checker")
    norm = math.hypot(*map(float, a)) * math.hypot(*map(float, b))
    if not math.isfinite(norm):
        raise ValueError("an embedding is not finite; its checker failed on this input")
    if norm == 0:
        raise ValueError("an embedding is all zeros; it has no direction")
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / norm


def cross_modal_error_rate(
    image_emb: Sequence[Sequence[float]],
    text_emb: Sequence[Sequence[float]],
    confidence: Sequence[float | None],
    sim_threshold: float = 0.25,
    conf_threshold: float = 0.8,
) -> float | None:
    """The legacy fixed-cosine CMER (attributed to Skywork): high confidence and low cosine, over known confidences.

    image_emb, text_emb: (n, d) embeddings of CLIP-type checkers; a fixed cosine means nothing for models with a
    logit bias. confidence: n values in [0, 1], None or NaN where unknown (left out).
    Returns None when nothing is left to count.
    """
    if not len(image_emb) == len(text_emb) == len(confidence):
        raise ValueError(
            f"image_emb, text_emb and confidence have {len(image_emb)}, {len(text_emb)} and {len(confidence)} rows; "
            "they must describe the same outputs"
        )
    known = [
        (c > conf_threshold and cosine(image, text) < sim_threshold)
        for image, text, c in zip(image_emb, text_emb, confidence, strict=True)
        if c is not None and not math.isnan(c)
    ]
    return sum(known) / len(known) if known else None
