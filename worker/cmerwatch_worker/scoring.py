"""From embeddings to a result: pure functions, no database, no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cmerwatch.shapes import CheckResult, Claimed, ClaimScore
from cmerwatch_worker import claims, reference
from cmerwatch_worker.checkers import base
from cmerwatch_worker.checkers.base import Checker

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
    event: Claimed,
    pieces: Sequence[claims.Claim],
    images: Array,
    texts: Array,
    reasons: Sequence[str],
) -> CheckResult:
    """`images` (i, d) and `texts` (c, d) of one event, L2-normalised. Each claim counts by its best image."""
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        return CheckResult(event, "model_error", reasons=("embedding_not_a_number",))
    cosines = np.clip((texts @ images.T).max(axis=1), -1.0, 1.0)
    if checker.reference is None:
        return _result(event, pieces, cosines, None, None, reasons)
    logits = base.logits(checker, cosines)
    kind = event.slice.prompt_type
    own = reference.percentile(checker.reference, kind, logits)
    foreign = reference.mismatch_percentile(checker.reference, kind, logits.min(keepdims=True))
    return _result(event, pieces, cosines, own, float(foreign[0]), reasons)


def _result(
    event: Claimed,
    pieces: Sequence[claims.Claim],
    cosines: Array,
    own: NDArray[np.float64] | None,
    foreign: float | None,
    reasons: Sequence[str],
) -> CheckResult:
    if own is not None and foreign is not None and own.min() < LOW_PERCENTILE and foreign < FOREIGN_PERCENTILE:
        reasons = (*reasons, "wrong_image")
    return CheckResult(
        event,
        "scored",
        similarity=float(cosines.min()),
        score=None if own is None else float(reference.score(own)),
        mismatch_percentile=foreign,
        claims=tuple(
            ClaimScore(piece.start, piece.end, float(cosine), None if own is None else float(own[i]))
            for i, (piece, cosine) in enumerate(zip(pieces, cosines, strict=True))
        ),
        reasons=tuple(reasons),
    )
