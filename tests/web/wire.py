"""What tests send: pictures of a few bytes, and events that are good unless a test bends them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zlib
from typing import Any

from PIL import Image

Headers = dict[str, str]


def encoded(kind: str = "PNG", size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def png(shade: int = 0) -> bytes:
    """Another picture for every shade of red."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Less than a hundred bytes that claim to be any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def inline(data: bytes) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode()}


def named(data: bytes) -> dict[str, str]:
    return {"sha256": sha256(data)}


def event(**fields: Any) -> dict[str, Any]:
    """A good event, with these fields changed; `...` takes one away."""
    good = {"endpoint": "chat", "images": [inline(png())], "output": "A black square."}
    return {name: value for name, value in (good | fields).items() if value is not ...}


def multipart(events: list[dict[str, Any]], *images: bytes, filename: str | None = None) -> dict[str, Any]:
    """Keyword arguments of a request with the part `events` and a part for each picture."""
    parts = [("events", (filename, json.dumps({"events": events}).encode(), "application/json"))]
    parts += [(f"sha256:{sha256(data)}", (f"sha256:{sha256(data)}", data, "image/png")) for data in images]
    return {"files": parts}
