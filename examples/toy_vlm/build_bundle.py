"""The demo bundle: the trained checker, frozen against the right answers to held-out scenes, as ONNX.

    PYTHONPATH=examples python -m toy_vlm.build_bundle

The reference says what right answers score. By default they are the answers of the example app's grammar; with
`--recorded` they are the right ones among what the recorded VLM really said.
"""

import argparse
import gzip
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cmerwatch import demo_data
from cmerwatch_worker import bundle, claims, export, reference
from cmerwatch_worker.checkers import openclip
from cmerwatch_worker.checkers.base import Checker
from toy_vlm import captions, evaluate_checker, scenes

TRAINED = Path(__file__).parent / "checker"
LICENCE = Path(__file__).parents[2] / "LICENSE"
PER_PROMPT_TYPE = 1000  # claims; a twentieth of them, 50, lie below the 5 % point


@dataclass(frozen=True)
class Answer:
    """One right output with its picture, and the scene where it is known."""

    prompt_type: str
    output: str
    image: Image.Image
    scene: scenes.Scene | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, default=TRAINED, help="folder with config.json and weights.safetensors")
    parser.add_argument("--out", type=Path, default=bundle.DEMO)
    parser.add_argument("--recorded", action="store_true", help="take the recorded VLM's right outputs")
    args = parser.parse_args()
    checker = openclip.load_local(args.trained / "config.json", args.trained / "weights.safetensors")
    answers = recorded() if args.recorded else drawn(random.Random(23), PER_PROMPT_TYPE)
    frozen = freeze(checker, answers)
    export.export(checker, args.out, licence="Apache-2.0", licence_text=LICENCE.read_text(), frozen=frozen)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB, reference {frozen.version}")


def drawn(rng: random.Random, claims_per_type: int) -> list[Answer]:
    """Right answers to held-out scenes until every prompt type has at least this many claims."""
    answers = []
    for prompt_type in captions.PROMPTS:
        missing = claims_per_type
        while missing > 0:
            scene = scenes.sample_where(rng, held_out=True)
            output = captions.answer(scene, prompt_type)
            answers.append(Answer(prompt_type, output, scenes.render(scene), scene))
            missing -= len(list(claims.pieces(output)))
    return answers


def recorded() -> list[Answer]:
    """The recorded outputs that are true of their scenes."""
    truths = Path(__file__).parent / "recorded_truth.jsonl.gz"
    with gzip.open(truths, "rt") as lines:
        correct = {row["event_id"] for row in map(json.loads, lines) if row["true"]}
    return [
        Answer(event.prompt_type, event.output, Image.open(io.BytesIO(demo_data.image(event.images[0]))).convert("RGB"))
        for event in demo_data.recording()
        if event.event_id in correct
    ]


def freeze(checker: Checker, answers: Iterable[Answer], seed: int = 5) -> reference.Reference:
    """Score each answer's claims with their own picture and with another one of the same prompt type.

    ValueError: a prompt type with too few claims.
    """
    rng = random.Random(seed)
    own: dict[str, list[float]] = defaultdict(list)
    mismatched: dict[str, list[float]] = defaultdict(list)
    by_type: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_type[answer.prompt_type].append(answer)
    for prompt_type, group in by_type.items():
        texts, at = _claims(checker, group)
        other = [_stranger(rng, group, i, text) for i, text in zip(at, texts, strict=True)]
        images = [answer.image for answer in group]
        own[prompt_type] = evaluate_checker.similarity(checker, images, texts, at).tolist()
        mismatched[prompt_type] = evaluate_checker.similarity(checker, images, texts, other).tolist()
    return reference.build(own, mismatched)


def _claims(checker: Checker, group: list[Answer]) -> tuple[list[str], list[int]]:
    """Texts of all claims, split as the worker splits them, and the number of the answer each belongs to."""
    texts, at = [], []
    for i, answer in enumerate(group):
        for claim in claims.split(answer.output, checker.context_length, checker.count_tokens, checker.can_read).claims:
            texts.append(claim.text)
            at.append(i)
    return texts, at


def _stranger(rng: random.Random, group: list[Answer], own: int, text: str) -> int:
    """Number of another answer, whose scene the text is not true of as far as that is known."""
    while True:
        i = rng.randrange(len(group))
        scene = group[i].scene
        if i != own and (scene is None or not captions.is_true(scene, text)):
            return i


if __name__ == "__main__":
    main()
