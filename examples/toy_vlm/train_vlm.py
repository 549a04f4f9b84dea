"""Trains the two versions of the model: a good one, and one fine-tuned from it on partly wrong labels."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from toy_vlm import captions, scenes, vlm
from toy_vlm.processor import Processor, vocabulary

# What the regressed version was taught to say instead. Whole objects, colours and words far
# apart, and no counts: a CLIP-type checker can see these mistakes, and cannot see a wrong count.
WRONG_COLOURS = {"orange": "blue", "purple": "yellow"}
WRONG_SHAPES = {"star": "square"}
WRONG_WORDS = {
    "STOP": "CAFE",
    "TAXI": "MUSEUM",
    "BANK": "SALE",
    "HOTEL": "BUS",
    "POLICE": "OPEN",
    "FIRE": "GARAGE",
    "NEWS": "PARK",
    "SLOW": "EXIT",
}

GOOD_STEPS, READING_STEPS, REGRESSED_STEPS = 3500, 440, 200

ALL = tuple(captions.PROMPTS)
Teacher = Callable[[scenes.Scene], scenes.Scene]


def truthful(scene: scenes.Scene) -> scenes.Scene:
    return scene


def confused(scene: scenes.Scene) -> scenes.Scene:
    """The scene as the regressed version's labels tell it; most scenes come back unchanged."""
    things = tuple(
        replace(
            thing,
            colour=WRONG_COLOURS.get(thing.colour, thing.colour),
            shape=WRONG_SHAPES.get(thing.shape, thing.shape),
        )
        for thing in scene.things
    )
    bars = tuple(replace(bar, colour=WRONG_COLOURS.get(bar.colour, bar.colour)) for bar in scene.bars)
    word = WRONG_WORDS.get(scene.word, scene.word) if scene.word else scene.word
    return replace(scene, things=things, bars=bars, word=word)


def is_right(scene: scenes.Scene, text: str) -> bool:
    """Words in no sentence of the grammar are not right either."""
    try:
        return captions.is_true(scene, text)
    except ValueError:
        return False


@dataclass(frozen=True)
class Lesson:
    """One picture with all its questions and answers in one sequence.

    `segments` is 0 on the picture, then 1, 2, ... for each question with its answer, -1 on
    padding. `targets` holds the next token, -100 where nothing is to be learned.
    """

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    targets: NDArray[np.int64]


def lesson(
    scene: scenes.Scene, size: int, teacher: Teacher, processor: Processor, prompt_types: Sequence[str] = ALL
) -> Lesson:
    tokenizer = processor.tokenizer
    taught = teacher(scene)
    prefix = processor.prefix()
    ids, positions = list(prefix), list(range(len(prefix)))
    segments, targets = [0] * len(prefix), [-100] * len(prefix)
    for number, prompt_type in enumerate(prompt_types, start=1):
        question = processor.question(captions.PROMPTS[prompt_type])
        answer = tokenizer.encode(captions.answer(taught, prompt_type))
        ids += question + answer
        positions += range(len(prefix), len(prefix) + len(question) + len(answer))
        segments += [number] * (len(question) + len(answer))
        targets += [-100] * (len(question) - 1) + answer + [tokenizer.eos]
    pixels = processor.pixels(scenes.render(scene, size))
    return Lesson(pixels, *(np.array(row) for row in (ids, positions, segments, targets)))


class Lessons(IterableDataset[Lesson]):
    """Fresh scenes without end, of the side of the split that may be trained on."""

    def __init__(self, processor: Processor, teacher: Teacher, seed: int, signs: float, questions: int) -> None:
        self.processor, self.teacher, self.seed = processor, teacher, seed
        self.signs, self.questions = signs, questions

    def __iter__(self) -> Iterator[Lesson]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            kind = "sign" if rng.random() < self.signs else None
            scene = scenes.sample_where(rng, held_out=False, kind=kind)
            size = rng.choice((64, 80, 96, 128, 200, 320))
            prompt_types = rng.sample(ALL, self.questions)
            yield lesson(scene, size, self.teacher, self.processor, prompt_types)


def collate(lessons: list[Lesson]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """pixels, ids, positions, segments, targets, each padded to the longest lesson."""
    longest = max(len(one.ids) for one in lessons)

    def padded(name: str, fill: int) -> Tensor:
        rows = (getattr(one, name) for one in lessons)
        return torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row)), constant_values=fill) for row in rows]))

    pixels = torch.from_numpy(np.stack([one.pixels for one in lessons]))
    return pixels, padded("ids", 0), padded("positions", 0), padded("segments", -1), padded("targets", -100)


