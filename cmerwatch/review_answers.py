"""What a reviewer may say of an output, checked before it is stored: every refusal names the field and its limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmerwatch import errors, models

MAX_TEXT = 10_000  # characters of a note, a correction, a reason
MAX_SPANS = 100

# What Postgres cannot store in text: NUL, and halves of surrogate pairs, which a form may hold.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

Span = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """`spans` mark parts of the output by characters: {"start", "end", "error_type"?}, end exclusive."""

    verdict: str
    error_types: Sequence[str] = ()
    spans: Sequence[Span] = ()
    correction: str | None = None
    note: str | None = None


def checked(answer: Answer, output: Callable[[], str]) -> Answer:
    """The answer as it will be stored: what the spans name is among its error types.

    `output` is asked for only when spans have to lie within it. Raises Invalid.
    """
    _require_one_of("verdict", answer.verdict, models.VERDICTS)
    for index, error_type in enumerate(dict.fromkeys(answer.error_types)):
        _require_one_of(f"error_types[{index}]", error_type, models.ERROR_TYPES)
    spans = _spans(answer.spans, output) if answer.spans else ()
    named = [span["error_type"] for span in spans if "error_type" in span]
    for field, said in (("error_types", answer.error_types), ("spans", named)):
        if answer.verdict == "correct" and said:
            raise errors.Invalid(
                f"`{field}` must name no error type when the verdict is correct; name none, or choose another verdict.",
                field=field,
            )
    return replace(
        answer,
        error_types=tuple(dict.fromkeys([*answer.error_types, *named])),
        spans=spans,
        correction=_text("correction", answer.correction),
        note=_text("note", answer.note),
    )


def required_text(field: str, value: str) -> str:
    text = _text(field, value)
    if text is None:
        raise errors.Invalid(f"`{field}` is empty; say in a few words why.", field=field)
    return text


def _require_one_of(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise errors.Invalid(f"`{field}` must be one of {', '.join(allowed)}.", field=field)


def _text(field: str, value: str | None) -> str | None:
    """None for what is blank; a form sends fields that nobody filled."""
    if value is None or not value.strip():
        return None
    if len(value) > MAX_TEXT:
        raise errors.Invalid(
            f"`{field}` has {len(value)} characters; at most {MAX_TEXT} are allowed.", field=field, limit=MAX_TEXT
        )
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def _spans(spans: Sequence[Span], output: Callable[[], str]) -> tuple[Span, ...]:
    if len(spans) > MAX_SPANS:
        raise errors.Invalid(
            f"`spans` has {len(spans)} items; at most {MAX_SPANS} are allowed.", field="spans", limit=MAX_SPANS
        )
    length = len(output())
    return tuple(_span(f"spans[{index}]", span, length) for index, span in enumerate(spans))


def _span(path: str, span: Span, length: int) -> Span:
    for name in span:
        if name not in ("start", "end", "error_type"):
            raise errors.Invalid(f"`{path}` has fields other than start, end and error_type.", field=path)
    start, end = _position(f"{path}.start", span.get("start")), _position(f"{path}.end", span.get("end"))
    if not start < end:
        raise errors.Invalid(f"`{path}.end` is {end}, which must be after its start {start}.", field=f"{path}.end")
    if end > length:
        raise errors.Invalid(
            f"`{path}.end` is {end}, but the output has {length} characters.", field=f"{path}.end", limit=length
        )
    error_type = span.get("error_type")
    if error_type is None:
        return {"start": start, "end": end}
    _require_one_of(f"{path}.error_type", error_type, models.ERROR_TYPES)
    return {"start": start, "end": end, "error_type": error_type}


def _position(field: str, value: Any) -> int:
    if type(value) is not int or value < 0:  # True is an int to isinstance
        raise errors.Invalid(f"`{field}` must be a whole number of characters, 0 or more.", field=field)
    return value
