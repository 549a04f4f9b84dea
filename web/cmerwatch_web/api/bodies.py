"""Request bodies as they come: JSON, or multipart with images beside it. Knows nothing of what an event is."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

from cmerwatch import errors
from cmerwatch_web.api import multipart

MAX_PARTS = 1 + 64 * 16  # the part `events`, and 16 images of each of 64 events
MAX_DEPTH = 32  # of arrays and objects within each other; deeper ones exhaust the stack of whoever reads them later

_IMAGE_PART = re.compile(r"sha256:([0-9a-f]{64})")
# What Postgres cannot store: NUL, and halves of surrogate pairs, escaped or as raw bytes.
_UNSTORABLE_BYTES = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Sent:
    """The body of POST /v1/events, not looked at yet. `boundary`: None for JSON; `started`: time.perf_counter()."""

    body: bytes
    boundary: bytes | None
    started: float


async def sent(request: Request) -> Sent:
    """Its total size is already bounded by the middleware BodyLimits."""
    started = time.perf_counter()
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return Sent(await request.body(), options.get(b"boundary", b""), started)
    if kind in (b"", b"application/json") or kind.endswith(b"+json"):
        return Sent(await request.body(), None, started)
    raise HTTPException(415, "Content-Type must be application/json or multipart/form-data.")


def opened(sent: Sent) -> tuple[bytes, dict[str, bytes]]:
    """The JSON of the events, and the bytes of images by the sha256 that their part claims. Raises Invalid."""
    if sent.boundary is None:
        return sent.body, {}
    found: dict[str, bytes] = {}
    for name, data in multipart.parts(sent.body, sent.boundary):
        if name != "events" and not _IMAGE_PART.fullmatch(name):
            raise errors.Invalid(
                f"The part {name[:80]!r} is neither `events` nor `sha256:` with 64 lower-case hex digits.", field="body"
            )
        if name in found:
            raise errors.Invalid(f"The part {name!r} came twice; send each once.", field=name)
        if len(found) == MAX_PARTS:
            raise errors.Invalid(f"The body has more than {MAX_PARTS} parts.", field="body", limit=MAX_PARTS)
        found[name] = data
    if "events" not in found:
        raise errors.Invalid("The part `events` (JSON) is missing.", field="events")
    events = found.pop("events")
    return events, {name.removeprefix("sha256:"): data for name, data in found.items()}


async def value(request: Request) -> Any:
    """The JSON value of any other body, {} when there is none; what Postgres cannot hold is replaced."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind not in (b"", b"application/json") and not kind.endswith(b"+json"):
        raise HTTPException(415, "Content-Type must be application/json.")
    raw = await request.body()
    return cleaned(document(raw))[0] if raw.strip() else {}


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
