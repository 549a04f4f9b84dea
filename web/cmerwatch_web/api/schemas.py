"""An event as apps send it: every field checked, every refusal a sentence that names the field and its limit."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from cmerwatch import errors, events
from cmerwatch.shapes import Slice
from cmerwatch_web.api import bodies

MAX_EVENTS = 64
MAX_IMAGES = 16
MAX_TOKENS = 32_768
MAX_METADATA_BYTES = 16 << 10
MAX_SLICE_BYTES = 2400  # of all dimensions together: they are one key of the counts, for which Postgres has 2704
LOWEST_LOGPROB = -1e4  # providers write -9999 for "not among the top tokens"
FUTURE = dt.timedelta(minutes=5)  # how far clocks of apps may be ahead of ours

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def _refuse(message: str, **details: Any) -> PydanticCustomError:
    """A refusal whose text is already right: `message` is read after the field's name."""
    return PydanticCustomError("refused", "{text}", {"text": message, **details})


def _time(value: Any) -> dt.datetime:
    try:
        at = dt.datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise _refuse("has no time zone; end it with Z or an offset such as +01:00")
        at = at.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        raise _refuse("must be a time such as 2026-11-24T09:00:00Z (ISO 8601 with a time zone)") from None
    if at > dt.datetime.now(dt.UTC) + FUTURE:
        raise _refuse("is in the future; at most 5 minutes ahead is allowed, so check the sender's clock", limit=300)
    return at


def _not_blank(value: str) -> str:
    if not value.strip():
        raise _refuse("is empty; it must hold more than white space")
    return value


def _text(value: str, info: pydantic.ValidationInfo) -> str:
    limit: int = info.context["max_text_chars"] if info.context else 0
    if len(value) > limit:
        raise _refuse(f"has {len(value)} characters; at most {limit} are allowed", limit=limit)
    return value


def _logprobs(values: list[float]) -> list[float]:
    for index, value in enumerate(values):
        if not LOWEST_LOGPROB <= value <= 0:  # also true of NaN
            raise _refuse(
                f"must be a natural logarithm of a probability, finite and from {LOWEST_LOGPROB:.0f} to 0, "
                f"but is {_shown(value)}",
                index=index,
                limit=[LOWEST_LOGPROB, 0],
            )
    return values


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise _refuse(f"must be a number from 0 to 1, but is {_shown(value)}", limit=[0, 1])
    return value


