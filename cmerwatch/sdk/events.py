"""An event: what the app handed over, what `before_send` sees, and the JSON that travels."""

import codecs
import json
import math
import operator
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypedDict
from uuid import UUID

codecs.lookup("utf-16-le")  # loaded now: the sending thread must import nothing, see config._transport
MAX_IMAGES = 16
MAX_EVENT_ID = 128
VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # two random bits behind the fixed 10


class Invalid(ValueError):
    """The app's event cannot be sent; the message names the field and never quotes its value."""


class Fields(TypedDict, total=False):
    """What `record` takes. `image` is bytes, a path, a data URI, an http(s) URL, a PIL image, {"url"} or
    {"sha256"}; `logprobs` are natural logs, one for each of `tokens`; `confidence` is in [0, 1]."""

    image: object
    images: list[Any] | tuple[Any, ...]
    prompt: str | None
    output: str
    endpoint: str
    prompt_type: str | None
    customer: str | None
    model: str | None
    model_version: str | None
    environment: str | None
    request_id: str | None
    response_id: str | None
    trace_id: str | None
    logprobs: Any
    tokens: Any
    confidence: float | None
    confidence_status: str | None
    sample_rate: float | None
    metadata: dict[str, Any] | None
    occurred_at: datetime | str | None
    event_id: str | None


NAMES = frozenset(Fields.__annotations__)
TEXTS = (
    "endpoint",
    "prompt_type",
    "customer",
    "model",
    "model_version",
    "environment",
    "request_id",
    "response_id",
    "trace_id",
    "confidence_status",
)
# What the server has words for; where there are log-probabilities the first three say what they are.
STATUSES = (
    "present",
    "raw_logprobs",
    "processed_logprobs",
    "reported_by_app",
    "not_reported",
    "not_requested",
    "unsupported_by_provider",
    "unsupported_by_model",
    "dropped_by_framework",
    "constant_logprobs",
    "error",
)


@dataclass
class Image:
    """One picture: its bytes, or where or by which hash the server finds it."""

    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    sha256: str | None = None


@dataclass
class Event:
    """What `before_send` gets, on the sending thread, before anything is hashed; change it as you like."""

    event_id: str
    occurred_at: str
    endpoint: str
    output: str = field(repr=False)
    images: list[Image]
    prompt: str | None = field(default=None, repr=False)
    prompt_type: str | None = None
    customer: str | None = None
    model: str | None = None
    model_version: str | None = None
    environment: str | None = None
    request_id: str | None = None
    response_id: str | None = None
    trace_id: str | None = None
    logprobs: list[float] | None = field(default=None, repr=False)
    tokens: list[str] | None = field(default=None, repr=False)
    confidence: float | None = None
    confidence_status: str | None = None
    sample_rate: float | None = None
    metadata: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Prepared:
    """An event as it travels: its JSON, and the bytes of its pictures by sha256."""

    event_id: str
    json: bytes
    images: dict[str, bytes]


class _Chance:
    """Random bits that the app's own `random.seed` does not repeat, nor a fork. Not from the kernel each time: asking
    it lets go of the GIL, and the app's thread would then wait for the sending thread's work on a picture."""

    def __init__(self) -> None:
        self._pid = 0
        self._random = random.Random()

    def hex(self) -> str:
        if self._pid != os.getpid():
            self._random.seed()
            self._pid = os.getpid()
        return f"{self._random.getrandbits(80):020x}"


_chance = _Chance()


def new_id() -> str:
    """A UUIDv7: the server keeps events in time order by it."""
    time_ms = f"{time.time_ns() // 1_000_000:012x}"
    chance = _chance.hex()
    return f"{time_ms[:8]}-{time_ms[8:]}-7{chance[:3]}-{VARIANT[chance[3]]}{chance[4:7]}-{chance[7:19]}"


