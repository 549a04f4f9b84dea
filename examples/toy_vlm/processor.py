"""Turns pictures into pixels and prompts into token ids with image placeholders."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

PAD, BOS, EOS, SEP, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<sep>", "<unk>", "<image>"
SPECIALS = (PAD, BOS, EOS, SEP, UNKNOWN, IMAGE)

# A piece keeps the space before it, so that joining the pieces gives the text back exactly.
_PIECE = re.compile(r"\s?(?:[A-Za-z]+|\d|[^\w\s])")


def pieces(text: str) -> list[str]:
    """Words, single digits and single signs, each with the space before it."""
    return _PIECE.findall(text)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """The specials, then every piece of `texts` in alphabetical order."""
    return [*SPECIALS, *sorted({piece for text in texts for piece in pieces(text)})]


class Tokenizer:
    """Word level; a word it has never seen becomes `<unk>`."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        self.pad, self.bos, self.eos, self.sep, self.unknown, self.image = (self._ids[special] for special in SPECIALS)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(piece, self.unknown) for piece in pieces(text)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        return [self.words[number] for number in ids]


@dataclass(frozen=True)
class Processor:
    tokenizer: Tokenizer
    image_size: int  # square side in px
    image_tokens: int  # placeholders per picture, one for each patch

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(image_size, image_size, 3); another shape is padded with its corner's colour."""
        flat = _without_alpha(image)
        side = (self.image_size, self.image_size)
        corner = flat.getpixel((0, 0))
        if not isinstance(corner, tuple):
            raise TypeError(f"an RGB picture's pixel has 3 values, this one is {corner!r}")
        return np.asarray(ImageOps.pad(flat, side, Image.Resampling.BICUBIC, color=corner), dtype=np.uint8)

    def pixels_of(self, encoded: bytes) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(encoded)) as image:
            return self.pixels(image)

    def prefix(self) -> list[int]:
        """What stands before every prompt: the start sign and one placeholder per patch."""
        return [self.tokenizer.bos] + [self.tokenizer.image] * self.image_tokens

    def question(self, prompt: str) -> list[int]:
        return [*self.tokenizer.encode(prompt), self.tokenizer.sep]


def _without_alpha(image: Image.Image) -> Image.Image:
    """Transparent pictures stand on white, as a browser would show them."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
