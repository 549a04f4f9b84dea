"""The frozen reference of a checker: what claims about their own, and about other, images score."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

    @cached_property
    def own_curves(self) -> dict[str, "Curve"]:
        return {kind: curve(values) for kind, values in self.own.items()}

    @cached_property
    def mismatched_curves(self) -> dict[str, "Curve"]:
        return {kind: curve(values) for kind, values in self.mismatched.items()}

    @cached_property
    def denied_curves(self) -> dict[str, "Curve"]:
        return {kind: curve(-values[::-1]) for kind, values in self.mismatched.items()}


def build(own: Mapping[str, Sequence[float]], mismatched: Mapping[str, Sequence[float]]) -> Reference:
    """Freeze samples of logits by prompt type; the pooled entry is made here of all of them.

    Claims under '' belong to the pool alone: prompt types too rare for an entry of their own. No mismatched claims at
    all are allowed (every picture much like every other): then nothing is said of wrong images.
    ValueError: a sample below MIN_CLAIMS, a number that is not finite, prompt types that differ.
    """
    if any(len(logits) for logits in mismatched.values()) and _named(own) != _named(mismatched):
        raise ValueError(
            f"own and mismatched claims must have the same prompt types: {sorted(own)}, {sorted(mismatched)}"
        )
    return Reference(_frozen(own, "own-image"), _frozen(mismatched, "mismatched", may_be_empty=True))


def _named(samples: Mapping[str, Sequence[float]]) -> set[str]:
    return set(samples) - {POOLED}


def _frozen(
    samples: Mapping[str, Sequence[float]], what: str, may_be_empty: bool = False
) -> dict[str, NDArray[np.float32]]:
    pooled = [logit for prompt_type in sorted(samples) for logit in samples[prompt_type]]
    if may_be_empty and not pooled:
        return {}
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


# --- from the first traffic ------------------------------------------------------------------------------------------

COMMON = 0.1  # a prompt type with this share of the claims is waited for: it gets an entry of its own
PATIENCE = 5000  # own-image claims; a common prompt type has MIN_CLAIMS of these, so nothing is waited for any longer


def is_enough(counts: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a reference can be frozen of so many (own, mismatched) claims by prompt type."""
    own, mismatched = (sum(count[i] for count in counts.values()) for i in (0, 1))
    if own >= PATIENCE:
        return True
    common = [min(count) for count in counts.values() if count[0] >= COMMON * own]
    return own >= MIN_CLAIMS and mismatched >= MIN_CLAIMS and all(count >= MIN_CLAIMS for count in common)


def from_traffic(samples: Iterable[tuple[str, Sequence[float], Sequence[float]]]) -> Reference:
    """Freeze (prompt type, own logits, mismatched logits) of many events; a type too rare goes to the pool.

    ValueError: fewer than MIN_CLAIMS own-image claims.
    """
    own: dict[str, list[float]] = {}
    mismatched: dict[str, list[float]] = {}
    for prompt_type, with_own, with_strangers in samples:
        own.setdefault(prompt_type, []).extend(with_own)
        mismatched.setdefault(prompt_type, []).extend(with_strangers)
    if sum(map(len, mismatched.values())) < MIN_CLAIMS:
        return build(_gathered(own, {t for t in own if len(own[t]) >= MIN_CLAIMS}), {})
    kept = {t for t in own if min(len(own[t]), len(mismatched[t])) >= MIN_CLAIMS}
    return build(_gathered(own, kept), _gathered(mismatched, kept))


def _gathered(samples: Mapping[str, list[float]], kept: set[str]) -> dict[str, list[float]]:
    rest = [logit for prompt_type in sorted(set(samples) - kept) for logit in samples[prompt_type]]
    return {prompt_type: samples[prompt_type] for prompt_type in kept - {POOLED}} | {
        POOLED: rest + (samples[POOLED] if POOLED in kept else [])
    }


# --- percentiles and the score ---------------------------------------------------------------------------------------

TAIL = 0.1  # share of the sample whose spread says how fast it thins out below its lowest value


@dataclass(frozen=True)
class Curve:
    """A sorted sample made ready: its different values, the share at or below each, and the slope of its tail."""

    steps: NDArray[np.float64]
    shares: NDArray[np.float64]
    slope: float
    size: int

    def rank(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Where each logit stands, in (0, 1), so that a fresh one is below u with probability u.

        The k-th lowest of n stands at k / (n + 1), which is what the true share below it averages to; between two the
        rise is even. Below the lowest an exponential tail goes on: without it no claim of an output of more than 25
        could ever be low enough to flag it with 500 claims of reference.
        """
        at = np.asarray(logits, np.float64)
        below = self.shares[0] * np.exp(-np.maximum(self.steps[0] - at, 0) / self.slope)
        found = np.where(at < self.steps[0], below, np.interp(at, self.steps, self.shares))
        return np.clip(found, 1e-12, 1 - 0.5 / (self.size + 1))


def curve(sample: NDArray[np.float32]) -> Curve:
    """Of a sorted sample."""
    steps, counts = np.unique(np.asarray(sample, np.float64), return_counts=True)
    k = max(2, int(len(sample) * TAIL))
    slope = max(float(sample[k - 1] - sample[: k - 1].mean()), 1e-6)
    return Curve(steps, np.cumsum(counts) / (len(sample) + 1), slope, len(sample))


def percentile(reference: Reference, prompt_type: str, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of own-image claims at or below each logit, in (0, 1): low = suspicious."""
    return _of(reference.own_curves, prompt_type).rank(logits)


def mismatch_percentile(
    reference: Reference, prompt_type: str, logits: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """Share of mismatched claims at or below each logit, in (0, 1): low = looks like a wrong image. None: unknown."""
    curves = reference.mismatched_curves
    return _of(curves, prompt_type).rank(logits) if curves else None


def denied_percentile(
    reference: Reference, prompt_type: str, logits: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """For what an output says is not there: the share of mismatched claims at or above each logit. A statement that
    fits better than nearly all foreign ones was denied wrongly. None: unknown."""
    curves = reference.denied_curves
    return _of(curves, prompt_type).rank(-np.asarray(logits, np.float32)) if curves else None


def _of(curves: Mapping[str, Curve], prompt_type: str) -> Curve:
    return curves.get(prompt_type, curves[POOLED])


def score(us: Sequence[float] | NDArray[np.float64]) -> float:
    """One output's score from its n claims' percentiles: 1 - (1 - min u)^n, so length alone never flags.

    ValueError: no claims, or a percentile outside [0, 1].
    """
    values = np.asarray(us, np.float64)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a score needs at least one percentile, each in [0, 1]")
    return float(1 - (1 - values.min()) ** len(values))


def to_json(reference: Reference) -> dict[str, Any]:
    """Plain numbers rounded to 4 digits, far below any step that matters. Of the pool only what no entry holds."""
    return {"own": _plain(reference.own), "mismatched": _plain(reference.mismatched)}


def _plain(samples: Mapping[str, NDArray[np.float32]]) -> dict[str, list[float]]:
    plain = {kind: [round(float(v), 4) for v in values] for kind, values in samples.items() if kind != POOLED}
    pool = Counter(round(float(v), 4) for v in samples.get(POOLED, ()))
    pool.subtract(value for values in plain.values() for value in values)
    rest = sorted(pool.elements())
    return plain | ({POOLED: rest} if rest else {})


def from_json(data: Mapping[str, Any]) -> Reference:
    """Read back what `to_json` gave. ValueError: fewer than MIN_CLAIMS claims or numbers that are not finite."""
    return build(data["own"], data["mismatched"])