def _shown(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    if bodies.is_deep(value):
        raise _refuse(f"nests too deeply; at most {bodies.MAX_DEPTH} levels are allowed", limit=bodies.MAX_DEPTH)
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except ValueError:
        raise _refuse("holds NaN or Infinity, which JSON does not have") from None
    if size > MAX_METADATA_BYTES:
        raise _refuse(f"is {size} bytes as JSON; at most {MAX_METADATA_BYTES} are allowed", limit=MAX_METADATA_BYTES)
    return value


def _hash(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise _refuse("must be 64 lower-case hexadecimal digits")
    return value


Name = Annotated[str, Field(max_length=200)]
Fraction = Annotated[float, AfterValidator(_fraction)]


class ImageSource(pydantic.BaseModel):
    """One picture: `data` (base64 or a data URI), `sha256` (of bytes uploaded, or sent as a part) or its `url`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="Image")

    data: str | None = None
    sha256: Annotated[str, AfterValidator(_hash)] | None = None
    url: str | None = Field(None, description="Fetched by a worker, where CMERWATCH_FETCH_IMAGES takes its host.")

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> ImageSource:
        if [self.data, self.sha256, self.url].count(None) != 2:
            raise _refuse("must have exactly one of `data` (base64), `sha256` and `url`")
        return self


class EventSource(pydantic.BaseModel):
    """One answer of a vision-language model, with the pictures it was about."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="Event")

    event_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    occurred_at: Annotated[dt.datetime, BeforeValidator(_time)] | None = None
    endpoint: Annotated[Name, AfterValidator(_not_blank)]
    prompt_type: Name | None = None
    customer: Name | None = None
    model: Name | None = None
    model_version: Name | None = None
    environment: Name | None = None
    request_id: Name | None = None
    response_id: Name | None = None
    trace_id: Name | None = None
    images: Annotated[list[ImageSource], Field(min_length=1, max_length=MAX_IMAGES)]
    prompt: Annotated[str, AfterValidator(_text)] | None = None
    output: Annotated[str, AfterValidator(_not_blank), AfterValidator(_text)]
    logprobs: Annotated[list[float], Field(max_length=MAX_TOKENS, fail_fast=True), AfterValidator(_logprobs)] | None = (
        None
    )
    tokens: Annotated[list[str], Field(max_length=MAX_TOKENS, fail_fast=True)] | None = None
    confidence: Fraction | None = None
    confidence_status: Name | None = None
    sample_rate: Fraction | None = None
    metadata: Annotated[dict[str, Any], AfterValidator(_metadata)] | None = None

    @pydantic.model_validator(mode="after")
    def _fits_a_key(self) -> EventSource:
        names = {name: getattr(self, name) or "" for name in Slice._fields}
        if sum(map(len, names.values())) * 4 <= MAX_SLICE_BYTES:  # of almost every event; 4 bytes are the most
            return self
        sizes = {name: len(value.encode()) for name, value in names.items()}
        longest, total = max(sizes, key=sizes.__getitem__), sum(sizes.values())
        if total > MAX_SLICE_BYTES:
            others = ", ".join(f"`{name}`" for name in Slice._fields if name != longest)
            raise _refuse(
                f"is too long beside {others}: together they are {total} bytes of UTF-8; at most {MAX_SLICE_BYTES} are "
                "allowed",
                index=longest,
                limit=MAX_SLICE_BYTES,
            )
        return self

    @pydantic.model_validator(mode="after")
    def _one_token_each(self) -> EventSource:
        if self.logprobs is not None and self.tokens is not None and len(self.logprobs) != len(self.tokens):
            raise _refuse(
                f"has {len(self.logprobs)} values but `tokens` has {len(self.tokens)}; they must have the same length",
                index="logprobs",
            )
        return self


def read_event(value: Any, path: str, max_text_chars: int) -> EventSource:
    """Raises Invalid; `path` is what stands before each field's name, such as "events[3]."."""
    return read(EventSource, value, path, max_text_chars=max_text_chars)


Model = TypeVar("Model", bound=pydantic.BaseModel)


def read(model: type[Model], value: Any, path: str = "", **context: Any) -> Model:
    """The value as this model. Raises Invalid, which names each wrong field, its limit, and says what it must be."""
    try:
        return model.model_validate(value, context=context)
    except pydantic.ValidationError as refused:
        problems = [_problem(error, path, model) for error in refused.errors(include_url=False)[:20]]
        details = {name: value for name, value in problems[0].items() if name != "message"}
        if len(problems) > 1:
            details["problems"] = problems
        raise errors.Invalid(problems[0]["message"], **details) from None


def new_event(
    source: EventSource, images: Sequence[str], sanitized: bool, urls: Sequence[tuple[int, str]] = ()
) -> events.NewEvent:
    """The event in the core's shape; `images` are the sha256 of its pictures in order, but for those at `urls`."""
    return events.NewEvent(
        slice=Slice(**{name: getattr(source, name) or "" for name in Slice._fields}),
        images=tuple(images),
        output=source.output,
        tokens=None if source.tokens is None else tuple(source.tokens),
        logprobs=None if source.logprobs is None else tuple(source.logprobs),
        metadata=source.metadata or {},
        text_sanitized=sanitized,
        urls=tuple(urls) or None,
        **{name: getattr(source, name) for name in _SAME},
    )


_SAME = (
    "prompt",
    "event_id",
    "occurred_at",
    "confidence",
    "confidence_status",
    "sample_rate",
    "request_id",
    "response_id",
    "trace_id",
)


def inline_image(data: str, field: str, max_bytes: int) -> bytes:
    """The bytes of base64 or of a base64 data URI. Raises TooLarge before decoding, or Invalid."""
    start = 0
    if data[:5].lower() == "data:":
        header = _DATA_URI.match(data)
        if header is None:
            raise errors.Invalid(
                f"`{field}` is a data URI that does not start like data:image/png;base64,", field=field
            )
        start = header.end()
    if (len(data) - start) * 3 // 4 > max_bytes + 2:  # padding may stand for two bytes less
        raise image_too_large(field, max_bytes)
    try:
        return base64.b64decode(data[start:] if start else data, validate=True)
    except (binascii.Error, ValueError):
        raise errors.Invalid(
            f"`{field}` is not valid base64; use the standard alphabet with padding and no line breaks.", field=field
        ) from None


def image_too_large(field: str, limit: int) -> errors.TooLarge:
    return errors.TooLarge(f"`{field}` is over the limit of {limit} bytes for one image.", field=field, limit=limit)


def _problem(error: Any, path: str, model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """{"field", "message", "limit"?} of one pydantic error, in our words."""
    context = error.get("ctx", {})
    loc = (*error["loc"], *([context["index"]] if "index" in context else []))
    name = path + _joined(loc) if loc else path.removesuffix(".") or (model.model_config.get("title") or "body").lower()
    sentence = {"field": name, "message": f"`{name}` {_said(error, context, model)}."}
    limit = next((context[key] for key in ("limit", "max_length", "min_length") if key in context), None)
    return sentence if limit is None else sentence | {"limit": limit}


def _joined(loc: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in loc).removeprefix(".")


_TYPES = {
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode text",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "uuid_type": "must be a UUID",
    "uuid_parsing": "must be a UUID",
    "list_type": "must be a list",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "missing": "is required",
    "string_too_short": "is empty",
}


def _said(error: Any, context: dict[str, Any], model: type[pydantic.BaseModel]) -> str:
    kind = error["type"]
    if kind == "refused":
        return str(context["text"])
    if kind == "extra_forbidden":
        return f"is not a field here; those are {', '.join(_fields_at(model, error['loc']))}"
    if kind == "string_too_long":
        return f"has {len(error['input'])} characters; at most {context['max_length']} are allowed"
    if kind == "too_long":
        return f"has {context['actual_length']} items; at most {context['max_length']} are allowed"
    if kind == "too_short":
        return f"has {context['actual_length']} items; at least {context['min_length']} are needed"
    return _TYPES.get(kind, "is not valid")


def _fields_at(model: type[pydantic.BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The fields of the model in which the last part of `loc` is not one."""
    for name in loc[:-1]:
        if isinstance(name, str):
            model = next(_models_in(model.model_fields[name].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)
