"""From a decoded picture to a checker's pixels with Pillow alone, exactly as open_clip's image transform does it."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")


@dataclass(frozen=True)
class Preprocess:
    """open_clip's PreprocessCfg for square RGB input. `size` in px; `mean`, `std` of channels in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}, not {self.interpolation!r}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode must be one of {', '.join(RESIZE_MODES)}, not {self.resize_mode!r}")
        if not 1 <= self.size <= 2048:
            raise ValueError(f"size must be 1 to 2048 px, not {self.size}")
        # JSON gives lists; tuples keep the class hashable and the hash below the same for both.
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))

    @property
    def hash(self) -> str:
        """Eight hex digits over the canonical JSON; part of a checker's id."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def apply(image: Image.Image, cfg: Preprocess) -> NDArray[np.uint8]:
    """Resize, crop or pad an RGB image to (size, size, 3) uint8. ValueError: another mode than RGB."""
    if image.mode != "RGB":
        raise ValueError(f"preprocess wants an RGB image, not {image.mode}; convert it where colours are understood")
    resampling = _RESAMPLING[cfg.interpolation]
    if cfg.resize_mode == "squash":
        resized = image.resize((cfg.size, cfg.size), resampling)
    elif cfg.resize_mode == "shortest":
        resized = _crop(image.resize(_shortest(image.size, cfg.size), resampling), cfg.size)
    else:
        resized = _pad(image.resize(_longest(image.size, cfg.size), resampling), cfg.size, cfg.fill)
    return np.asarray(resized, dtype=np.uint8)


def normalise(pixels: NDArray[np.uint8], cfg: Preprocess) -> NDArray[np.float32]:
    """(n, size, size, 3) uint8 -> (n, 3, size, size) float32, ready for an image tower."""
    mean, std = np.array(cfg.mean, np.float32), np.array(cfg.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def _shortest(size: tuple[int, int], target: int) -> tuple[int, int]:
    width, height = size
    # Truncation, not rounding: torchvision's Resize does it so, and one pixel moves the crop.
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _longest(size: tuple[int, int], target: int) -> tuple[int, int]:
    ratio = max(size) / target
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _crop(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, size: int, fill: int) -> Image.Image:
    canvas = Image.new("RGB", (size, size), (fill, fill, fill))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas
