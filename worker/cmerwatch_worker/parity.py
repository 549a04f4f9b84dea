"""How far a bundle's cosines lie from those of the model it was exported from, on made-up pictures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cmerwatch_worker import preprocess
from cmerwatch_worker.checkers.base import Checker

Array = NDArray[np.float32]

# The useful range of a CLIP cosine is about 0.06 wide: int8 may move a claim by a sixth of it, fp16 by a sixtieth.
LIMITS = {"fp32": 1e-4, "fp16": 1e-3, "int8": 1e-2}
PICTURES = 24
_SENTENCES = (
    "A dog.",
    "Two people sit on a bench in front of a red brick house.",
    "The sign says STOP in white letters.",
    "There are 3 blue bars, and the tallest is at the left.",
    "A man is riding a bicycle down a street at night.",
    "This is a close-up photograph of a plate with rice, vegetables and a fork on a wooden table.",
    "An orange cat sleeps under a green chair next to an open window.",
    "It is raining.",
)


@dataclass(frozen=True, slots=True)
class Parity:
    """`cosine`: the largest difference of an image-text cosine. `image`, `text`: the largest 1 - cosine between the two
    runtimes' vectors of one picture or one text, which sees what untrained towers hide in the first."""

    cosine: float
    image: float
    text: float

    @property
    def worst(self) -> float:
        """NaN, where a runtime answers no number, counts as the worst of all."""
        found = (self.cosine, self.image, self.text)
        return float("inf") if any(np.isnan(found)) else max(found)


def measure(full: Checker, light: Checker) -> Parity:
    """Compare two runtimes of the same weights."""
    shown = np.stack([preprocess.apply(picture, full.preprocess) for picture in pictures()])
    said = sentences(full)
    images = [checker.embed_images(shown) for checker in (full, light)]
    texts = [checker.embed_texts(said) for checker in (full, light)]
    cosines = [a @ b.T for a, b in zip(images, texts, strict=True)]
    return Parity(float(np.abs(cosines[0] - cosines[1]).max()), _apart(images), _apart(texts))


def _apart(rows: Sequence[Array]) -> float:
    return float((1 - (rows[0] * rows[1]).sum(axis=1)).max())


def pictures() -> list[Image.Image]:
    """Gradients, shapes and noise of several sizes, the same every time."""
    rng = np.random.default_rng(17)
    return [_picture(rng, i) for i in range(PICTURES)]


def _picture(rng: np.random.Generator, i: int) -> Image.Image:
    width, height = (int(side) for side in rng.integers(120, 640, 2))
    ramp = np.linspace(0, 255, width)[None, :, None] * rng.random(3) + rng.random((height, 1, 1)) * 80
    noise = rng.normal(0, 40 if i % 3 == 0 else 4, (height, width, 3))
    image = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(i % 5):
        x, y, size = (int(rng.integers(low, high)) for low, high in ((0, width), (0, height), (10, 200)))
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw((x, y, x + size, y + size), fill=colour)
    return image


def sentences(checker: Checker) -> list[str]:
    """Short ones, those of them that fit, and one that fills the context."""
    fitting = [text for text in _SENTENCES if checker.count_tokens(text) <= checker.context_length]
    longest = "dog"
    while checker.count_tokens(f"{longest} dog") <= checker.context_length:
        longest += " dog"
    return [*fitting, longest]
