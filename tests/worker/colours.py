"""A tiny true checker for tests: it sees the mean of red, green and blue above the ground, and reads colour words.

Small enough to be faulted on purpose, honest enough that a wrong colour scores lower than the right one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmerwatch import errors
from cmerwatch_worker import reference
from cmerwatch_worker.checkers.base import unit
from cmerwatch_worker.preprocess import Preprocess
from cmerwatch_worker.reference import Reference

WORDS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def frozen() -> Reference:
    """600 claims with their own image near cosine 0.9, 600 with another's near 0.3."""
    rng = np.random.default_rng(7)
    own = np.clip(rng.normal(0.9, 0.05, 600), -1, 1).tolist()
    other = np.clip(rng.normal(0.3, 0.2, 600), -1, 1).tolist()
    return reference.build({"identify": own}, {"identify": other})


class Colours:
    id = "colours:test:0:0"
    label = "test: red, green and blue"
    is_demo = True
    preprocess = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_mode="squash")
    context_length = 16
    embed_dim = 4
    logit_scale = 1.0
    logit_bias: float | None = None

    def __init__(self, reference: Reference | None = None) -> None:
        self.reference = reference
        self.image_calls: list[int] = []
        self.text_calls: list[list[str]] = []

    def count_tokens(self, text: str) -> int:
        return len(re.findall(r"\w+", text)) + 2

    def can_read(self, text: str) -> bool:
        return any(c.isascii() for c in text if c.isalnum())

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.image_calls.append(len(pixels))
        grounds = 255 - pixels.astype(np.float32)  # 0 on white
        missing = grounds.mean((1, 2))
        seen = missing.max(1, keepdims=True) - missing + 1e-3
        return unit(np.concatenate([seen, np.full((len(seen), 1), 1.0, np.float32)], axis=1))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.text_calls.append(list(texts))
        for text in texts:
            if self.count_tokens(text) > self.context_length:
                raise errors.TextTooLong(f"{self.count_tokens(text)} tokens")
        return unit(np.array([self._row(text) for text in texts], np.float32))

    def _row(self, text: str) -> list[float]:
        found = [WORDS[word] for word in re.findall(r"\w+", text.lower()) if word in WORDS]
        return [*np.sum(found, axis=0), 0.2] if found else [0.0, 0.0, 0.0, 1.0]
