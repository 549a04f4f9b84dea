"""Pictures as the app holds them -> bytes ready to send. Everything but `weigh` runs on the sending thread."""

import binascii
import hashlib
import io
import os
import re
import stat
import sys
import time
from typing import Any

from cmerwatch.sdk.events import Image, Invalid

MAX_IMAGE_BYTES = 32 << 20  # the server takes no larger request
# Decoding base64 holds the GIL: 32 KB take about 0.15 ms. A multiple of 4, so that slices decode on their own.
SLICE = 32 << 10
SHA256 = re.compile(r"[0-9a-f]{64}")
BASE64_HEADER = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+-]+=[\w.+\"-]*)*;base64", re.IGNORECASE)
MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def weigh(source: object) -> int:
    """Bytes of memory a picture keeps alive while it waits; O(1), touches no pixel and no file."""
    if source is None or isinstance(source, (bytes, str)):
        return sys.getsizeof(source)
    if isinstance(source, memoryview):
        return source.nbytes
    if isinstance(source, dict):
        return sys.getsizeof(source) + sys.getsizeof(source.get("url"))  # which may be a data URI
    if _is_pil(source):
        width, height = source.size  # type: ignore[attr-defined]
        return int(width * height * 4)
    return sys.getsizeof(source)


def load(source: object) -> Image:
    """source: bytes, a path, a data URI, an http(s) URL, a PIL image, `{"url"}` or `{"sha256"}`.

    Raises Invalid when it is none of these, or cannot be read, or is over 32 MiB.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image(data=_bounded(bytes(source)))
    if isinstance(source, dict):
        return _reference(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return Image(data=_bounded(_decode_data_uri(source)))
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        return Image(url=source)
    if isinstance(source, (str, os.PathLike)):
        return Image(data=_bounded(_read(source)))
    if _is_pil(source):
        return Image(data=_bounded(_encode_png(source)))
    raise Invalid(
        "image must be bytes, a path, a data URI, an http(s) URL, a PIL image, {'url'} or {'sha256'}, "
        f"not {type(source).__name__}"
    )


def digest(data: bytes) -> str:
    # One call, not slices: hashing lets go of the GIL for the whole buffer.
    return hashlib.sha256(data).hexdigest()


def content_type(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC if data.startswith(magic)), "application/octet-stream")


def _reference(source: dict[Any, Any]) -> Image:
    sha256, url = source.get("sha256"), source.get("url")
    if isinstance(sha256, str) and SHA256.fullmatch(sha256):
        return Image(sha256=sha256)
    if isinstance(url, str):
        return load(url) if url[:5].lower() in ("data:", "http:", "https") else _refuse_url()
    raise Invalid("image given as a dict needs 'url', or 'sha256' with 64 lowercase hex digits")


def _refuse_url() -> Image:
    raise Invalid("image 'url' must start with http://, https:// or data:")


def _decode_data_uri(uri: str) -> bytes:
    comma = uri.find(",", 0, 256)
    if comma < 0 or not BASE64_HEADER.fullmatch(uri, 0, comma):
        raise Invalid("image data URI must read 'data:<type>;base64,<data>'")
    try:
        encoded = uri[comma + 1 :].encode("ascii")
        if b"\n" in encoded or b" " in encoded:
            encoded = b"".join(encoded.split())
        return b"".join(map(_decode_slice, (encoded[at : at + SLICE] for at in range(0, len(encoded), SLICE))))
    except ValueError:
        raise Invalid("image data URI does not hold valid base64") from None


def _decode_slice(encoded: bytes) -> bytes:
    time.sleep(1e-6)  # lets go of the GIL: a thread of the app that waits for it would else do so for 5 ms
    return binascii.a2b_base64(encoded, strict_mode=True)  # else junk is skipped, and what is left is no picture


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device could block this thread for ever
            raise Invalid("image path is not a regular file")
        if status.st_size > MAX_IMAGE_BYTES:
            raise Invalid("image is over 32 MiB")
        with open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Invalid(f"image file could not be read ({type(error).__name__})") from None


def _encode_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        # PNG has no CMYK and no float pixels.
        drawable = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else image.convert("RGB")
        drawable.save(buffer, format="PNG", compress_level=1)
    except Exception as error:
        raise Invalid(f"image could not be encoded as PNG ({type(error).__name__})") from None
    return buffer.getvalue()


def _bounded(data: bytes) -> bytes:
    if not data:
        raise Invalid("image is empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise Invalid("image is over 32 MiB")
    return data


def _is_pil(source: object) -> bool:
    # By shape, so that Pillow is neither imported nor required.
    return all(hasattr(source, name) for name in ("mode", "size", "save", "convert"))
