"""From embeddings to a result: pure functions, no database, no model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cmerwatch.shapes import CheckResult, Claimed, ClaimScore
from cmerwatch_worker import claims, contrast, reference
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.reference import Reference

Array = NDArray[np.float32]
T = TypeVar("T")

# A score this low is looked at by the default policy; only then is "why" worth a reason.
LOW_PERCENTILE = 0.05
# The claim fits its picture no better than the typical claim fits a foreign one.
FOREIGN_PERCENTILE = 0.5
# The claim fits its picture like the typical claim of its own.
TYPICAL_PERCENTILE = 0.5


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
        return [row.copy() for row in rows]  # a view that is remembered would keep its whole batch
    except Exception as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return _bisect(embed, items[:middle]) + _bisect(embed, items[middle:])


def is_out_of_memory(error: Exception) -> bool:
    """torch's own error is known by name, since the light worker has no torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def measure(
    event: Claimed,
    pieces: Sequence[claims.Claim],
    images: Array,
    texts: Array,
    reasons: Sequence[str],
) -> CheckResult:
    """Raw cosines, before any reference. `images` (i, d) and `texts` of one event, L2-normalised.

    `texts` has a row for each piece and may have one more, of what the prompt takes for granted. Each text counts by
    its best image.
    """
    if not (np.isfinite(images).all() and np.isfinite(texts).all()):
        return CheckResult(event, "model_error", reasons=("embedding_not_a_number",))
    each = np.clip(texts @ images.T, -1.0, 1.0)
    best = each.max(axis=1).tolist()
    scores = tuple(
        ClaimScore(
            piece.start,
            piece.end,
            best[i],
            statement=piece.statement,
            negated=piece.negated,
            images=tuple(each[i].tolist()) if len(images) > 1 else (),
        )
        for i, piece in enumerate(pieces)
    )
    return CheckResult(
        event,
        "scored",
        similarity=min(claim.similarity for claim in stated(scores) or scores),
        claims=scores,
        reasons=tuple(reasons),
        prompt_similarity=best[len(pieces)] if len(best) > len(pieces) else None,
    )


def with_contrast(
    checker: contrast.Contrasting, result: CheckResult, images: Array, texts: Array, slots: Sequence[Sequence[Array]]
) -> CheckResult:
    """The claims with their margins over their edits; `slots` has the edits' rows of each claim, word by word.

    An edit that comes to no number is no evidence: its claim goes without a margin.
    """
    scores = []
    for claim, text, of_claim in zip(result.claims, texts, slots, strict=False):
        margin = checker.margin(images, text, of_claim)
        scores.append(dataclasses.replace(claim, contrast=margin if np.isfinite(margin) else None))
    return dataclasses.replace(result, claims=tuple(scores))


def stated(scores: Sequence[ClaimScore]) -> list[ClaimScore]:
    """The claims that say what is there. A denied one is right when its cosine is low."""
    return [claim for claim in scores if not claim.negated]


def judge(checker: Checker, frozen: Reference, result: CheckResult) -> CheckResult:
    """The result with percentiles, score and what they give reason to suspect, from its stored cosines alone."""
    return judge_all(checker, frozen, [result])[0]


def judge_all(checker: Checker, frozen: Reference, results: Sequence[CheckResult]) -> list[CheckResult]:
    """`judge` of each that is scored, in their order: one look at the reference for all of a prompt type."""
    judged = list(results)
    by_kind: dict[str, list[int]] = {}
    for i, result in enumerate(results):
        if result.outcome == "scored":
            by_kind.setdefault(result.event.slice.prompt_type, []).append(i)
    for kind, chosen in by_kind.items():
        places = iter(_places(checker, frozen, kind, [results[i] for i in chosen]))
        for i in chosen:
            judged[i] = _judged(results[i], places)
    return judged


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a logit stands among claims with their own image, and among mismatched ones where there are any: from
    below, and from above as what was denied."""

    logit: float
    own: float
    foreign: float | None
    denied: float | None


def _places(checker: Checker, frozen: Reference, kind: str, results: Sequence[CheckResult]) -> list[Place]:
    """Of every claim, and of what the prompt takes for granted after its event's claims."""
    told: list[tuple[float, float | None]] = []
    for result in results:
        told += [(claim.similarity, claim.contrast) for claim in result.claims]
        if result.prompt_similarity is not None:
            told.append((result.prompt_similarity, None))
    logits = contrast.logits(checker, [cosine for cosine, _ in told], [margin for _, margin in told])
    own = reference.percentile(frozen, kind, logits).tolist()
    foreign = reference.mismatch_percentile(frozen, kind, logits)
    denied = reference.denied_percentile(frozen, kind, logits)
    if foreign is None or denied is None:
        return [Place(logit, u, None, None) for logit, u in zip(logits.tolist(), own, strict=True)]
    return list(map(Place, logits.tolist(), own, foreign.tolist(), denied.tolist()))


def _judged(result: CheckResult, places: Iterator[Place]) -> CheckResult:
    """Takes as many places as it has claims, and one more for what its prompt takes for granted."""
    of_claims = list(itertools.islice(places, len(result.claims)))
    claimed = zip(result.claims, of_claims, strict=True)
    stated = (place for claim, place in claimed if not claim.negated)
    lowest = min(stated, key=lambda place: place.logit, default=None)
    reasons = list(result.reasons)
    if lowest is not None and _looks_foreign(lowest):
        reasons.append("wrong_image")
    if result.prompt_similarity is not None and _looks_foreign(next(places)):
        reasons.append("prompt_does_not_fit")
    us = [_percentile(claim, place) for claim, place in zip(result.claims, of_claims, strict=True)]
    return dataclasses.replace(
        result,
        score=reference.score(us),
        mismatch_percentile=None if lowest is None else lowest.foreign,
        claims=tuple(dataclasses.replace(claim, percentile=u) for claim, u in zip(result.claims, us, strict=True)),
        reasons=tuple(reasons),
    )


def _percentile(claim: ClaimScore, place: Place) -> float:
    """u of a claim; of a denied statement its place among mismatched pairs, from above: one that fits like few of
    them was denied wrongly. But what is asked for is seldom as foreign as those (a blue circle where a red one is), so
    it must also fit like the typical claim of its own image; before that, half of such right denials were flagged
    (bench/flag_rates.py). Without mismatched pairs nothing is known of it, which is the middle."""
    if not claim.negated:
        return place.own
    if place.denied is None:
        return 0.5
    return max(place.denied, 0.5) if place.own < TYPICAL_PERCENTILE else place.denied


def _looks_foreign(place: Place) -> bool:
    """Low for its own image, and no better than the typical text about another one."""
    return place.foreign is not None and place.own < LOW_PERCENTILE and place.foreign < FOREIGN_PERCENTILE
