"""The sacrificial process that parses untrusted image bytes, so that the worker never does: `python -m` this module.

It has no secrets in its environment, writes no files, and lives under limits of memory, processor time and wall clock
(decode_pool.py). Whatever Pillow raises becomes a refusal with a short reason; a crash costs this process only.

Request on stdin:  `>I?` length, wants_display; then the bytes.
Answer on stdout:  `>II` lengths of a JSON head and of what was asked for, pixels or a display copy; then these two.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import os
import resource
import struct
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from cmerwatch_worker import preprocess
from cmerwatch_worker.preprocess import Preprocess

Levels = NDArray[np.float32]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_PLUGINS = (GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)  # loaded before the limits are set

REQUEST = struct.Struct(">I?")
ANSWER = struct.Struct(">II")

# A JPEG is decoded at no less than this many times the checker's size; the rest is its own resampling's to do. At 2 the
# demo checker's percentiles move by 0.005 on average, at 3 by 0.003, at 1 by 0.011 (bench/worker.py --draft).
DRAFT_MARGIN = 2
DRAFT_SCALES = (8, 4, 2)  # what libjpeg does by leaving coefficients out

MEMORY_BYTES = 1_500_000_000
CPU_SECONDS = 5
DISPLAY_SIDE = 1600
# A strip 50 times longer than wide shows a checker nothing, and resizing its short side to the checker's size would
# make it a thousand times larger.
MAX_ASPECT = 50

# Near-uniform: averaged over a 64 x 64 grid, and without the smooth shading of an empty wall or a covered lens, no
# channel varies by more than 8 of 255 levels, which is what JPEG and sensor noise leave. One 32 px shape on a 1024 px
# scene still moves its cells by far more.
GRID, BLANK_RANGE = 64, 8
GRID_ROWS = (32, 16, 48, 24, 40)  # where most pictures show something
# Noise: neighbouring pixels as different as strangers. Var(difference) / 2 Var is 1 for white noise; photographs,
# drawings and dense print stay under 0.7 in one direction at least. Enlarged noise is white again once it is reduced.
NOISE_RATIO = (0.75, 1.3)
NOISE_SCALES = (1, 2, 4, 8)
NOISE_VARIANCE = 100  # below it a flat middle with sensor noise would pass for noise
# A two-tone pattern, such as a QR code, has kurtosis 1; noise 1.8 (uniform) to 3 (normal).
NOISE_KURTOSIS = 1.5


class Refused(Exception):
    """The image cannot be scored; the argument is a short reason code."""


@dataclass(frozen=True)
class Limits:
    max_pixels: int
    max_side: int


@dataclass(frozen=True)
class Scene:
    """What one image came to: an upright sRGB picture on white, and what is odd about it."""

    image: Image.Image
    notes: tuple[str, ...]
    shrunk: int  # how many times smaller than the file says a JPEG was decoded; 1: exactly


def read(data: bytes, limits: Limits, side: int | None = None) -> Scene:
    """Decode hostile bytes. Raises Refused with the reason.

    `side`: no side has to come out longer than this many px, so that a large JPEG may be decoded at a half, a quarter
    or an eighth: a quarter of the time and less.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow's own limit only warns at first; ours, on the header, comes before any pixel is made.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _read(data, limits, side)
    except Refused:
        raise
    except MemoryError:
        raise Refused("out_of_memory") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused("too_many_pixels") from None
    except UnidentifiedImageError:
        raise Refused("not_an_image") from None
    except Exception as error:
        is_short = "truncated" in str(error).lower() or "end of" in str(error).lower()
        raise Refused("truncated" if is_short else "cannot_decode") from None


