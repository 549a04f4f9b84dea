"""Readers of published hallucination sets, from files that are already on this machine.

Each turns an entry into the same row as our own JSONL. Question sets without a model's answers are asked as the
answer "Yes.", which is right or wrong by the set's own truth: the checker judges the statement the question makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cmerwatch import errors
from cmerwatch_worker import datasets
from cmerwatch_worker.datasets import CANNOT_TELL, CORRECT, HALLUCINATED, Bad, BadEntry, Dataset, Labelled

Entry = dict[str, Any]
ASSUMED = "Yes."


def _collect(entries: Iterable[tuple[int, Entry | Bad]], row_of: Callable[[int, Entry], Labelled | str]) -> Dataset:
    found = Dataset()
    for line, entry in entries:
        if isinstance(entry, Bad):
            found.bad.append(entry)
            continue
        try:
            found.add(line, row_of(line, entry))
        except BadEntry as bad:
            found.bad.append(Bad(line, str(bad)))
    return found


def _entries(path: Path) -> Iterator[tuple[int, Entry | Bad]]:
    """JSON objects of a file that is one array, or one object per line: these sets are passed on in both shapes."""
    try:
        with path.open("rb") as file:
            is_array = file.read(64).lstrip().startswith(b"[")
    except OSError as error:
        raise errors.StartRefused(f"{path} cannot be read ({error.strerror})") from error
    if is_array:
        yield from _members(_whole(path), path)
        return
    for line, raw in datasets.lines(path):
        try:
            yield line, datasets.parsed(raw)
        except BadEntry as bad:
            yield line, Bad(line, str(bad))


def _whole(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise errors.StartRefused(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise errors.StartRefused(f"{path} is not JSON: {error}") from error


def _members(entries: Any, path: Path) -> Iterator[tuple[int, Entry | Bad]]:
    if not isinstance(entries, list):
        raise errors.StartRefused(f"{path} must hold a list of entries")
    for number, entry in enumerate(entries, 1):
        yield number, entry if isinstance(entry, dict) else Bad(number, "must be a JSON object")


# POPE: {"question_id", "image", "text": "Is there a dog in the image?", "label": "yes" | "no"} per line.


def pope(path: Path, folder: Path, answers: Path | None = None) -> Dataset:
    """Questions about one object. `answers`: lines with `answer` (or `text`), by `question_id` or in the same order."""
    entries = list(_entries(path))
    said = _answers(answers, entries) if answers else {}
    kinds = [kind for kind in ("random", "popular", "adversarial") if kind in path.stem.lower()]

    def row(line: int, entry: Entry) -> Labelled:
        question = datasets.text_of(entry, "text")
        truth = str(entry.get("label", "")).strip().lower()
        if truth not in ("yes", "no"):
            raise BadEntry("`label` must be yes or no")
        if answers and line not in said:
            raise BadEntry(f"{answers.name} has no answer to this question")
        output = said.get(line, ASSUMED)
        label = _verdict(output, truth)
        image = folder / datasets.text_of(entry, "image")
        error_types = ("object",) if label == HALLUCINATED else ()
        return Labelled(line, (image,), output, label, question, kinds[0] if kinds else "pope", error_types)

    return _collect(entries, row)


def _answers(path: Path, questions: list[tuple[int, Entry | Bad]]) -> dict[int, str]:
    """The answer to each question, by the question's line."""
    given = [entry for _, entry in _entries(path)]
    if bad := next((entry for entry in given if isinstance(entry, Bad)), None):
        raise errors.StartRefused(f"{path} line {bad.line} {bad.why}")
    rows = [entry for entry in given if not isinstance(entry, Bad)]
    if all("question_id" in row for row in rows):
        by_id = {str(row["question_id"]): row for row in rows}
        pairs = [
            (line, by_id.get(str(question.get("question_id"))))
            for line, question in questions
            if not isinstance(question, Bad)
        ]
    elif len(rows) == len(questions):
        pairs = [(line, row) for (line, _), row in zip(questions, rows, strict=True)]
    else:
        raise errors.StartRefused(
            f"{path} has {len(rows)} answers to {len(questions)} questions and no question_id to match them by"
        )
    texts = [(line, row.get("answer", row.get("text"))) for line, row in pairs if row is not None]
    return {line: text for line, text in texts if isinstance(text, str) and text.strip()}


def _verdict(answer: str, truth: str) -> str:
    said = polarity(answer)
    if said is None:
        return CANNOT_TELL
    return CORRECT if said == truth else HALLUCINATED


def polarity(answer: str) -> str | None:
    """ "yes" or "no" as the first sentence of an answer says it; None where it says neither."""
    words = re.findall(r"[a-z']+", re.split(r"[.!?\n]", answer.strip(), maxsplit=1)[0].lower())
    if any(word in ("no", "not", "none") or word.endswith("n't") for word in words):
        return "no"
    return "yes" if "yes" in words else None


# FOIL: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption", "foil", "foil_word", "foil_id"}]}