def glance(given: Mapping[str, Any]) -> None:
    """The checks that cost the app's thread nothing. Raises Invalid."""
    for name in ("output", "endpoint"):
        value = given.get(name)
        if not isinstance(value, str) or not value:
            raise Invalid(f"{name} must be a non-empty string")
    if not isinstance(given.get("prompt", ""), str):
        raise Invalid("prompt must be a string")
    if ("image" in given) == ("images" in given):
        raise Invalid("give either image or images")
    if "images" in given and not (
        isinstance(given["images"], (list, tuple)) and 1 <= len(given["images"]) <= MAX_IMAGES
    ):
        raise Invalid(f"images must be a list of 1 to {MAX_IMAGES}")
    for name in ("confidence", "sample_rate"):
        _fraction(name, given.get(name))
    if len(given["event_id"]) > MAX_EVENT_ID:
        raise Invalid(f"event_id must not be longer than {MAX_EVENT_ID} characters")


def build(given: Mapping[str, Any], images: list[Image]) -> Event:
    """Raises Invalid for names, logprobs or tokens that no server would take."""
    texts = {name: _text(name, given[name]) for name in TEXTS if name in given}
    logprobs = _floats(given.get("logprobs"))
    tokens = _strings(given.get("tokens"))
    if logprobs is not None and tokens is not None and len(logprobs) != len(tokens):
        raise Invalid(f"logprobs and tokens must be of the same length, not {len(logprobs)} and {len(tokens)}")
    if logprobs is not None:
        texts.setdefault("confidence_status", "present")
    return Event(
        event_id=given["event_id"],
        occurred_at=_iso(given["occurred_at"]),
        output=given["output"],
        prompt=given.get("prompt"),
        images=images,
        logprobs=logprobs,
        tokens=tokens,
        confidence=_number(given.get("confidence")),
        sample_rate=_number(given.get("sample_rate")),
        metadata=given.get("metadata"),
        **texts,
    )


def encode(event: Event, images: list[dict[str, str]]) -> bytes:
    """images: `{"sha256"}` or `{"url"}` of each picture. Raises Invalid for what JSON cannot hold."""
    wire = {one.name: getattr(event, one.name) for one in fields(event) if getattr(event, one.name) is not None}
    wire["images"] = images
    try:
        text = json.dumps(wire, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)
    except Exception as error:
        # str() of the app's own objects may raise anything.
        raise Invalid(f"metadata or another field is not JSON ({type(error).__name__})") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair (output cut in the middle of an emoji) has no UTF-8; strict JSON readers refuse it.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _fraction(name: str, value: object) -> None:
    if value is None:
        return
    try:
        inside = 0.0 <= float(value) <= 1.0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise Invalid(f"{name} must be a number in [0, 1]")


def _text(name: str, value: Any) -> str:
    """Ids of customers and traces are often whole numbers or UUIDs; str() of anything else is no name."""
    if isinstance(value, str):
        return str.__str__(value)  # the text of an enum's member, not what the enum calls it
    try:
        if not isinstance(value, bool):
            return str(value if isinstance(value, UUID) else operator.index(value))
    except TypeError:
        pass
    kind = type(value).__name__
    raise Invalid(f"{name} must be a string (a whole number or a UUID is sent as one), not {kind}")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)  # a numpy scalar is not JSON


def _floats(values: Any) -> list[float] | None:
    if values is None:
        return None
    try:
        numbers = [float(value) for value in _listed(values)]
    except (TypeError, ValueError):
        raise Invalid("logprobs must be a list of numbers") from None
    if not all(math.isfinite(number) and number <= 0 for number in numbers):
        raise Invalid("logprobs must be finite and not above 0 (natural logarithms)")
    return numbers


def _strings(values: Any) -> list[str] | None:
    if values is None:
        return None
    try:
        return [str(value) for value in _listed(values)]
    except TypeError:
        raise Invalid("tokens must be a list of strings") from None


def _listed(values: Any) -> Any:
    # Arrays and tensors hand out their numbers at once this way; one by one is a hundred times slower.
    return values.tolist() if hasattr(values, "tolist") else values


def _iso(when: Any) -> str:
    if isinstance(when, (int, float)):
        return datetime.fromtimestamp(when, UTC).isoformat()
    if isinstance(when, datetime):
        return when.astimezone(UTC).isoformat()
    return str(when)
