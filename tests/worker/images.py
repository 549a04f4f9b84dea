"""Real pictures for the worker's tests, and the same picture in every shape that once came out wrong."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def scene(size: tuple[int, int] = (96, 64), ground: str = "white") -> Image.Image:
    """A red circle left of a blue square."""
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.ellipse((width * 0.1, height * 0.25, width * 0.4, height * 0.75), fill=(220, 40, 40))
    draw.rectangle((width * 0.6, height * 0.25, width * 0.9, height * 0.75), fill=(40, 80, 220))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def sixteen_bit(image: Image.Image) -> bytes:
    """The picture's grey as a 16-bit PNG."""
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey))


def see_through(image: Image.Image) -> bytes:
    """White ground made transparent, with a loud colour hidden under it."""
    rgba = np.asarray(image.convert("RGBA")).copy()
    is_ground = (rgba[..., :3] == 255).all(axis=-1)
    rgba[is_ground] = (255, 0, 0, 0)
    return encoded(Image.fromarray(rgba, "RGBA"))
