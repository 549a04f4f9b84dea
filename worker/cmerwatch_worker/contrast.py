"""A claim against itself with one thing changed: another number, colour, object, side. Pure functions, for English.

What the picture and the style of a sentence add to its cosine is the same for its edits, so it cancels; where a checker
is blind there is nothing left to see. Off unless asked for: on the demo checker it gains nothing worth ten times the
texts (bench/contrast.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cmerwatch_worker.checkers import base
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.claims import Claim
from cmerwatch_worker.reference import Reference

Array = NDArray[np.float32]

WEIGHT = 0.5  # of the margin beside the logit: the best of 0.5, 1 and 2, by a hair (bench/contrast.py)
EDITS = 4  # per word that can be changed
SLOTS = 4  # words changed per claim: each costs EDITS texts

# fmt: off
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_KINDS: tuple[tuple[str, ...], ...] = (
    ("red", "green", "blue", "yellow", "orange", "purple", "black", "white", "brown", "pink", "grey"),
    ("left", "right"), ("above", "below"), ("top", "bottom"), ("behind", "before"), ("inside", "outside"),
    ("circle", "square", "triangle", "star", "cross"), ("circles", "squares", "triangles", "stars", "crosses"),
    ("man", "woman", "boy", "girl", "child"), ("men", "women", "boys", "girls", "children"),
    ("dog", "cat", "horse", "bird", "cow", "sheep"), ("dogs", "cats", "horses", "birds", "cows", "sheep"),
    ("car", "bus", "truck", "bicycle", "motorcycle", "train"), ("cars", "buses", "trucks", "bicycles", "motorcycles"),
    ("table", "chair", "sofa", "bed", "desk"), ("cup", "bottle", "plate", "bowl", "glass"),
)
# fmt: on
_OTHERS = {word: kind for kind in _KINDS for word in kind}
_WORD = re.compile(r"[A-Za-z]+|\d+")


def edits(text: str) -> list[list[str]]:
    """For each word that can be changed the texts that differ in it alone; [] where there is none."""
    found = []
    for at in _WORD.finditer(text):
        others = list(_others(at.group()))
        if others:
            found.append([text[: at.start()] + other + text[at.end() :] for other in others])
    return found[:SLOTS]


def _others(word: str) -> Iterator[str]:
    lower = word.lower()
    if word.isdigit() and word.isascii() and 1 <= len(word) <= 2 and int(word) > 0:
        n = int(word)
        yield from (str(other) for other in (n + 1, n - 1, n + 2, n - 2) if other > 0)
    elif lower in _WORDS:
        n = _WORDS.index(lower)
        near = (n + 1, n - 1, n + 2, n - 2)
        yield from (_like(word, _WORDS[other]) for other in near if 0 <= other < len(_WORDS))
    elif lower in _OTHERS:
        kind = _OTHERS[lower]
        start = kind.index(lower)
        step = max(1, (len(kind) - 1) // EDITS)
        chosen = [kind[(start + 1 + i * step) % len(kind)] for i in range(min(EDITS, len(kind) - 1))]
        yield from (_like(word, other) for other in chosen)


def _like(word: str, other: str) -> str:
    return other.capitalize() if word[0].isupper() else other


def margin(scale: float, cosine: float, of_edits: Sequence[Sequence[float]]) -> float:
    """The least log share of the text among itself and one word's edits, <= 0; 0.0 where nothing could be changed."""
    return min((_log_share(scale, np.array([cosine, *slot], np.float64)) for slot in of_edits), default=0.0)


def _log_share(scale: float, cosines: NDArray[np.float64]) -> float:
    logits = scale * cosines
    return float(logits[0] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


def logit(checker: Checker, cosine: float, contrast: float | None) -> float:
    """What percentiles are taken of: the checker's logit of the cosine and a part of the margin, in the same unit."""
    return float(logits(checker, [cosine], [contrast])[0])


def logits(checker: Checker, cosines: Sequence[float], contrasts: Sequence[float | None]) -> NDArray[np.float32]:
    """`logit` of many."""
    plain = base.logits(checker, np.array(cosines, np.float32))
    unit = 1.0 if checker.logit_bias is not None else 1.0 / checker.logit_scale
    margins = np.array([contrast or 0.0 for contrast in contrasts], np.float64)
    return np.asarray(plain + WEIGHT * unit * margins, np.float32)


class Contrasting:
    """A checker whose claims are also put against their edits. Its scores are on a scale of their own, so it has a name
    and a reference of its own, which it takes from the first traffic."""

    reference: Reference | None = None

    def __init__(self, checker: Checker) -> None:
        self.id, self.label = f"{checker.id}+contrast", f"{checker.label}, with contrast sets"
        self.is_demo, self.preprocess = checker.is_demo, checker.preprocess
        self.context_length, self.embed_dim = checker.context_length, checker.embed_dim
        self.logit_scale, self.logit_bias = checker.logit_scale, checker.logit_bias
        self.count_tokens, self.can_read = checker.count_tokens, checker.can_read
        self.embed_images, self.embed_texts = checker.embed_images, checker.embed_texts

    def edits(self, claim: Claim) -> list[list[str]]:
        """None for what is denied: there the statement should fit badly, and so should its edits."""
        if claim.negated:
            return []
        fitting = ([t for t in slot if self.count_tokens(t) <= self.context_length] for slot in edits(claim.said))
        return [slot for slot in fitting if slot]

    def margin(self, images: Array, text: Array, slots: Sequence[Array]) -> float:
        """Of one claim (d,) with its best image of (i, d); each slot (k, d)."""
        best = images[int((images @ text).argmax())]
        return margin(self.logit_scale, float(best @ text), [(slot @ best).tolist() for slot in slots])
