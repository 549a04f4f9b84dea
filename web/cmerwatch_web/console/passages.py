"""An output cut into what was checked and what was passed over, and its tokens with their probabilities. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Shares of the reference below which a claim is tinted, strongest first: 5 % of matching claims fall under the
# second by construction, so a tint is a reason to look, not a verdict.
TINTS = ((0.01, "t0"), (0.05, "t1"), (0.20, "t2"))
UNSURE = ((0.1, "p0"), (0.5, "p1"))
TOKENS_SHOWN = 600
CLAIMS_SHOWN = (
    200  # marks and rows of the table: an output of 200 000 characters has 14 000, on which a browser works for 10 s
)


@dataclass(frozen=True, slots=True)
class Claim:
    number: int
    similarity: float
    percentile: float | None
    statement: str | None = None  # what was compared, where that is not the text itself
    negated: bool = False  # the output says that it is not so

    @property
    def tint(self) -> str:
        if self.percentile is None:
            return "tn"
        return next((name for below, name in TINTS if self.percentile < below), "t3")


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of the output; `claim` is None for what was not checked."""

    text: str
    claim: Claim | None


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    probability: float | None
    kind: str


def cut(output: str, claims: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """The whole output in order, nothing lost or doubled, whatever the spans are: one that starts inside another
    begins where that ends, one outside the text is dropped."""
    made, at = [], 0
    numbered = [(one["start"], one["end"], _claim(i, one)) for i, one in enumerate(claims, 1)]
    for start, end, claim in sorted(numbered, key=lambda found: (found[0], found[1])):
        start, end = max(start, at), min(end, len(output))
        if start >= end:
            continue
        if start > at:
            made.append(Passage(output[at:start], None))
        made.append(Passage(output[start:end], claim))
        at = end
    if at < len(output):
        made.append(Passage(output[at:], None))
    return made


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """In the order of the check, numbered from 1 as everywhere."""
    return [_claim(number, row) for number, row in enumerate(rows, 1)]


def _claim(number: int, row: Mapping[str, Any]) -> Claim:
    return Claim(
        number, row["similarity"], row.get("percentile"), row.get("statement"), bool(row.get("negated", False))
    )


def weakest(passages: Sequence[Passage]) -> list[Claim]:
    """The CLAIMS_SHOWN claims of lowest cosine, in the order of the text."""
    claims = [part.claim for part in passages if part.claim]
    lowest = sorted(claims, key=lambda claim: claim.similarity)[:CLAIMS_SHOWN]
    return sorted(lowest, key=lambda claim: claim.number)


def marked(passages: Sequence[Passage], claims: Sequence[Claim]) -> list[Passage]:
    """The same text with only these claims marked in it."""
    shown = {claim.number: claim for claim in claims}
    numbered = [(part.claim.number if part.claim and part.claim.number in shown else 0, part.text) for part in passages]
    return [
        Passage("".join(text for _, text in run), shown.get(number))
        for number, run in itertools.groupby(numbered, key=lambda one: one[0])
    ]


def strip(tokens: Sequence[str] | None, logprobs: Sequence[float | None] | None) -> list[Token]:
    """Each token with exp(logprob) and how unsure it was; the first TOKENS_SHOWN, empty without tokens."""
    if not tokens:
        return []
    known = list(logprobs or [None] * len(tokens))
    return [_token(text, lp) for text, lp in zip(tokens[:TOKENS_SHOWN], known, strict=False)]


def _token(text: str, logprob: float | None) -> Token:
    if logprob is None:
        return Token(text, None, "")
    probability = math.exp(min(logprob, 0.0))
    return Token(text, probability, next((name for below, name in UNSURE if probability < below), ""))
