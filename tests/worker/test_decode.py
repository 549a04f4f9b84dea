"""Hostile and odd images: each is scored right or refused with a reason, and only sacrificial processes ever die."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from cmerwatch_worker import decode, decode_pool
from cmerwatch_worker.decode_pool import Copied, Crashed, Decoded, Job, Outcome, Pool, Refused
from cmerwatch_worker.preprocess import Preprocess
from tests.worker import images, stage

CONFIG = Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_mode="squash")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    opened = Pool(CONFIG, stage.LIMITS, processes=2)
    yield opened
    opened.close()


def _one(pool: Pool, data: bytes, *, display: bool = False) -> Outcome:
    (outcome,) = pool.decode([Job(data, display)])
    return outcome


def _decoded(pool: Pool, data: bytes) -> Decoded:
    outcome = _one(pool, data)
    assert isinstance(outcome, Decoded), outcome
    return outcome


def _pixels(pool: Pool, data: bytes) -> NDArray[np.float64]:
    return _decoded(pool, data).pixels.astype(np.float64)


def _png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a large picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


SCENE = images.scene((256, 192))
PLAIN = images.encoded(SCENE)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(images.encoded(SCENE, "JPEG", quality=95), id="jpeg"),
        pytest.param(images.encoded(SCENE, "WEBP", quality=95), id="webp"),
        pytest.param(images.encoded(SCENE, "GIF"), id="gif"),
        pytest.param(images.encoded(SCENE.convert("CMYK"), "JPEG", quality=95), id="cmyk"),
        pytest.param(images.see_through(SCENE), id="transparent ground over a hidden colour"),
        pytest.param(images.encoded(SCENE.convert("P", palette=Image.Palette.ADAPTIVE)), id="palette"),
        pytest.param(images.encoded(SCENE.convert("RGBA")), id="opaque alpha"),
    ],
)
def test_one_scene_gives_nearly_the_same_pixels_in_every_format(pool: Pool, data: bytes) -> None:
    difference = np.abs(_pixels(pool, data) - _pixels(pool, PLAIN))
    assert difference.mean() < 3


def test_sixteen_bit_grey_is_scaled_and_not_whitened(pool: Pool) -> None:
    plain = _pixels(pool, images.encoded(SCENE.convert("L")))
    assert np.abs(_pixels(pool, images.sixteen_bit(SCENE)) - plain).mean() < 1
    assert plain.min() < 120


def test_a_one_bit_image_and_grey_with_alpha_are_read(pool: Pool) -> None:
    assert _pixels(pool, images.encoded(SCENE.convert("1"))).std() > 20
    grey = SCENE.convert("LA")
    assert np.abs(_pixels(pool, images.encoded(grey)) - _pixels(pool, images.encoded(SCENE.convert("L")))).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_upright_as_exif_says(pool: Pool, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = SCENE.transpose(back[orientation]) if orientation in back else SCENE
    data = images.encoded(stored, exif=exif)
    assert np.abs(_pixels(pool, data) - _pixels(pool, PLAIN)).mean() < 1


def test_a_colour_profile_is_brought_to_srgb_and_a_broken_one_ignored(pool: Pool) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(_pixels(pool, images.encoded(SCENE, icc_profile=profile)) - _pixels(pool, PLAIN)).mean() < 2
    assert np.abs(_pixels(pool, images.encoded(SCENE, icc_profile=b"junk" * 50)) - _pixels(pool, PLAIN)).mean() < 1


def _shaded() -> Image.Image:
    y, x = np.mgrid[0:1:300j, 0:1:300j]
    return Image.fromarray(np.uint8(np.stack([40 + 150 * x, 90 + 60 * y, 200 - 80 * x * y], axis=-1)))


def _noise(size: int, **spread: int) -> Image.Image:
    rng = np.random.default_rng(1)
    levels = rng.normal(128, spread["sd"], (size, size, 3)) if spread else rng.integers(0, 256, (size, size, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "picture",
    [
        _shaded(),
        _noise(256, sd=3),
        _noise(256, sd=25),
        _noise(128).resize((256, 256), Image.Resampling.BICUBIC),
        _noise(64).resize((512, 512), Image.Resampling.NEAREST),
        _noise(512).resize((256, 256), Image.Resampling.LANCZOS),
    ],
    ids=["shaded", "dark noise", "soft noise", "enlarged noise", "noise in blocks", "reduced noise"],
)
def test_noise_of_any_grain_and_a_smoothly_shaded_ground_are_blank(pool: Pool, picture: Image.Image) -> None:
    assert "blank_image" in _decoded(pool, images.encoded(picture)).notes
    assert "blank_image" in _decoded(pool, images.encoded(picture, "JPEG", quality=75)).notes


def test_a_shape_on_a_shaded_ground_and_a_two_tone_pattern_are_not_blank(pool: Pool) -> None:
    shaded = _shaded()
    shaded.paste((220, 40, 40), (100, 100, 130, 130))
    assert _decoded(pool, images.encoded(shaded)).notes == ()
    modules = np.random.default_rng(2).integers(0, 2, (41, 41), np.uint8) * 255
    pattern = Image.fromarray(modules).resize((164, 164), Image.Resampling.NEAREST)
    assert _decoded(pool, images.encoded(pattern)).notes == ()


def test_an_animation_counts_by_its_first_frame_and_is_noted(pool: Pool) -> None:
    other = Image.new("RGB", SCENE.size, "black")
    data = images.encoded(SCENE, "GIF", save_all=True, append_images=[other, SCENE])
    decoded = _decoded(pool, data)
    assert "animated" in decoded.notes
    assert np.abs(decoded.pixels.astype(float) - _pixels(pool, PLAIN)).mean() < 3


@pytest.mark.parametrize("ground", ["white", "black", (12, 200, 90)])
def test_a_uniform_image_is_blank(pool: Pool, ground: str | tuple[int, int, int]) -> None:
    assert "blank_image" in _decoded(pool, images.encoded(Image.new("RGB", (300, 200), ground), "JPEG")).notes


def test_noise_is_blank_and_a_small_shape_on_a_large_ground_is_not(pool: Pool) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), np.uint8)
    assert "blank_image" in _decoded(pool, images.encoded(Image.fromarray(noise))).notes
    large = Image.new("RGB", (1024, 1024), "white")
    large.paste((220, 40, 40), (500, 500, 532, 532))
    assert _decoded(pool, images.encoded(large)).notes == ()


def test_the_display_copy_is_a_small_webp_without_what_came_along(pool: Pool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "<script>alert(1)</script>"
    polyglot = images.encoded(images.scene((3000, 1500)), "JPEG", exif=exif) + b"<script>alert(2)</script>"
    outcome = _one(pool, polyglot, display=True)
    assert isinstance(outcome, Copied)
    display = outcome.display
    shown = Image.open(io.BytesIO(display))
    assert (shown.format, shown.size) == ("WEBP", (1600, 800))
    assert b"script" not in display
    assert not shown.getexif()


@pytest.mark.parametrize(
    "data, reason",
    [
        pytest.param(images.encoded(SCENE, "JPEG")[:2000], "truncated", id="truncated JPEG"),
        pytest.param(PLAIN[: len(PLAIN) // 2], "truncated", id="truncated PNG"),
        pytest.param(_png(10_000, 10_000), "too_many_pixels", id="bomb"),
        pytest.param(_png(20_000, 10), "too_many_pixels", id="too long a side"),
        pytest.param(_png(1_000, 10), "too_narrow", id="strip"),
        pytest.param(_png(2**31 - 1, 2**31 - 1), "too_many_pixels", id="absurd header"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image", id="SVG"),
        pytest.param(images.encoded(SCENE, "TIFF"), "not_an_image", id="TIFF"),
        pytest.param(images.encoded(SCENE, "BMP"), "not_an_image", id="BMP"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", id="EPS"),
        pytest.param(b"", "not_an_image", id="nothing"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_reason(pool: Pool, data: bytes, reason: str) -> None:
    assert _one(pool, data) == Refused(reason)
    assert _one(pool, data, display=True) == Refused(reason)


def test_random_damage_never_reaches_this_process(pool: Pool) -> None:
    rng = random.Random(5)
    whole = [
        images.encoded(SCENE, "JPEG"),
        PLAIN,
        images.encoded(SCENE, "WEBP"),
        images.encoded(SCENE, "GIF", save_all=True, append_images=[SCENE.rotate(90)]),
    ]
    damaged = [_damage(rng, data) for data in whole for _ in range(60)]
    outcomes = pool.decode([Job(data, wants_display) for data in damaged for wants_display in (False, True)])
    assert len(outcomes) == 2 * len(damaged)
    assert {type(outcome) for outcome in outcomes} >= {Decoded, Copied, Refused}
    assert np.array_equal(_pixels(pool, PLAIN), _pixels(pool, PLAIN))


def _damage(rng: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        broken[rng.randrange(8, len(broken))] = rng.randrange(256)
    return bytes(broken[: rng.randint(20, len(broken))] if rng.random() < 0.3 else broken)


@pytest.mark.parametrize(
    "size, opened",
    [((510, 640), (128, 160)), ((500, 640), (250, 320)), ((255, 320), (128, 160)), ((2000, 3000), (250, 375))],
)
def test_a_jpeg_is_opened_at_the_smallest_fraction_that_leaves_twice_the_checkers_size(
    size: tuple[int, int], opened: tuple[int, int]
) -> None:
    data = images.encoded(images.scene(size), "JPEG")
    assert decode.read(data, stage.LIMITS, decode.DRAFT_MARGIN * CONFIG.size).image.size == opened


def test_an_image_is_fetched_only_when_a_decoder_is_free_for_it(pool: Pool) -> None:
    fetched, done = 0, 0

    def jobs() -> Iterator[Job]:
        nonlocal fetched
        for _ in range(12):
            assert fetched - done <= 2  # as many as there are processes
            fetched += 1
            yield Job(PLAIN)

    def progress() -> None:
        nonlocal done
        done += 1

    assert len(pool.decode(jobs(), progress)) == 12


def test_what_fetching_an_image_raises_reaches_the_caller(pool: Pool) -> None:
    def jobs() -> Iterator[Job]:
        yield Job(PLAIN)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        pool.decode(jobs())
    assert isinstance(_one(pool, PLAIN), Decoded)


def _children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "decode" in " ".join(p.cmdline())]


@pytest.fixture
def fragile() -> Iterator[Pool]:
    opened = Pool(CONFIG, stage.LIMITS, processes=1, command=stage.FRAGILE)
    yield opened
    opened.close()


def test_a_decoder_that_dies_fails_its_image_only(fragile: Pool) -> None:
    outcomes = fragile.decode([Job(PLAIN), Job(PLAIN + stage.MARK), Job(PLAIN)])
    assert [type(outcome) for outcome in outcomes] == [Decoded, Crashed, Decoded]


def test_a_decoder_that_hangs_is_killed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "START_SECONDS", 0.2)
    pool = Pool(CONFIG, stage.LIMITS, processes=1, command=(sys.executable, "-c", "import sys; sys.stdin.read()"))
    try:
        assert _one(pool, PLAIN) == Crashed("decode_timeout")
    finally:
        pool.close()


def test_a_decoder_is_replaced_after_its_share_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "IMAGES_PER_PROCESS", 3)
    before = {p.pid for p in _children()}
    pool = Pool(CONFIG, stage.LIMITS, processes=1)
    try:
        (first,) = {p.pid for p in _children()} - before
        assert all(isinstance(outcome, Decoded) for outcome in pool.decode([Job(PLAIN)] * 7))
        (last,) = {p.pid for p in _children()} - before
        assert last != first
    finally:
        pool.close()


def test_decoders_live_under_limits_and_know_no_secrets(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMERWATCH_SECRET_KEY", "do not pass this on")
    before = {p.pid for p in _children()}
    own = Pool(CONFIG, stage.LIMITS, processes=1)
    try:
        _decoded(own, PLAIN)
        (child,) = [p for p in _children() if p.pid not in before]
        assert set(child.environ()) <= {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "PILLOW_BLOCKS_MAX", "LC_CTYPE"}
        assert child.rlimit(psutil.RLIMIT_AS) == (1_500_000_000, 1_500_000_000)
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        soft, _ = child.rlimit(psutil.RLIMIT_CPU)
        assert 5 <= soft <= 5 + 1 + sum(child.cpu_times()[:2]) + 1
        assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()
    finally:
        own.close()


def test_decoders_end_with_their_pool() -> None:
    before = {p.pid for p in _children()}
    pool = Pool(CONFIG, stage.LIMITS, processes=2)
    mine = {p.pid for p in _children()} - before
    assert len(mine) == 2
    pool.close()
    for pid in mine:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
