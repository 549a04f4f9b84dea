"""Labelled files of drawn scenes for `cmerwatch checker evaluate`.

    PYTHONPATH=examples python -m toy_vlm.evaluation_set FOLDER
    cmerwatch checker evaluate FOLDER/claimed.jsonl --checker demo

claimed.jsonl    true sentences and single edits of the kinds the demo checker is claimed to see
unclaimed.jsonl  the kinds it is not claimed to see, its blind spots among them
foreign.jsonl    right answers, and the same answers with another scene's picture: the wrong image
recorded.jsonl   what the recorded VLM really said, with the truth
pope.json        questions in POPE's shape, "Is there a red circle in the image?", and in answers.jsonl answers that are
                 right half of the time: evaluate with --format pope, with and without --answers
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cmerwatch import demo_data
from toy_vlm import captions, evaluate_checker, scenes

Row = dict[str, Any]
SCENES = 3000
_TRUTHS = Path(__file__).parent / "recorded_truth.jsonl.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=SCENES)
    args = parser.parse_args()
    for name, rows in write(args.folder, args.scenes).items():
        print(f"{args.folder / name}: {rows} rows")


def write(folder: Path, count: int, seed: int = 7) -> dict[str, int]:
    """Write the files and their pictures; returns rows by file name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    drawn = [scenes.sample_where(rng, held_out=True) for _ in range(count)]
    for i, scene in enumerate(drawn):
        scenes.render(scene).save(folder / _picture(i))
    edits = [row for i, scene in enumerate(drawn) for row in _edits(i, scene, rng)]
    sets = {
        "claimed.jsonl": [row for row in edits if row["error_type"] in captions.CLAIMED_EDITS],
        "unclaimed.jsonl": [row for row in edits if row["error_type"] in captions.UNCLAIMED_EDITS],
        "foreign.jsonl": list(_foreign(drawn)),
        "recorded.jsonl": list(_recorded(folder)),
        "pope.json": [question for i, scene in enumerate(drawn) for question in _questions(i, scene, rng)],
    }
    answers = [{"question_id": q["question_id"], "answer": rng.choice(("Yes", "No"))} for q in sets["pope.json"]]
    _save(folder / "answers.jsonl", answers)
    return {name: _save(folder / name, rows) for name, rows in sets.items()}


def _picture(i: int) -> str:
    return f"images/scene-{i:05d}.png"


def _edits(i: int, scene: scenes.Scene, rng: random.Random) -> Iterator[Row]:
    """True sentences and their edits. A true one names the kind of error it is the counterpart of."""
    for kind, is_true, text in evaluate_checker.questions(scene, rng):
        label = "correct" if is_true else "hallucinated"
        yield {"image": _picture(i), "output": text, "label": label, "error_type": kind}


def _foreign(drawn: list[scenes.Scene]) -> Iterator[Row]:
    """Each scene's right answers under its own picture, and under the next scene's where they are wrong there."""
    for i, scene in enumerate(drawn):
        other = (i + 1) % len(drawn)
        for prompt_type, prompt in captions.PROMPTS.items():
            text = captions.answer(scene, prompt_type)
            row = {"prompt": prompt, "prompt_type": prompt_type, "output": text}
            yield {**row, "image": _picture(i), "label": "correct"}
            if not captions.is_true(drawn[other], text):
                yield {**row, "image": _picture(other), "label": "hallucinated", "error_type": "wrong image"}


def _questions(i: int, scene: scenes.Scene, rng: random.Random) -> Iterator[Row]:
    """One question about a thing that is there and one about a thing that is not, for scenes of things."""
    here = sorted({(thing.colour, thing.shape) for thing in scene.things})
    absent = sorted({(colour, shape) for colour in scenes.COLOURS for shape in scenes.SHAPES} - set(here))
    for truth, choices in (("yes", here), ("no", absent)) if here else ():
        colour, shape = rng.choice(choices)
        text = f"Is there {'an' if colour == 'orange' else 'a'} {colour} {shape} in the image?"
        yield {"question_id": f"{i}-{truth}", "image": _picture(i), "text": text, "label": truth}


def _recorded(folder: Path) -> Iterator[Row]:
    with gzip.open(_TRUTHS, "rt") as lines:
        truths = {row["event_id"]: row["true"] for row in map(json.loads, lines)}
    for event in demo_data.recording():
        name = f"images/{event.images[0]}.webp"
        if not (folder / name).exists():
            (folder / name).write_bytes(demo_data.image(event.images[0]))
        label = "correct" if truths[event.event_id] else "hallucinated"
        said = {"prompt": event.prompt, "prompt_type": event.prompt_type, "output": event.output}
        yield {"image": name, **said, "label": label}


def _save(path: Path, rows: Iterable[Row]) -> int:
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    return len(lines)


if __name__ == "__main__":
    main()
