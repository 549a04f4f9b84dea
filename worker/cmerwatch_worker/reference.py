"""The frozen reference of a checker: what claims about their own, and about other, images score."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_CLAIMS = 500  # fewer own-image claims than this cannot place the 5 % point to better than about one point
POOLED = ""  # the entry for prompt types the reference has not seen


@dataclass(frozen=True)
class Reference:
    """Sorted logits by prompt type, '' = all of them: claims with their own image, and with another image."""

    own: dict[str, NDArray[np.float32]]
    mismatched: dict[str, NDArray[np.float32]]

    @cached_property
    def version(self) -> str:
        """Twelve hex digits over the content: the same sample has the same version everywhere."""
        canonical = json.dumps(to_json(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def build(own: Mapping[str, Sequence[float]], mismatched: Mapping[str, Sequence[float]]) -> Reference:
    """Freeze samples of logits by prompt type; the pooled entry is made here.

    ValueError: a sample below MIN_CLAIMS, a number that is not finite, prompt types that differ.
    """
    if set(own) != set(mismatched):
        raise ValueError(
            f"own and mismatched claims must have the same prompt types: {sorted(own)}, {sorted(mismatched)}"
        )
    return Reference(_frozen(own, "own-image"), _frozen(mismatched, "mismatched"))


def _frozen(samples: Mapping[str, Sequence[float]], what: str) -> dict[str, NDArray[np.float32]]:
    pooled = [logit for prompt_type in sorted(samples) for logit in samples[prompt_type]]
    frozen = {}
    for prompt_type, logits in {**samples, POOLED: pooled}.items():
        # Rounded as stored, so that a reference is the same before and after its file.
        values = np.round(np.sort(np.asarray(logits, np.float64)), 4).astype(np.float32)
        if len(values) < MIN_CLAIMS:
            raise ValueError(
                f"prompt type {prompt_type!r} has {len(values)} {what} claims; a reference needs {MIN_CLAIMS}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"prompt type {prompt_type!r} has {what} logits that are not finite")
        frozen[prompt_type] = values
    return frozen


def percentile(reference: Reference, prompt_type: str, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of own-image claims at or below each logit, in (0, 1): low = suspicious.

    The +1 counts the claim itself among them, so a fresh claim is below u with probability at most u.
    """
    return _rank(reference.own, prompt_type, logits)


def mismatch_percentile(reference: Reference, prompt_type: str, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of mismatched claims at or below each logit, in (0, 1): low = looks like a wrong image."""
    return _rank(reference.mismatched, prompt_type, logits)


def _rank(
    samples: dict[str, NDArray[np.float32]], prompt_type: str, logits: NDArray[np.float32]
) -> NDArray[np.float64]:
    sample = samples.get(prompt_type, samples[POOLED])
    rank = np.searchsorted(sample, np.asarray(logits, np.float32), side="right")
    return (rank + 1) / (len(sample) + 2)


def score(us: Sequence[float] | NDArray[np.float64]) -> float:
    """One output's score from its n claims' percentiles: 1 - (1 - min u)^n, so length alone never flags.

    ValueError: no claims, or a percentile outside [0, 1].
    """
    values = np.asarray(us, np.float64)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a score needs at least one percentile, each in [0, 1]")
    return float(1 - (1 - values.min()) ** len(values))


def to_json(reference: Reference) -> dict[str, Any]:
    """Plain numbers rounded to 4 digits, far below any step that matters. The pooled entry is left to the reader."""
    plain = {"own": reference.own, "mismatched": reference.mismatched}
    return {
        part: {kind: [round(float(v), 4) for v in values] for kind, values in sets.items() if kind != POOLED}
        for part, sets in plain.items()
    }


def from_json(data: Mapping[str, Any]) -> Reference:
    """Read back what `to_json` gave. ValueError: fewer than MIN_CLAIMS claims or numbers that are not finite."""
    return build(data["own"], data["mismatched"])