def foil(path: Path, folder: Path) -> Dataset:
    """Captions, some with one noun exchanged."""
    whole = _whole(path)
    if not isinstance(whole, dict) or not isinstance(whole.get("images"), list):
        raise errors.StartRefused(f"{path} is no FOIL file: it has no list `images`")
    names = {str(image.get("id")): image.get("file_name") for image in whole["images"] if isinstance(image, dict)}

    def row(line: int, entry: Entry) -> Labelled:
        caption = datasets.text_of(entry, "caption")
        if not isinstance(entry.get("foil"), bool):
            raise BadEntry("`foil` must be true or false")
        name = names.get(str(entry.get("image_id")))
        if not isinstance(name, str):
            raise BadEntry(f"`images` does not name image {entry.get('image_id')!a}")
        if not entry["foil"]:
            return Labelled(line, (folder / name,), caption, CORRECT)
        spans = _word_at(caption, str(entry.get("foil_word", "")))
        return Labelled(line, (folder / name,), caption, HALLUCINATED, error_types=("object",), spans=spans)

    return _collect(_members(whole.get("annotations"), path), row)


def _word_at(text: str, word: str) -> tuple[tuple[int, int], ...]:
    if not word.strip():
        return ()
    return tuple(m.span() for m in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE))


# M-HalDetect: [{"question", "response", "image", "annotations": [{"start", "end", "text", "label"}]}]

_SEGMENTS = ("ACCURATE", "INACCURATE", "ANALYSIS", "UNSURE")


def mhaldetect(path: Path, folder: Path) -> Dataset:
    """Long answers whose segments people marked as accurate or not."""

    def row(line: int, entry: Entry) -> Labelled:
        output = datasets.text_of(entry, "response")
        marked = entry.get("annotations")
        if not isinstance(marked, list):
            raise BadEntry("`annotations` must be a list of segments")
        segments = [_segment(one, output) for one in marked]
        spans = tuple((start, end) for start, end, label in segments if label == "INACCURATE")
        labels = {label for *_, label in segments}
        label = HALLUCINATED if spans else CORRECT if labels & {"ACCURATE"} and "UNSURE" not in labels else CANNOT_TELL
        question = datasets.optional_text(entry, "question")
        return Labelled(line, (folder / _coco_name(entry),), output, label, question, "describe", (), spans)

    return _collect(_members(_whole(path), path), row)


def _segment(one: Any, output: str) -> tuple[int, int, str]:
    """(start, end, label) of a segment that lies where it says it does. Raises BadEntry."""
    if not isinstance(one, dict) or str(one.get("label", "")).upper() not in _SEGMENTS:
        raise BadEntry(f"each annotation needs a `label` of {', '.join(_SEGMENTS)}")
    start, end = one.get("start"), one.get("end")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(output):
        raise BadEntry(f"an annotation must lie within the {len(output)} characters of `response`")
    text = one.get("text")
    if isinstance(text, str) and text.strip() not in output[max(0, start - 1) : end + 1]:
        raise BadEntry(f"the annotation at {start} to {end} is not the text that stands there")
    return start, end, str(one["label"]).upper()


def _coco_name(entry: Entry) -> str:
    """The set names its pictures by COCO's file name or number, all from the validation images of 2014."""
    name = entry.get("image", entry.get("image_id"))
    if isinstance(name, str) and not name.isdigit():
        return name
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise BadEntry("`image` must name a picture")
    return f"COCO_val2014_{int(name):012d}.jpg"


# HallusionBench: [{"category", "subcategory", "visual_input", "question", "gt_answer": "0" | "1", "filename",
#                   "model_prediction"?, a correctness entry of "0", "1" or "2"?}]

_CHECKED = ("correctness", "correct", "gpt4v_output_gpt_check", "model_correctness")


def hallusionbench(path: Path, folder: Path) -> Dataset:
    """Questions with a picture, with a model's prediction where the file holds one; text-only ones are left out."""

    def row(line: int, entry: Entry) -> Labelled | str:
        question = datasets.text_of(entry, "question")
        truth = {"1": "yes", "0": "no"}.get(str(entry.get("gt_answer")))
        if truth is None:
            raise BadEntry('`gt_answer` must be "0" or "1"')
        if str(entry.get("visual_input")) == "0" or not entry.get("filename"):
            return "text-only question"
        output = datasets.optional_text(entry, "model_prediction").strip() or ASSUMED
        checked = next((str(entry[name]) for name in _CHECKED if name in entry), None)
        graded = {"1": CORRECT, "0": HALLUCINATED, "2": CANNOT_TELL}.get(checked or "")
        label = graded if graded and output != ASSUMED else _verdict(output, truth)
        return Labelled(line, (_picture(folder, entry),), output, label, question, _topic(entry))

    return _collect(_members(_whole(path), path), row)


def _picture(folder: Path, entry: Entry) -> Path:
    """Names begin at the folder that holds hallusion_bench/; --images may point at it or into it."""
    name = datasets.text_of(entry, "filename").removeprefix("./")
    return next((path for path in (folder / name, folder / name.partition("/")[2]) if path.is_file()), folder / name)


def _topic(entry: Entry) -> str:
    parts = [str(entry.get(name) or "") for name in ("category", "subcategory")]
    return "/".join(part for part in parts if part)[: datasets.MAX_NAME]
