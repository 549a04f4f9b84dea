"""Labelled outputs for `checker evaluate`: our own JSONL, and readers of public formats whose files are here.

Nothing is skipped in silence: what cannot be read is named with its line, what is left out on purpose is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmerwatch import errors

CORRECT, HALLUCINATED, CANNOT_TELL = "correct", "hallucinated", "cannot_tell"
# Reviewers' verdicts are labels too. Partly wrong is wrong here: the question is whether anything in it is.
LABELS = {CORRECT: CORRECT, HALLUCINATED: HALLUCINATED, "partially_correct": HALLUCINATED, CANNOT_TELL: CANNOT_TELL}
MAX_IMAGES = 16  # as an event
MAX_NAME = 128  # characters of a prompt type, as an event's, and of an error type


class BadEntry(Exception):
    """One entry cannot be read; the argument says why, in words for the person who made the file."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One output with its verdict. `line` counts from 1, in the file or, for JSON arrays, among the entries.

    `error_types` of a correct output name the kinds of error it is the counterpart of, in paired sets. `spans`: the
    [start, end) characters of the output that are wrong.
    """

    line: int
    images: tuple[Path, ...]
    output: str
    label: str
    prompt: str = ""
    prompt_type: str = ""
    error_types: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Bad:
    line: int
    why: str


@dataclass(slots=True)
class Dataset:
    rows: list[Labelled] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> entries that this format cannot ask of images

    def add(self, line: int, row: Labelled | str) -> None:
        """A row, or the reason why the entry is left out."""
        if isinstance(row, str):
            self.left_out[row] += 1
            return
        if missing := [image for image in row.images if not image.is_file()]:
            self.bad.append(Bad(line, f"there is no image file {missing[0]}"))
            return
        self.rows.append(row)


def read(path: Path, kind: str, images: Path | None = None, answers: Path | None = None) -> Dataset:
    """Read a labelled file of one of FORMATS. `images`: the folder of its pictures, else the file's own.

    `answers`: a model's answers to a file of questions (POPE). errors.StartRefused: a file that cannot be read at all.
    """
    if kind not in FORMATS:
        raise errors.StartRefused(f"--format {kind!r} is none of: {', '.join(FORMATS)}")
    if answers is not None and kind != "pope":
        raise errors.StartRefused("--answers belongs to --format pope, whose files hold questions only")
    folder = folder_of(path, images)
    from cmerwatch_worker.datasets import public

    readers = {
        "pope": lambda: public.pope(path, folder, answers),
        "foil": lambda: public.foil(path, folder),
        "mhaldetect": lambda: public.mhaldetect(path, folder),
        "hallusionbench": lambda: public.hallusionbench(path, folder),
    }
    return readers[kind]() if kind in readers else jsonl(path, folder)


def folder_of(path: Path, images: Path | None) -> Path:
    """Where the pictures of a file are. errors.StartRefused: nowhere."""
    folder = images or path.parent
    if not folder.is_dir():
        raise errors.StartRefused(f"there is no folder of images {folder}")
    return folder


FORMATS = ("jsonl", "pope", "foil", "mhaldetect", "hallusionbench")


def jsonl(path: Path, folder: Path, default_label: str | None = None) -> Dataset:
    """One JSON object per line: image, output, label; and prompt, prompt_type, error_type, spans where known."""
    found = Dataset()
    for line, raw in lines(path):
        try:
            found.add(line, _labelled(line, parsed(raw), folder, default_label))
        except BadEntry as bad:
            found.bad.append(Bad(line, str(bad)))
    return found


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that hold anything. errors.StartRefused: a file that cannot be read."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise errors.StartRefused(f"{path} cannot be read ({error.strerror})") from error


def parsed(raw: bytes) -> dict[str, Any]:
    """One JSON object. Raises BadEntry."""
    try:
        entry = json.loads(raw.decode().rstrip())  # or a line that is cut short fails in the column after its end
    except UnicodeDecodeError as error:
        raise BadEntry(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadEntry(f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise BadEntry(f"is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise BadEntry(f"must be a JSON object, not {_kind(entry)}")
    return entry


def _labelled(line: int, entry: dict[str, Any], folder: Path, default_label: str | None) -> Labelled:
    label = entry.get("label", default_label)
    if not isinstance(label, str) or label not in LABELS:
        raise BadEntry(f"`label` must be one of {', '.join(LABELS)}, not {_shown(label)}")
    output = text_of(entry, "output")
    kinds = entry.get("error_type") or []
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return Labelled(
        line,
        tuple(folder / name for name in _image_names(entry)),
        output,
        LABELS[label],
        optional_text(entry, "prompt"),
        _name(entry.get("prompt_type") or "", "prompt_type"),
        tuple(dict.fromkeys(_name(kind, "error_type") for kind in kinds)),
        _spans(entry.get("spans") or [], len(output)),
    )


def _image_names(entry: dict[str, Any]) -> list[str]:
    given = entry.get("image", entry.get("images"))
    names = given if isinstance(given, list) else [given]
    paths = [name for name in names if isinstance(name, str) and name]
    if not 1 <= len(names) <= MAX_IMAGES or len(paths) < len(names):
        raise BadEntry(f"`image` must be the path of a picture, or a list of 1 to {MAX_IMAGES} paths")
    return paths


def text_of(entry: dict[str, Any], name: str) -> str:
    """A text that must be there. Raises BadEntry."""
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadEntry(f"`{name}` must be a text that is not empty, not {_shown(value)}")
    return value


def optional_text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadEntry(f"`{name}` must be a text, not {_kind(value)}")
    return value


def _name(value: object, field_name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise BadEntry(f"`{field_name}` must be a name of at most {MAX_NAME} characters, not {_shown(value)}")
    return value


def _spans(value: object, length: int) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise BadEntry(f"`spans` must be a list of [start, end], not {_kind(value)}")
    for span in value:
        is_pair = isinstance(span, list) and len(span) == 2 and all(type(edge) is int for edge in span)
        if not is_pair or not 0 <= span[0] < span[1] <= length:
            raise BadEntry(
                f"`spans` must be [start, end) within the {length} characters of `output`, not {_shown(span)}"
            )
    return tuple((start, end) for start, end in value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    """At most 60 printable characters of what was found."""
    if isinstance(value, dict) or value is None:
        return _kind(value)
    said = ascii(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