def _read(data: bytes, limits: Limits, side: int | None) -> Scene:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise Refused("too_many_pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused("too_narrow")
    notes = ["animated"] if _is_animated(image) else []
    if side is not None:
        _draft(image, side)
    image.load()
    return Scene(_upright(image), tuple(notes), round(width / image.width))


def _draft(image: Image.Image, side: int) -> None:
    """Have a JPEG decoded at the smallest scale that leaves no side shorter than `side`. Sides are rounded up there,
    so that 510 px count as 128 at a quarter, which Pillow's own choice would not."""
    for scale in DRAFT_SCALES:
        if math.ceil(min(image.size) / scale) >= side:
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _is_animated(image: Image.Image) -> bool:
    """Also goes back to the first frame. A broken second frame does not spoil the first."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return True
    finally:
        image.seek(0)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """8-bit sRGB on white, turned as its EXIF orientation says. Profiles and EXIF that cannot be read are ignored."""
    turn = None
    with contextlib.suppress(Exception):
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    rgb = _to_srgb(image, image.info.get("icc_profile"))
    return rgb if turn is None else rgb.transpose(turn)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode == "CMYK":
        return _through_profile(image, profile) or image.convert("RGB")
    if image.mode != "RGB" or "transparency" in image.info:
        # Plain convert("RGB") would show what colours lie hidden under full transparency.
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(ground, rgba).convert("RGB")
    return _through_profile(image, profile) or image


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit and deeper greys: scaled, because convert("RGB") clips at 255 and whitens 99 % of such an image."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    is_deep = image.mode.startswith("I;16") or values.max(initial=0) > 255
    grey = np.clip(np.rint(values / 257 if is_deep else values), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _through_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture's colours as sRGB; None where there is no usable profile for its mode."""
    if not profile:
        return None
    with contextlib.suppress(Exception):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() == image.mode:
            target = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    return None


def is_blank(scene: Scene) -> bool:
    """Near-uniform or noise: the cheapest sign of a picture that never reached the model."""
    image, shrunk = scene.image, scene.shrunk
    if _is_uniform(image):
        return True
    grey = _middle(image, 256 // shrunk)
    # Of a picture decoded at a quarter only noise of that grain is left, with a sixteenth of its variance.
    scales = [scale // shrunk for scale in NOISE_SCALES if scale >= shrunk]
    is_noise = any(_is_noise(_levels(grey.reduce(scale)), NOISE_VARIANCE / shrunk**2) for scale in scales)
    return is_noise and not _is_two_tone(_levels(grey))


def _is_uniform(image: Image.Image) -> bool:
    # To average the whole picture costs as much as a checker's resizing; a few rows of the grid tell nearly every
    # picture that is not blank.
    if any(_has_edges(image, row) for row in GRID_ROWS):
        return False
    cells = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), np.float64)
    return float(np.ptp(_unshaded(cells), axis=(0, 1)).max()) <= BLANK_RANGE


def _has_edges(image: Image.Image, row: int) -> bool:
    """Whether this row of the grid alone rules out that the picture is near-uniform.

    A third difference along a row is 0 of any quadratic shading and at most 4 times the range of what varies besides,
    as its weights are 1, -3, 3, -1. One range more is for rounding.
    """
    band = (0, row * image.height / GRID, image.width, (row + 1) * image.height / GRID)
    cells = np.asarray(image.resize((GRID, 1), Image.Resampling.BOX, box=band), np.int16)[0]
    return int(np.abs(np.diff(cells, n=3, axis=0)).max()) > 5 * BLANK_RANGE


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    return image.crop((left, top, min(left + side, image.width), min(top + side, image.height))).convert("L")


def _levels(grey: Image.Image) -> Levels:
    """Single precision and centred: a tenth of the time of double, and sums of squares stay exact to six digits."""
    levels = np.asarray(grey, np.float32)
    return np.asarray(levels - levels.mean(), np.float32)


def _is_two_tone(grey: Levels) -> bool:
    squared = grey * grey
    return _mean_square(squared) < NOISE_KURTOSIS * float(squared.mean()) ** 2


def _surface() -> NDArray[np.float64]:
    """Constant, slopes and curvatures over the grid, as orthonormal columns."""
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
    columns = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    return np.asarray(np.linalg.qr(columns)[0], np.float64)


_SHADING = _surface()


def _unshaded(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """(GRID, GRID, 3) without the quadratic surface that fits each channel best."""
    flat = cells.reshape(-1, cells.shape[-1])
    return np.asarray((flat - _SHADING @ (_SHADING.T @ flat)).reshape(cells.shape), np.float64)


def _is_noise(grey: Levels, floor: float) -> bool:
    """Of centred levels."""
    if min(grey.shape) < 16:
        return False
    variance = _mean_square(grey)
    if variance < floor:
        return False
    ratios = (_variance(np.diff(grey, axis=axis)) / (2 * variance) for axis in (0, 1))
    return all(NOISE_RATIO[0] <= ratio <= NOISE_RATIO[1] for ratio in ratios)


def _variance(values: Levels) -> float:
    return _mean_square(values) - float(values.mean()) ** 2


def _mean_square(values: Levels) -> float:
    """A dot product: no array of squares is made."""
    flat = values.ravel()
    return float(flat @ flat) / flat.size


def pixels_of(data: bytes, limits: Limits, config: Preprocess) -> tuple[tuple[str, ...], bytes]:
    """What is odd about an image, and what a checker sees of it."""
    scene = read(data, limits, DRAFT_MARGIN * config.size)
    notes = (*scene.notes, "blank_image") if is_blank(scene) else scene.notes
    return notes, np.ascontiguousarray(preprocess.apply(scene.image, config), np.uint8).tobytes()


def display_copy(data: bytes, limits: Limits) -> bytes:
    """What people are shown: WebP, at most 1600 px, without EXIF or anything that came along in the file.

    Method 0 takes two thirds of the time of method 1 and a twentieth more bytes.
    """
    shown = read(data, limits, DISPLAY_SIDE).image
    shown.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    shown.save(out, "WEBP", quality=85, method=0, exif=b"", icc_profile=None)
    return out.getvalue()


# --- the process -------------------------------------------------------------------------------------------------


def restrict() -> None:
    """Limits that hold for the whole life of this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    with contextlib.suppress(AttributeError, OSError):  # Linux only: nothing run from here can gain rights
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def _allow_one_job() -> None:
    """RLIMIT_CPU counts the whole life of a process, so each job moves the line. Over it the kernel kills us."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def answer(data: bytes, wants_display: bool, limits: Limits, config: Preprocess) -> bytes:
    """One decoded image as it goes over the pipe."""
    head: dict[str, Any] = {}
    body = b""
    try:
        if wants_display:
            body = display_copy(data, limits)
        else:
            head["notes"], body = pixels_of(data, limits, config)
    except Refused as refused:
        head = {"refused": str(refused)}
    except MemoryError:
        head = {"refused": "out_of_memory"}
    except Exception:
        head = {"refused": "cannot_decode"}
    encoded = json.dumps(head).encode()
    return ANSWER.pack(len(encoded), len(body)) + encoded + body


def serve(source: BinaryIO, sink: BinaryIO, limits: Limits, config: Preprocess) -> None:
    """Answer requests until the pipe closes, which is how the worker's end, however it comes, ends this process."""
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        length, wants_display = REQUEST.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        _allow_one_job()
        sink.write(answer(data, wants_display, limits, config))
        sink.flush()


def main() -> None:
    given = json.loads(sys.argv[1])
    config = Preprocess(**given["preprocess"])
    os.nice(given["nice"])
    restrict()
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), Limits(**given["limits"]), config)


if __name__ == "__main__":
    main()
