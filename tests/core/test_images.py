"""Image headers are read right for what Pillow writes, and refused by name for everything else."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmerwatch import errors, images

SIDES = st.integers(min_value=1, max_value=300)


def encoded(kind: str, width: int = 3, height: int = 2, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as you like."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WRITTEN = [
    pytest.param("PNG", {}, id="png"),
    pytest.param("PNG", {"mode": "I;16"}, id="png of 16 bits"),
    pytest.param("PNG", {"mode": "RGBA"}, id="png with alpha"),
    pytest.param("JPEG", {}, id="jpeg"),
    pytest.param("JPEG", {"progressive": True}, id="progressive jpeg"),
    pytest.param("JPEG", {"mode": "CMYK"}, id="cmyk jpeg"),
    pytest.param("JPEG", {"exif": b"Exif\x00\x00" + b"\xff\xc0" * 2000, "comment": b"\xff\xc0"}, id="jpeg with exif"),
    pytest.param("WEBP", {}, id="lossy webp"),
    pytest.param("WEBP", {"lossless": True}, id="lossless webp"),
    pytest.param("WEBP", {"mode": "RGBA", "lossless": False}, id="webp with alpha"),
    pytest.param("GIF", {"mode": "P"}, id="gif"),
]


@pytest.mark.parametrize("kind, options", WRITTEN)
@given(width=SIDES, height=SIDES)
@settings(max_examples=15)
def test_the_size_is_what_the_encoder_wrote(kind: str, options: dict[str, object], width: int, height: int) -> None:
    header = images.inspect(encoded(kind, width, height, **options))  # type: ignore[arg-type]
    assert header == images.ImageHeader(kind, width, height)


def test_an_animated_gif_is_taken_for_its_first_frame() -> None:
    frames = [Image.new("P", (7, 5), color) for color in (0, 1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert images.inspect(buffer.getvalue()) == images.ImageHeader("GIF", 7, 5)


def test_a_jpeg_cut_in_half_still_has_its_header() -> None:
    data = encoded("JPEG", 200, 100, quality=95)
    assert images.inspect(data[: len(data) // 2 + 300]).width == 200


def test_a_jpeg_cut_before_its_size_is_refused() -> None:
    with pytest.raises(errors.ImageRefused, match="JPEG but ends or breaks before its size"):
        images.inspect(encoded("JPEG")[:100])


@pytest.mark.parametrize(
    "data, named",
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(encoded("BMP"), "BMP", id="bmp"),
        pytest.param(encoded("TIFF"), "TIFF", id="tiff"),
        pytest.param(encoded("ICO", 16, 16), "ICO", id="ico"),
        pytest.param(encoded("AVIF", 16, 16), "AVIF", id="avif"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", id="svg"),
        pytest.param(b'\xef\xbb\xbf <?xml version="1.0"?>\n<!-- --><SVG onload="x"/>', "SVG", id="svg in xml"),
        pytest.param(b"<!DOCTYPE html><html></html>", "markup", id="html"),
        pytest.param(b"%PDF-1.7", "PDF", id="pdf"),
        pytest.param(b"hello, I am a picture", "not an image", id="text"),
        pytest.param(b"RIFF\x00\x00\x00\x00WAVEfmt ", "not an image", id="wave sound"),
    ],
)
def test_a_format_off_the_list_is_refused_by_name(data: bytes, named: str) -> None:
    with pytest.raises(errors.ImageRefused, match=named) as refused:
        images.inspect(data)
    assert images.ACCEPTED in refused.value.message


def test_a_small_file_claiming_more_than_25_megapixels_is_refused() -> None:
    assert images.inspect(claimed_png(5000, 5000)).width == 5000
    with pytest.raises(errors.ImageRefused, match="25000000") as refused:
        images.inspect(claimed_png(5000, 5001))
    assert refused.value.details["limit"] == 25_000_000


def test_a_side_over_the_limit_is_refused_whatever_the_area() -> None:
    assert images.inspect(claimed_png(16_384, 1)).width == 16_384
    with pytest.raises(errors.ImageRefused, match="16384"):
        images.inspect(claimed_png(1, 16_385))


def test_a_side_of_nothing_is_refused() -> None:
    with pytest.raises(errors.ImageRefused, match="at least 1 pixel"):
        images.inspect(claimed_png(0, 10))


def test_a_jpeg_of_endless_segments_is_given_up() -> None:
    with pytest.raises(errors.ImageRefused, match="breaks before its size"):
        images.inspect(b"\xff\xd8" + b"\xff\xd0" * 1_000_000)


def inspected(data: bytes) -> images.ImageHeader | None:
    try:
        return images.inspect(data)
    except errors.ImageRefused:
        return None


MAGIC = st.sampled_from(
    [b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", b"\xff\xd8\xff", b"GIF89a"]
    + [b"RIFF\x00\x00\x00\x00WEBP" + kind for kind in (b"VP8 ", b"VP8L", b"VP8X")]
)


@given(start=MAGIC, rest=st.binary(max_size=300))
@example(start=b"\xff\xd8\xff", rest=b"\xe0\x00\x00")
@settings(max_examples=500)
def test_hostile_headers_are_read_or_refused_and_never_raise_anything_else(start: bytes, rest: bytes) -> None:
    header = inspected(start + rest)
    if header is not None:
        assert min(header.width, header.height) >= 1
        assert max(header.width, header.height) <= images.Limits().side
        assert header.width * header.height <= images.Limits().pixels


@given(st.data())
@settings(max_examples=300)
def test_a_cut_or_bent_file_never_raises_anything_else(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    inspected(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


FILES = [encoded(case.values[0], 9, 8, **case.values[1]) for case in WRITTEN]  # type: ignore[arg-type]
