"""What a reviewer has typed: read from a form, kept through refusals, lost leases and sign-ins, made an answer."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import Depends
from starlette.datastructures import FormData
from starlette.requests import Request

from cmerwatch import errors, models, reviews

# Each verdict's word, what it means, and its key.
VERDICTS: dict[str, tuple[str, str, str]] = {
    "correct": ("Correct", "everything it says is in the picture", "1"),
    "partially_correct": ("Partly correct", "some of it is wrong or made up", "2"),
    "hallucinated": ("Hallucinated", "what matters is wrong or made up", "3"),
    "cannot_tell": ("Cannot tell", "the picture does not settle it", "4"),
}
ERROR_TYPES: dict[str, tuple[str, str, str]] = {
    "object": ("Object", "a thing that is not there", "O"),
    "attribute": ("Attribute", "a wrong colour, size or material", "A"),
    "count": ("Count", "a wrong number of things", "C"),
    "relation": ("Relation", "a wrong place or doing", "R"),
    "text": ("Text", "misread writing", "T"),
    "other": ("Other", "wrong in another way", "X"),
}
SKIP_REASONS = (
    "The picture is not good enough to judge",
    "I do not know this subject well enough",
    "Not in a language I read",
    "I would rather not look at this",
    "Another reason",
)

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_FORM = re.compile(r"/review/([0-9a-f-]{36})/(verdict|skip|escalate|resume)")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the output marked as wrong, in characters; `error_type` is empty where none was named."""

    start: int
    end: int
    error_type: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """The fields of the page. `correction` is None where the output stands unchanged."""

    verdict: str = ""
    error_types: tuple[str, ...] = ()
    correction: str | None = None
    note: str = ""
    spans: tuple[Span, ...] = ()
    choice: str = ""
    reason: str = ""

    @property
    def is_empty(self) -> bool:
        return self == Draft()

    @property
    def skip_reason(self) -> str:
        """The chosen reason with what was written beside it."""
        chosen = self.choice if self.choice != SKIP_REASONS[-1] else ""
        return ": ".join(part for part in (chosen, self.reason.strip()) if part)

    def spans_json(self) -> str:
        """[[start, end, error type where one is named]], which `read` and the page's script understand."""
        return json.dumps([[s.start, s.end] + ([s.error_type] if s.error_type else []) for s in self.spans])

    def fields(self) -> list[tuple[str, str]]:
        """As hidden inputs that `read` understands."""
        kept = [("verdict", self.verdict), ("note", self.note), ("choice", self.choice), ("reason", self.reason)]
        kept += [("error_types", name) for name in self.error_types]
        kept += [("spans", self.spans_json())] if self.spans else []
        kept += [("correction", self.correction)] if self.correction is not None else []
        return [(name, value) for name, value in kept if value]

    def beside(self, output: str) -> Draft:
        """Without a correction that corrects nothing: the page fills in the output, and most leave it so."""
        is_untouched = self.correction is None or self.correction.strip() in ("", _lines(output).strip())
        return replace(self, correction=None) if is_untouched else self

    def answer(self) -> reviews.Answer:
        """Raises Invalid for a correct output with words that are marked as wrong: one of the two was a slip."""
        if self.verdict == "correct" and self.spans:
            raise errors.Invalid("A correct output has nothing marked as wrong in it.", field="spans")
        return reviews.Answer(
            verdict=self.verdict,
            error_types=self.error_types,
            spans=tuple(
                {"start": s.start, "end": s.end} | ({"error_type": s.error_type} if s.error_type else {})
                for s in self.spans
            ),
            correction=self.correction,
            note=self.note.strip() or None,
        )


async def _posted(request: Request) -> FormData:
    return await request.form()


Posted = Annotated[FormData, Depends(_posted)]


def read(form: FormData) -> Draft:
    """Lenient: what the page cannot have sent is passed over, so that the rest of what was typed is kept.

    A field `kept` brings all of them, as the sign-in page carried them.
    """
    if form.get("kept"):
        form = _unpacked(_text(form, "kept"))
    correction = _text(form, "correction")
    return Draft(
        verdict=_text(form, "verdict") if _text(form, "verdict") in VERDICTS else "",
        error_types=tuple(name for name in ERROR_TYPES if name in form.getlist("error_types")),
        correction=correction or None,
        note=_text(form, "note"),
        spans=(*_spans(_text(form, "spans")), *_ticked(form)),
        choice=_text(form, "choice") if _text(form, "choice") in SKIP_REASONS else "",
        reason=_text(form, "reason"),
    )


def of_review(review: models.Review) -> Draft:
    """The fields as they were when this verdict was given: what an undo brings back."""
    return Draft(
        verdict=review.verdict or "",
        error_types=tuple(review.error_types),
        correction=review.correction,
        note=review.note or "",
        spans=tuple(Span(one["start"], one["end"], one.get("error_type", "")) for one in review.spans),
    )


def token(form: FormData) -> uuid.UUID:
    """The lease this form was filled in under; what is no token is a lease that nobody has."""
    try:
        return uuid.UUID(_text(form, "lease_token"))
    except ValueError:
        return uuid.UUID(int=0)


def _text(form: Mapping[str, Any], name: str) -> str:
    """A field as text. Browsers send line ends as CR LF."""
    value = form.get(name, "")
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", _lines(value)) if isinstance(value, str) else ""


def _lines(value: str) -> str:
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _spans(value: str) -> tuple[Span, ...]:
    try:
        return tuple(_span(*one) for one in json.loads(value or "[]"))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return ()


def _span(start: Any, end: Any, error_type: Any = "") -> Span:
    """Raises ValueError or TypeError for what is none."""
    if error_type and error_type not in ERROR_TYPES:  # what cannot be a key raises TypeError here
        raise ValueError(error_type)
    return Span(int(start), int(end), error_type)


_PLACE = re.compile(r"(?:type-)?(\d{1,7})-(\d{1,7})")


def _ticked(form: FormData) -> list[Span]:
    """Marks as a page without a script makes them: a box ticked per sentence, or its kind of error chosen."""
    chosen = [name for name in form if name.startswith("type-") and _text(form, name)]
    ticked = [name for name in form.getlist("marked") if isinstance(name, str)]
    places = dict.fromkeys(found.groups() for name in (*ticked, *chosen) if (found := _PLACE.fullmatch(name)))
    return [
        Span(int(start), int(end), kind if (kind := _text(form, f"type-{start}-{end}")) in ERROR_TYPES else "")
        for start, end in places
    ]


# What a form held when its session had ended: it travels through the sign-in page and back.


@dataclass(frozen=True, slots=True)
class Kept:
    """Where to go on, and the fields as one text."""

    path: str
    fields: str


async def keep(request: Request) -> Kept | None:
    """What a review's form holds, when this request is one; None for every other request."""
    found = _FORM.fullmatch(request.url.path)
    if request.method != "POST" or found is None:
        return None
    return Kept(f"/review/{found[1]}", packed(read(await request.form())))


def packed(draft: Draft) -> str:
    """The fields as one text, which `draft` reads."""
    return json.dumps(draft.fields())


def is_item(path: str) -> bool:
    return _FORM.fullmatch(f"{path}/resume") is not None


def draft(kept: str) -> Draft:
    """What `keep` kept."""
    return read(FormData([("kept", kept)]))


def _unpacked(kept: str) -> FormData:
    try:
        return FormData([(str(name), str(text)) for name, text in json.loads(kept)])
    except (ValueError, TypeError, RecursionError):
        return FormData()
