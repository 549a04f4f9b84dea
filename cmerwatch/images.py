"""What the first bytes of an image say: its format and size. Never decodes a pixel, and needs no image library.

The server that takes events must not run decoders on strangers' bytes; what only decoding shows (a JPEG cut in half,
a second frame of another size) is the worker's to find, in a process that may die.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cmerwatch import errors

ACCEPTED = "PNG, JPEG, WEBP or GIF"

# A photo's metadata (EXIF, colour profile, comments) takes some tens of segments; this many is an attack on our time.
_MOST_SEGMENTS = 4096

_FILL = re.compile(rb"\xff+")

_REFUSED_MAGIC = (
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"8BPS", "PSD"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"\x1f\x8b", "a gzip file (or SVGZ)"),
)
_ISO_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}


@dataclass(frozen=True, slots=True)
class Limits:
    """In pixels; 25 megapixels decode to 75 MB, which is what the decode child's memory limit is made for."""

    side: int = 16_384
    pixels: int = 25_000_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """`format` is PNG, JPEG, WEBP or GIF; width and height in pixels, as the header states them."""

    format: str
    width: int
    height: int


def inspect(data: bytes, limits: Limits | None = None) -> ImageHeader:
    """Raises ImageRefused for what is not an accepted image, or is larger than the limits."""
    for name, magic, read in _READERS:
        if magic(data):
            try:
                width, height = read(data)
            except (IndexError, ValueError):
                raise errors.ImageRefused(
                    f"image starts like a {name} but ends or breaks before its size. Send the whole file.",
                    format=name,
                ) from None
            _hold_to_limits(width, height, limits or Limits())
            return ImageHeader(name, width, height)
    raise _not_accepted(data)


def _hold_to_limits(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise errors.ImageRefused(f"image size is {width} x {height}; both sides must be at least 1 pixel.", limit=1)
    if max(width, height) > limits.side:
        raise errors.ImageRefused(
            f"image is {width} x {height} pixels; a side may have at most {limits.side}. Scale it down.",
            limit=limits.side,
        )
    if width * height > limits.pixels:
        raise errors.ImageRefused(
            f"image is {width} x {height} = {width * height} pixels; the limit is {limits.pixels}. Scale it down.",
            limit=limits.pixels,
        )


def _not_accepted(data: bytes) -> errors.ImageRefused:
    found = _name_of(data)
    what = f"image is {found}, which is not accepted" if found else "these bytes are not an image"
    return errors.ImageRefused(f"{what}; send {ACCEPTED}.", accepted=["PNG", "JPEG", "WEBP", "GIF"])


def _name_of(data: bytes) -> str | None:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _ISO_BRANDS.get(data[8:12], "an MP4-type file")
    for magic, name in _REFUSED_MAGIC:
        if data.startswith(magic):
            return name
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return "SVG"
    return "markup (SVG, XML or HTML)" if text.startswith((b"<?xml", b"<!", b"<html")) else None


# Each reader returns (width, height), and raises IndexError or ValueError where the bytes end or make no sense.


def _number(data: bytes, at: int, length: int, order: str = "big") -> int:
    if at + length > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + length], "little" if order == "little" else "big")


def _png(data: bytes) -> tuple[int, int]:
    if data[8:16] != b"\x00\x00\x00\x0dIHDR" or len(data) < 33:
        raise ValueError
    return _number(data, 16, 4), _number(data, 20, 4)


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walks the segments up to the frame header (SOF0-15 without DHT, JPG and DAC), which holds the size."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        fill = _FILL.match(data, at)  # any number of fill bytes may stand before a marker
        if not fill:
            raise ValueError
        at = fill.end()
        marker = data[at]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _number(data, at + 6, 2), _number(data, at + 4, 2)
        if marker in (0x00, 0xD8, 0xD9, 0xDA):  # the picture itself, or its end, before any size
            raise ValueError
        at += 1
        if not (marker == 0x01 or 0xD0 <= marker <= 0xD7):  # these two kinds have no length
            length = _number(data, at, 2)
            if length < 2:
                raise ValueError
            at += length
    raise ValueError


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + _number(data, 24, 3, "little"), 1 + _number(data, 27, 3, "little")
    if kind == b"VP8L":
        if data[20] != 0x2F:
            raise ValueError
        bits = _number(data, 21, 4, "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise ValueError
        return _number(data, 26, 2, "little") & 0x3FFF, _number(data, 28, 2, "little") & 0x3FFF
    raise ValueError


def _gif(data: bytes) -> tuple[int, int]:
    """The screen's size: only the first frame is scored, and it is drawn on the screen."""
    if len(data) < 13:
        raise IndexError
    return _number(data, 6, 2, "little"), _number(data, 8, 2, "little")


_READERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], tuple[int, int]]], ...] = (
    ("PNG", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _png),
    ("JPEG", lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg),
    ("WEBP", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    ("GIF", lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _gif),
)
