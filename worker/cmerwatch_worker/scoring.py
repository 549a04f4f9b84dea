"""From embeddings to a result: pure functions, no database, no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cmerwatch.shapes import CheckResult, Claimed, ClaimScore
from cmerwatch_worker import claims, reference
from cmerwatch_worker.checkers import base
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.reference import Reference

Array = NDArray[np.float32]
T = TypeVar("T")

# A score this low is looked at by the default policy; only then is "why" worth a reason.
LOW_PERCENTILE = 0.05
# The claim fits its picture no better than the typical claim fits a foreign one.
FOREIGN_PERCENTILE = 0.5


def embed_all(
    embed: Callable[[Sequence[T]], Array], items: Sequence[T], chunk: int, progress: Callable[[], None]
) -> list[Array | Exception]:
    """One embedding per item, or the exception that this item alone raises."""
    done: list[Array | Exception] = []
    for start in range(0, len(items), chunk):
        done.extend(_bisect(embed, items[start : start + chunk]))
        progress()
    return done


def _bisect(embed: Callable[[Sequence[T]], Array], items: Sequence[T]) -> list[Array | Exception]:
    """A batch that runs out of memory or holds a bad item is halved until the rest is through: log2(n) extra calls."""
    try:
        rows = np.asarray(embed(items), np.float32)
        if rows.ndim != 2 or len(rows) != len(items):
            raise ValueError(f"the checker answered {len(items)} items with the shape {rows.shape}")
        return list(rows)
    except Exception as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return _bisect(embed, items[:middle]) + _bisect(embed, items[middle:])


def is_out_of_memory(error: Exception) -> bool:
    """torch's own error is known by name, since the light worker has no torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def score_event(
    checker: Checker,
    frozen: Reference | None,
    event: Claimed,
    pieces: Sequence[claims.Claim],
    images: Array,
    texts: Array,
    reasons: Sequence[str],
) -> CheckResult:
    """`images` (i, d) and `texts` (c, d) of one event, L2-normalised. Each claim counts by its best image.

    Without a reference only raw cosines are known, and `judge` says the rest once there is one.
    """
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        return CheckResult(event, "model_error", reasons=("embedding_not_a_number",))
    each = np.clip(texts @ images.T, -1.0, 1.0)
    best = each.max(axis=1)
    result = CheckResult(
        event,
        "scored",
        similarity=float(best.min()),
        claims=tuple(
            ClaimScore(
                piece.start,
                piece.end,
                float(best[i]),
                images=tuple(each[i].tolist()) if len(images) > 1 else (),
            )
            for i, piece in enumerate(pieces)
        ),
        reasons=tuple(reasons),
    )
    return result if frozen is None else judge(checker, frozen, result)


def judge(checker: Checker, frozen: Reference, result: CheckResult) -> CheckResult:
    """The result with percentiles, score and what they give reason to suspect, from its stored cosines alone."""
    kind = result.event.slice.prompt_type
    logits = base.logits(checker, np.array([claim.similarity for claim in result.claims], np.float32))
    own = reference.percentile(frozen, kind, logits)
    foreign = reference.mismatch_percentile(frozen, kind, logits.min(keepdims=True))
    fits_no_better = foreign is not None and foreign[0] < FOREIGN_PERCENTILE
    return dataclasses.replace(
        result,
        score=reference.score(own),
        mismatch_percentile=None if foreign is None else float(foreign[0]),
        claims=tuple(
            dataclasses.replace(claim, percentile=float(u)) for claim, u in zip(result.claims, own, strict=True)
        ),
        reasons=(*result.reasons, "wrong_image") if own.min() < LOW_PERCENTILE and fits_no_better else result.reasons,
    )
