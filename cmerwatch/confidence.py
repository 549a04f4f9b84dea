"""How sure the model said it was: token logprobs, else what the app reported, else unknown (never 1.0)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from operator import itemgetter

from cmerwatch.shapes import Confidence

# Providers write -9999 for "not among the top tokens". It is a sentinel, not a probability: averaging one in
# would turn a confident answer into an impossible one.
SENTINEL = -9999.0
# Some providers take the request for logprobs and answer one value for every token (0, as after sampling at
# temperature 0). Fewer equal ones can be chance: a sure model rounds to 0.0 several times in a row.
CONSTANT_TOKENS = 8
CONSTANT = "constant_logprobs"

# What the values are, where the sender knows: the model's own, or after temperature and truncation, which makes every
# answer look surer. They share no threshold, so the kind is kept beside the number.
KINDS = ("raw_logprobs", "processed_logprobs")

# Marks of a chat template, no part of the answer.
_MARK = re.compile(r"<\|[^<>|]*\|>|</?s>|<(?:eos|bos|pad|end_of_turn|end_of_utterance)>")
# Words that carry structure and no fact: how unsure a model is of "the" says nothing of what it saw.
_STRUCTURE_WORDS = (
    "a an the is are was were be been being am of in on at to from by with for and or but as that this these those "
    "it its there here which who he she they them his her their we you your i so then than also very just"
)
_STRUCTURE = frozenset(_STRUCTURE_WORDS.split())


def measure(
    logprobs: Sequence[float | None] | None,
    reported: float | None,
    status: str | None = None,
    tokens: Sequence[str] | None = None,
) -> Confidence:
    """Logprobs (natural log, <= 0) beat a reported confidence in [0, 1]; unknown stays None, never 1.0.

    `tokens`, one for each logprob, say which of them `min_p` looks at: those with content, or all where none has.
    """
    texts = tokens if tokens is not None and len(tokens) == len(logprobs or ()) else [None] * len(logprobs or ())
    # Written out instead of called: a call for each of thousands of tokens costs more than all the arithmetic here.
    known = [
        (lp, text)
        for lp, text in zip(logprobs or (), texts, strict=True)
        if lp is not None and lp > SENTINEL and (text is None or "<" not in text or not _is_mark(text))
    ]
    values = [lp for lp, _ in known]
    if values and not _is_constant(values):
        # From the least sure on: asking each of thousands of tokens whether it has content costs most of this.
        unsure = next((lp for lp, text in sorted(known, key=itemgetter(0)) if _has_content(text)), min(values))
        return Confidence(
            geo_p=math.exp(math.fsum(values) / len(values)),
            mean_p=math.fsum(map(math.exp, values)) / len(values),
            min_p=math.exp(unsure),
            n_tokens=len(values),
            status=status if status in KINDS else "present",
        )
    if reported is not None:
        return Confidence(geo_p=reported, status=_unless_present(status) or "reported_by_app")
    return Confidence(status=CONSTANT if values else _unless_present(status) or "not_reported")


def _unless_present(status: str | None) -> str | None:
    """A sender's words about logprobs that turned out to be none are not kept."""
    return None if status == "present" or status in KINDS else status


def _is_mark(token: str) -> bool:
    return _MARK.fullmatch(token.strip()) is not None


def _is_constant(values: Sequence[float]) -> bool:
    return len(values) >= CONSTANT_TOKENS and len(set(values)) == 1


def _has_content(token: str | None) -> bool:
    """Also for the marks that tokenizers put where a word begins."""
    if token is None:
        return True
    word = token.strip(" \t\n▁Ġ").lower()
    return (word.isalnum() or any(c.isalnum() for c in word)) and word not in _STRUCTURE
