"""The output as a reviewer reads it: tinted where the picture supports it poorly, underlined where the model was
unsure, and every stretch numbered by its place in the text, so that a selection can be told to the server. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmerwatch_web.console import passages, text
from cmerwatch_web.console.passages import Claim
from cmerwatch_web.console.review_form import Span

UNDERLINED = 600  # stretches of their own at most: thousands make a browser slow, and nobody reads so many


@dataclass(frozen=True, slots=True)
class Leaf:
    """What becomes one element: `length` characters of the output from `at` on, shown as `shown`."""

    at: int
    length: int
    shown: str
    is_hidden: bool
    unsure: str  # a class of passages.UNSURE, or empty
    probability: float | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A claim with its leaves; `claim` is None for what was not checked."""

    claim: Claim | None
    leaves: list[Leaf]


@dataclass(frozen=True, slots=True)
class Unsure:
    """A token the model was not sure of, and where in the output it stands."""

    start: int
    end: int
    kind: str
    probability: float | None


def weave(output: str, claims: Sequence[Mapping[str, Any]], unsure: Sequence[Unsure] = ()) -> list[Stretch]:
    """The whole output in order, nothing lost or doubled."""
    parts = passages.cut(output, claims)
    made, at = [], 0
    for part in passages.marked(parts, passages.weakest(parts)):
        end = at + len(part.text)
        made.append(Stretch(part.claim, list(_leaves(output, at, end, unsure))))
        at = end
    return made


def untinted(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The places of the claims alone: alike in all that the checker said of them."""
    return [{"start": one["start"], "end": one["end"], "similarity": 0.0} for one in claims]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A stretch to mark as wrong without a script: one that was checked, or one that is marked already."""

    start: int
    end: int
    text: str
    mark: Span | None


SENTENCES = 100  # as many as an answer may have marks


def sentences(output: str, claims: Sequence[Mapping[str, Any]], marks: Sequence[Span]) -> list[Sentence]:
    """In the order of the text, the first SENTENCES, marked ones always."""
    marked = {(mark.start, mark.end): mark for mark in marks}
    places = {(one["start"], one["end"]) for one in claims} - set(marked)
    some = sorted(places)[: max(0, SENTENCES - len(marked))]
    return [
        Sentence(start, end, output[start:end], marked.get((start, end))) for start, end in sorted([*some, *marked])
    ]


def unsure(output: str, tokens: Sequence[str] | None, logprobs: Sequence[float | None] | None) -> list[Unsure] | None:
    """The first UNDERLINED tokens of low probability, placed in the output; None when the tokens do not spell it.

    A server may trim the text it sends and not the tokens, or the other way round: either may hold the other.
    """
    joined = "".join(tokens or ())
    shift = output.find(joined) if len(joined) <= len(output) else -joined.find(output)
    if not tokens or (joined not in output and output not in joined):
        return None
    found = []
    starts = itertools.accumulate(map(len, tokens), initial=shift)
    for token, start in zip(_judged(tokens, logprobs), starts, strict=False):
        begin, end = max(start, 0), min(start + len(token.text), len(output))
        if token.kind and begin < end:
            found.append(Unsure(begin, end, token.kind, token.probability))
    return found[:UNDERLINED]


def _judged(tokens: Sequence[str], logprobs: Sequence[float | None] | None) -> Iterator[passages.Token]:
    for at in range(0, len(tokens), passages.TOKENS_SHOWN):
        some = slice(at, at + passages.TOKENS_SHOWN)
        yield from passages.strip(tokens[some], None if logprobs is None else logprobs[some])


def _leaves(output: str, start: int, end: int, unsure: Sequence[Unsure]) -> Iterator[Leaf]:
    """From start to end, cut wherever an unsure token begins or ends and around every hidden character."""
    here = [one for one in unsure if one.start < end and one.end > start]
    edges = {start, end} | {min(max(edge, start), end) for one in here for edge in (one.start, one.end)}
    for begin, stop in itertools.pairwise(sorted(edges)):
        token = next((one for one in here if one.start <= begin and stop <= one.end), None)
        at = begin
        for piece in text.pieces(output[begin:stop]):
            kind, probability = (token.kind, token.probability) if token else ("", None)
            yield Leaf(at, piece.length, piece.text, piece.is_hidden, kind, probability)
            at += piece.length
