"""The Pillow preprocessing is open_clip's, pixel for pixel."""

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmerwatch_worker import preprocess
from cmerwatch_worker.preprocess import Preprocess

sides = st.integers(1, 300)
configs = st.builds(
    Preprocess,
    size=st.sampled_from((32, 64, 65)),
    mean=st.just((0.48, 0.46, 0.41)),
    std=st.just((0.27, 0.26, 0.28)),
    interpolation=st.sampled_from(("bicubic", "bilinear")),
    resize_mode=st.sampled_from(preprocess.RESIZE_MODES),
    fill=st.sampled_from((0, 114)),
)


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=150, deadline=None)
@given(configs, sides, sides, st.integers(0, 1000))
def test_the_pixels_equal_those_of_open_clips_own_transform(
    cfg: Preprocess, width: int, height: int, seed: int
) -> None:
    if max(width, height) > 40 * min(width, height):
        return  # open_clip's "longest" mode divides such an image down to no pixels at all
    image = noise(width, height, seed)
    theirs = open_clip.image_transform(
        cfg.size, False, cfg.mean, cfg.std, cfg.resize_mode, cfg.interpolation, cfg.fill
    )(image).numpy()  # fmt: skip
    ours = preprocess.normalise(preprocess.apply(image, cfg)[None], cfg)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_image_that_is_not_rgb_is_refused_by_name() -> None:
    cfg = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="not LA"):
        preprocess.apply(Image.new("LA", (8, 8)), cfg)


@pytest.mark.parametrize(
    "wrong, named",
    [({"interpolation": "nearest"}, "interpolation"), ({"resize_mode": "crop"}, "resize_mode"), ({"size": 0}, "size")],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Preprocess(**{"size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), **wrong})  # type: ignore[arg-type]


def test_the_hash_is_the_same_from_json_and_differs_with_any_setting() -> None:
    cfg = Preprocess(32, (0, 0, 0), (1, 1, 1))
    assert Preprocess(32, [0, 0, 0], [1, 1, 1]).hash == cfg.hash  # type: ignore[arg-type]
    others = [Preprocess(33, (0, 0, 0), (1, 1, 1)), Preprocess(32, (0, 0, 0), (1, 1, 1), resize_mode="squash")]
    assert len({cfg.hash, *(other.hash for other in others)}) == 3
