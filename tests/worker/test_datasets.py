"""Labelled files: our own lines and four public shapes, every bad entry named, none skipped in silence."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmerwatch import errors
from cmerwatch_worker import datasets
from cmerwatch_worker.datasets import Dataset, public

GOOD = {"image": "a.png", "prompt": "What is this?", "output": "A red circle.", "label": "correct"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "COCO_val2014_000000000042.jpg"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def write(folder: Path, *entries: object, name: str = "set.jsonl") -> Path:
    """One JSON per line; bytes as they are."""
    lines = [entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in entries]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def array(folder: Path, content: object, name: str = "set.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def labels(found: Dataset) -> list[str]:
    return [row.label for row in found.rows]


def test_a_line_says_picture_output_verdict_and_what_is_wrong(folder: Path) -> None:
    entry = {
        **GOOD, "image": ["a.png", "b.png"], "label": "hallucinated", "prompt_type": "identify",
        "error_type": ["colour", "shape"], "spans": [[2, 5], [6, 12]],
    }  # fmt: skip
    (row,) = datasets.read(write(folder, entry), "jsonl").rows
    assert row.images == (folder / "a.png", folder / "b.png")
    assert (row.line, row.output, row.label, row.prompt_type) == (1, "A red circle.", "hallucinated", "identify")
    assert (row.error_types, row.spans) == (("colour", "shape"), ((2, 5), (6, 12)))


def test_reviewers_verdicts_are_labels(folder: Path) -> None:
    verdicts = ("correct", "partially_correct", "hallucinated", "cannot_tell")
    found = datasets.read(write(folder, *({**GOOD, "label": verdict} for verdict in verdicts)), "jsonl")
    assert labels(found) == ["correct", "hallucinated", "hallucinated", "cannot_tell"]


def test_pictures_may_lie_in_another_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    found = datasets.read(write(elsewhere, GOOD), "jsonl", images=folder)
    assert found.rows[0].images == (folder / "a.png",)


@pytest.mark.parametrize(
    "entry, why",
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"output": "\xff"}', "is not UTF-8 at byte 12"),
        ([1, 2], "must be a JSON object, not a list"),
        ({**GOOD, "label": "yes"}, "`label` must be one of correct,"),
        ({**GOOD, "label": True}, "`label` must be one of correct,"),
        ({**GOOD, "label": {}}, "`label` must be one of correct,"),
        ({**GOOD, "label": None}, "`label` must be one of correct,"),
        ({**GOOD, "output": " "}, "`output` must be a text that is not empty"),
        ({**GOOD, "output": 3}, "`output` must be a text that is not empty"),
        ({**GOOD, "prompt": 3}, "`prompt` must be a text, not a number"),
        ({**GOOD, "image": ""}, "`image` must be the path of a picture"),
        ({**GOOD, "image": []}, "`image` must be the path of a picture"),
        ({**GOOD, "image": ["a.png"] * 17}, "a list of 1 to 16 paths"),
        ({**GOOD, "image": None}, "`image` must be the path of a picture"),
        ({**GOOD, "image": "nowhere.png"}, "there is no image file"),
        ({**GOOD, "image": "a\x00.png"}, "there is no image file"),
        ({**GOOD, "prompt_type": "x" * 129}, "`prompt_type` must be a name of at most 128"),
        ({**GOOD, "error_type": [1]}, "`error_type` must be a name"),
        ({**GOOD, "spans": "0-3"}, "`spans` must be a list"),
        ({**GOOD, "spans": [[0, 14]]}, r"`spans` must be \[start, end\) within the 13"),
        ({**GOOD, "spans": [[3, 3]]}, "`spans` must be"),
        ({**GOOD, "spans": [[0, True]]}, "`spans` must be"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(folder: Path, entry: object, why: str) -> None:
    found = datasets.read(write(folder, GOOD, entry, GOOD), "jsonl")
    assert [row.line for row in found.rows] == [1, 3]
    (bad,) = found.bad
    assert bad.line == 2
    assert re.search(why, bad.why), bad.why


def test_empty_lines_are_no_entries_and_keep_the_count_right(folder: Path) -> None:
    found = datasets.read(write(folder, GOOD, b"", b"  ", GOOD), "jsonl")
    assert [row.line for row in found.rows] == [1, 4]
    assert not found.bad


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("correct"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
NAMES = st.sampled_from(["image", "images", "output", "label", "prompt", "prompt_type", "error_type", "spans"])


@given(st.binary(max_size=60) | st.dictionaries(NAMES, ANYTHING).map(lambda entry: json.dumps(entry).encode()))
def test_whatever_a_line_holds_it_is_a_row_or_a_named_fault(data: bytes) -> None:
    with contextlib.suppress(datasets.BadEntry):
        row = datasets._labelled(1, datasets.parsed(data), Path("."), None)
        assert row.output
        assert row.images


def test_a_file_that_is_not_there_is_refused(folder: Path) -> None:
    for kind in datasets.FORMATS:
        with pytest.raises(errors.StartRefused, match="cannot be read"):
            datasets.read(folder / "nowhere.json", kind)


def test_an_unknown_format_is_answered_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(errors.StartRefused, match="jsonl, pope, foil, mhaldetect, hallusionbench"):
        datasets.read(write(folder, GOOD), "coco")


def test_a_folder_of_pictures_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(errors.StartRefused, match="no folder of images"):
        datasets.read(write(folder, GOOD), "jsonl", images=folder / "nowhere")


# POPE

POPE = [
    {"question_id": 1, "image": "a.png", "text": "Is there a circle in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.png", "text": "Is there a boat in the image?", "label": "no"},
]


def test_pope_without_answers_asks_whether_yes_is_true(folder: Path) -> None:
    found = datasets.read(write(folder, *POPE, name="coco_pope_popular.json"), "pope")
    assert labels(found) == ["correct", "hallucinated"]
    assert [row.output for row in found.rows] == ["Yes.", "Yes."]
    assert found.rows[1].prompt == "Is there a boat in the image?"
    assert found.rows[1].error_types == ("object",)
    assert {row.prompt_type for row in found.rows} == {"popular"}


def test_pope_with_a_models_answers_judges_those(folder: Path) -> None:
    answers = write(
        folder,
        {"question_id": 2, "answer": "No, there is no boat."},
        {"question_id": 1, "answer": "No."},
        name="answers.jsonl",
    )
    found = datasets.read(write(folder, *POPE, name="pope.json"), "pope", answers=answers)
    assert [(row.output, row.label) for row in found.rows] == [
        ("No.", "hallucinated"),
        ("No, there is no boat.", "correct"),
    ]


def test_pope_answers_without_ids_are_taken_in_order(folder: Path) -> None:
    answers = write(folder, {"answer": "Yes"}, {"answer": "It may be so"}, name="answers.jsonl")
    found = datasets.read(write(folder, *POPE, name="pope.json"), "pope", answers=answers)
    assert labels(found) == ["correct", "cannot_tell"]
    short = write(folder, {"answer": "Yes"}, name="short.jsonl")
    with pytest.raises(errors.StartRefused, match="1 answers to 2 questions"):
        datasets.read(folder / "pope.json", "pope", answers=short)


def test_a_pope_question_without_truth_or_answer_is_named(folder: Path) -> None:
    answers = write(folder, {"question_id": 1, "answer": "yes"}, name="answers.jsonl")
    path = write(folder, *POPE, {**POPE[0], "label": "maybe"}, name="pope.json")
    found = datasets.read(path, "pope", answers=answers)
    assert [(bad.line, bad.why) for bad in found.bad] == [
        (2, "answers.jsonl has no answer to this question"),
        (3, "`label` must be yes or no"),
    ]


def test_answers_belong_to_questions_only(folder: Path) -> None:
    with pytest.raises(errors.StartRefused, match="--format pope"):
        datasets.read(write(folder, GOOD), "jsonl", answers=folder / "x")


@pytest.mark.parametrize(
    "answer, said",
    [
        ("Yes", "yes"),
        ("yes, there is a dog.", "yes"),
        ("No, it is a cat. Yes.", "no"),
        ("There isn't any dog.", "no"),
        ("There is not a dog", "no"),
        ("A dog.", None),
        ("", None),
    ],
)
def test_the_first_sentence_says_yes_or_no(answer: str, said: str | None) -> None:
    assert public.polarity(answer) == said


# FOIL

FOIL = {
    "images": [{"id": 5, "file_name": "a.png"}],
    "annotations": [
        {"id": 1, "foil_id": 1, "image_id": 5, "caption": "A cat by a cathedral.", "foil": False,
         "target_word": "ORIG", "foil_word": "ORIG"},
        {"id": 1, "foil_id": 2, "image_id": 5, "caption": "A dog by a dogged man.", "foil": True,
         "target_word": "cat", "foil_word": "dog"},
    ],
}  # fmt: skip


def test_foil_marks_the_exchanged_word(folder: Path) -> None:
    found = datasets.read(array(folder, FOIL), "foil")
    assert labels(found) == ["correct", "hallucinated"]
    assert found.rows[1].spans == ((2, 5),)
    assert found.rows[1].error_types == ("object",)
    assert found.rows[0].images == (folder / "a.png",)


@pytest.mark.parametrize(
    "change, why",
    [({"image_id": 6}, "does not name image 6"), ({"foil": "yes"}, "`foil` must be"), ({"caption": ""}, "`caption`")],
)
def test_a_bad_foil_entry_is_named(folder: Path, change: dict[str, object], why: str) -> None:
    annotations = [FOIL["annotations"][0], {**FOIL["annotations"][1], **change}]
    found = datasets.read(array(folder, {**FOIL, "annotations": annotations}), "foil")
    assert len(found.rows) == 1
    assert found.bad[0].line == 2
    assert why in found.bad[0].why


@pytest.mark.parametrize("content", [[], {"images": 3}, {"images": [], "annotations": {}}])
def test_what_is_no_foil_file_is_refused(folder: Path, content: object) -> None:
    with pytest.raises(errors.StartRefused):
        datasets.read(array(folder, content), "foil")


# M-HalDetect


def mhal(*segments: tuple[str, str], image: object = "a.png") -> dict[str, object]:
    response, marked = "", []
    for text, label in segments:
        marked.append({"start": len(response), "end": len(response) + len(text), "text": text, "label": label})
        response += text
    return {"question": "Describe it.", "response": response, "image": image, "annotations": marked}


def test_mhaldetect_keeps_the_inaccurate_segments_as_spans(folder: Path) -> None:
    entry = mhal(("A red dog. ", "ACCURATE"), ("It sleeps.", "INACCURATE"), (" Nice.", "ANALYSIS"))
    (row,) = datasets.read(array(folder, [entry]), "mhaldetect").rows
    assert row.label == "hallucinated"
    assert [row.output[start:end] for start, end in row.spans] == ["It sleeps."]


def test_mhaldetect_answers_nobody_was_sure_of_are_not_called_correct(folder: Path) -> None:
    entries = [
        mhal(("A dog.", "ACCURATE")),
        mhal(("A dog.", "ACCURATE"), (" It sleeps.", "UNSURE")),
        mhal(("Lovely.", "ANALYSIS")),
    ]
    found = datasets.read(array(folder, entries), "mhaldetect")
    assert labels(found) == ["correct", "cannot_tell", "cannot_tell"]


def test_mhaldetect_pictures_may_be_coco_numbers(folder: Path) -> None:
    entries = [mhal(("A dog.", "ACCURATE"), image=number) for number in (42, "42")]
    found = datasets.read(array(folder, entries), "mhaldetect")
    assert {row.images[0].name for row in found.rows} == {"COCO_val2014_000000000042.jpg"}
    assert len(found.rows) == 2


def test_an_annotation_that_lies_elsewhere_than_its_text_is_named(folder: Path) -> None:
    moved = mhal(("A dog.", "ACCURATE"), (" It sleeps on it.", "INACCURATE"))
    moved["annotations"][1]["start"] = 0  # type: ignore[index]
    moved["annotations"][1]["end"] = 6  # type: ignore[index]
    found = datasets.read(array(folder, [moved, mhal(("A dog.", "MAYBE"))]), "mhaldetect")
    assert [bad.line for bad in found.bad] == [1, 2]
    assert "is not the text that stands there" in found.bad[0].why


# HallusionBench

HALLUSION = {
    "category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "0",
    "question_id": "0", "question": "Is the left circle larger?", "gt_answer": "0", "filename": "./hb/VD/a.png",
}  # fmt: skip


@pytest.fixture
def hallusion(folder: Path) -> Path:
    (folder / "hb" / "VD").mkdir(parents=True)
    (folder / "a.png").rename(folder / "hb" / "VD" / "a.png")
    return folder


def test_hallusionbench_asks_yes_where_no_prediction_is_held(hallusion: Path) -> None:
    (row,) = datasets.read(array(hallusion, [HALLUSION]), "hallusionbench").rows
    assert (row.output, row.label, row.prompt_type) == ("Yes.", "hallucinated", "VD/illusion")


def test_hallusionbench_predictions_are_judged_by_their_grade_or_their_yes_or_no(hallusion: Path) -> None:
    entries = [
        {**HALLUSION, "model_prediction": "No, they are the same."},
        {**HALLUSION, "model_prediction": "Yes, it is."},
        {**HALLUSION, "model_prediction": "They are alike.", "gpt4v_output_gpt_check": "1"},
        {**HALLUSION, "model_prediction": "Hard to say.", "gpt4v_output_gpt_check": "2"},
    ]
    found = datasets.read(array(hallusion, entries), "hallusionbench")
    assert labels(found) == ["correct", "hallucinated", "correct", "cannot_tell"]


def test_hallusionbench_questions_without_a_picture_are_left_out_and_counted(hallusion: Path) -> None:
    entries = [HALLUSION, {**HALLUSION, "visual_input": "0"}, {**HALLUSION, "filename": None}]
    found = datasets.read(array(hallusion, entries), "hallusionbench", images=hallusion / "hb")
    assert len(found.rows) == 1
    assert found.left_out == {"text-only question": 2}
    assert not found.bad


def test_hallusionbench_entries_without_truth_are_named(hallusion: Path) -> None:
    found = datasets.read(array(hallusion, [{**HALLUSION, "gt_answer": "perhaps"}, 3]), "hallusionbench")
    assert [bad.line for bad in found.bad] == [1, 2]