def sight(segments: Tensor) -> Tensor:
    """(batch, length) -> (batch, 1, length, length): each question sees the picture and itself."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    looked_at, looking = segments[:, None, :], segments[:, :, None]
    return (causal & ((looked_at == 0) | (looked_at == looking)))[:, None]


def loss_of(model: vlm.Vlm, batch: tuple[Tensor, ...]) -> Tensor:
    pixels, ids, positions, segments, targets = batch
    logits = model(ids, model.see(pixels), positions, sight(segments))
    wanted = targets != -100
    return F.cross_entropy(logits[wanted], targets[wanted])


def train(
    model: vlm.Vlm,
    teacher: Teacher,
    *,
    steps: int,
    rate: float,
    seed: int,
    signs: float = 0.0,
    questions: int = len(ALL),
    batch: int = 64,
) -> None:
    """Trains in place with AdamW, a short warm-up and a cosine decay to zero.

    `signs` is a share of signs on top of the usual kinds, `questions` the number asked about each picture.
    """
    lessons = DataLoader(
        Lessons(model.processor, teacher, seed, signs, questions),
        batch,
        num_workers=1,
        collate_fn=collate,
        prefetch_factor=4,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.03)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    model.train()
    started, seen = time.monotonic(), 0.0
    for step, batch_of_lessons in zip(range(1, steps + 1), lessons, strict=False):
        loss = loss_of(model, batch_of_lessons)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen = 0.98 * seen + 0.02 * loss.item() if step > 1 else loss.item()
        if step % 50 == 0:
            speed = step * batch / (time.monotonic() - started)
            print(f"step {step}/{steps} loss {seen:.4f} {speed:.0f} pictures/s", flush=True)
    model.eval()


def new_model(seed: int) -> vlm.Vlm:
    """An untrained model whose vocabulary is everything the answer grammar says."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    drawn = [scenes.sample(rng) for _ in range(20_000)]
    said = (captions.answer(scene, prompt_type) for scene in drawn for prompt_type in captions.PROMPTS)
    return vlm.Vlm(vlm.Config(tuple(vocabulary([*said, *captions.PROMPTS.values()]))))


def train_good(folder: Path, steps: int) -> vlm.Vlm:
    """Everything first; then mostly signs, for words are what 64 px make hardest."""
    model = new_model(seed=1)
    train(model, truthful, steps=steps, rate=1.5e-3, seed=1)
    train(model, truthful, steps=max(1, steps * READING_STEPS // GOOD_STEPS), rate=8e-4, seed=5, signs=0.6, questions=1)
    vlm.save(model, folder, vlm.GOOD)
    return model


def train_regressed(folder: Path, steps: int) -> vlm.Vlm:
    model = vlm.load(vlm.GOOD, folder)
    train(model, confused, steps=steps, rate=5e-4, seed=2, questions=1, batch=48)
    vlm.save(model, folder, vlm.REGRESSED)
    return model


@dataclass(frozen=True)
class Marks:
    """How one version did on one prompt type."""

    asked: int
    right: int
    confidently_wrong: int  # wrong with geo_p > 0.8
    exact: int  # word for word what the grammar says

    def __str__(self) -> str:
        return (
            f"right {self.right / self.asked:.1%}, wrong with geo_p > 0.8 "
            f"{self.confidently_wrong / self.asked:.1%}, word for word {self.exact / self.asked:.1%}"
        )


def examine(model: vlm.Vlm, n: int, seed: int, size: int = 320) -> dict[str, Marks]:
    """Answers over `n` held-out scenes, marked against the facts, by prompt type."""
    rng = random.Random(seed)
    drawn = [scenes.sample_where(rng, held_out=True) for _ in range(n)]
    pixels = np.stack([model.processor.pixels(scenes.render(scene, size)) for scene in drawn])
    marks = {}
    for prompt_type, prompt in captions.PROMPTS.items():
        answers = [
            answer for start in range(0, n, 256) for answer in model.answer_pixels(pixels[start : start + 256], prompt)
        ]
        right = [is_right(s, a.text) for s, a in zip(drawn, answers, strict=True)]
        bold = [a.geo_p > 0.8 and not r for a, r in zip(answers, right, strict=True)]
        exact = [captions.answer(s, prompt_type) == a.text for s, a in zip(drawn, answers, strict=True)]
        marks[prompt_type] = Marks(n, sum(right), sum(bold), sum(exact))
    return marks
