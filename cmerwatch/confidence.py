"""How sure the model said it was: token logprobs, else what the app reported, else unknown (never 1.0)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cmerwatch.shapes import Confidence

# Providers write -9999 for "not among the top tokens". It is a sentinel, not a probability: averaging one in
# would turn a confident answer into an impossible one.
SENTINEL = -9999.0


def measure(logprobs: Sequence[float | None] | None, reported: float | None, status: str | None = None) -> Confidence:
    """Logprobs (natural log, <= 0) beat a reported confidence in [0, 1]; unknown stays None, never 1.0."""
    known = [lp for lp in logprobs or () if lp is not None and lp > SENTINEL]
    if known:
        return Confidence(
            geo_p=math.exp(math.fsum(known) / len(known)),
            mean_p=math.fsum(map(math.exp, known)) / len(known),
            min_p=math.exp(min(known)),
            n_tokens=len(known),
            status="present",
        )
    if reported is not None:
        return Confidence(geo_p=reported, status=status or "reported_by_app")
    return Confidence(status=status or "not_reported")
