"""Request bodies as they come: JSON, or multipart with images beside it. Knows nothing of what an event is."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from cmerwatch import errors

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # exists for type checkers only

MAX_PARTS = 1 + 64 * 16  # the part `events`, and 16 images of each of 64 events
MAX_DEPTH = 32  # of arrays and objects within each other; deeper ones exhaust the stack of whoever reads them later

_IMAGE_PART = re.compile(r"sha256:([0-9a-f]{64})")
# What Postgres cannot store: NUL, and halves of surrogate pairs, escaped or as raw bytes.
_UNSTORABLE_BYTES = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Sent:
    """`events`: JSON bytes; `images`: bytes by the sha256 that their part claims; `started`: time.perf_counter()."""

    events: bytes
    images: dict[str, bytes]
    started: float

    @property
    def size(self) -> int:
        return len(self.events) + sum(map(len, self.images.values()))


async def sent(request: Request) -> Sent:
    """The body of POST /v1/events. Its total size is already bounded by the middleware BodyLimits."""
    started = time.perf_counter()
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        parts = await _parts(request, options.get(b"boundary", b""))
        if "events" not in parts:
            raise errors.Invalid("The part `events` (JSON) is missing.", field="events")
        events = bytes(parts.pop("events"))
        return Sent(events, {name.removeprefix("sha256:"): bytes(data) for name, data in parts.items()}, started)
    if kind in (b"", b"application/json") or kind.endswith(b"+json"):
        return Sent(await request.body(), {}, started)
    raise HTTPException(415, "Content-Type must be application/json or multipart/form-data.")


async def value(request: Request) -> Any:
    """The JSON value of any other body, {} when there is none; what Postgres cannot hold is replaced."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind not in (b"", b"application/json") and not kind.endswith(b"+json"):
        raise HTTPException(415, "Content-Type must be application/json.")
    raw = await request.body()
    return cleaned(document(raw))[0] if raw.strip() else {}


@dataclass
class _Collector:
    """Callbacks of the multipart parser, which hand over pieces of headers and data."""

    parts: dict[str, bytearray] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    disposition: bytes = b""
    data: bytearray = field(default_factory=bytearray)
    is_whole: bool = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": lambda data, start, end: self.header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.extend(data[start:end]),
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": lambda data, start, end: self.data.extend(memoryview(data)[start:end]),
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self.disposition = b""

    def on_header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def on_headers_finished(self) -> None:
        name = parse_options_header(self.disposition)[1].get(b"name", b"").decode("utf-8", "replace")
        if name != "events" and not _IMAGE_PART.fullmatch(name):
            raise errors.Invalid(
                f"The part {name[:80]!r} is neither `events` nor `sha256:` with 64 lower-case hex digits.", field="body"
            )
        if name in self.parts:
            raise errors.Invalid(f"The part {name!r} came twice; send each once.", field=name)
        if len(self.parts) == MAX_PARTS:
            raise errors.Invalid(f"The body has more than {MAX_PARTS} parts.", field="body", limit=MAX_PARTS)
        self.data = self.parts[name] = bytearray()

    def on_end(self) -> None:
        self.is_whole = True


async def _parts(request: Request, boundary: bytes) -> dict[str, bytearray]:
    collector = _Collector()
    try:
        if not boundary:
            raise FormParserError
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except FormParserError:
        raise _not_multipart() from None
    if not collector.is_whole:
        raise _not_multipart()
    return collector.parts


def _not_multipart() -> errors.Invalid:
    return errors.Invalid("The body is not well-formed multipart/form-data, or was cut off.", field="body")


def document(raw: bytes) -> Any:
    """The JSON value of these bytes. Raises Invalid.

    NaN and Infinity pass as floats, so that the check of each field can name it and spare its neighbours.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise errors.Invalid(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.", field="body"
        ) from None
    except ValueError:  # not UTF-8, or an integer of thousands of digits
        raise errors.Invalid(
            "The body is not JSON in UTF-8, or holds a number of too many digits.", field="body"
        ) from None


def needs_cleaning(raw: bytes) -> bool:
    """Whether any text in these JSON bytes may hold what `cleaned` replaces; often true for mere emoji."""
    return bool(_UNSTORABLE_BYTES.search(raw))


def cleaned(value: Any) -> tuple[Any, bool]:
    """The same value with each NUL and lone surrogate, in keys too, replaced by U+FFFD; and whether there was any."""
    found: list[str] = []
    return _clean(value, found, MAX_DEPTH), bool(found)


def _clean(value: Any, found: list[str], levels: int) -> Any:
    if isinstance(value, str):
        clean = _UNSTORABLE.sub(_REPLACEMENT, value)
        if clean != value:
            found.append("text")
        return clean
    if isinstance(value, list | dict) and levels == 0:
        raise _too_deep()
    if isinstance(value, list):
        return [_clean(item, found, levels - 1) for item in value]
    if isinstance(value, dict):
        mapping = {_clean(key, found, 0): _clean(item, found, levels - 1) for key, item in value.items()}
        if len(mapping) != len(value):
            raise errors.Invalid("Two keys are the same once NUL and lone surrogates are replaced.", field="metadata")
        return mapping
    return value


def is_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    """Whether arrays and objects stand within each other more than `levels` times."""
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return levels == 0 or any(is_deep(item, levels - 1) for item in inner)
    return False


def _too_deep() -> errors.Invalid:
    return errors.Invalid(
        f"The body nests arrays and objects too deeply; at most {MAX_DEPTH} levels.", field="body", limit=MAX_DEPTH
    )
