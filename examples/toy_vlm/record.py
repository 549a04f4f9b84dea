"""Records a run: fresh scenes, the real model's answers, the traffic of an app over eight days."""

import gzip
import hashlib
import io
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from cmerwatch.demo_data import RecordedEvent
from toy_vlm import captions, scenes, train_vlm, vlm

DATA = Path(__file__).parents[2] / "cmerwatch" / "demo_data"
TRUTH = Path(__file__).parent / "recorded_truth.jsonl.gz"

SIDE = 320  # px, the longer side
# Worn pictures (noise, JPEG) take ten to a hundred times the room of flat ones and show nothing more.
MAX_COLOURS, MAX_PICTURE_BYTES = 1200, 4500
HOUR, DAY = 3600.0, 86400.0

# Picture kinds and prompt types each endpoint sees; every endpoint may receive any of them.
ENDPOINTS: dict[str, tuple[float, dict[str, float], dict[str, float]]] = {
    "/shop/identify": (
        0.45,
        {"single": 45, "pair": 30, "count": 20, "sign": 3, "bars": 2},
        {"identify": 60, "count": 20, "describe": 20},
    ),
    "/signs/describe": (
        0.30,
        {"sign": 60, "single": 20, "pair": 15, "count": 3, "bars": 2},
        {"identify": 25, "count": 10, "describe": 65},
    ),
    "/reports/ask": (
        0.25,
        {"bars": 40, "count": 30, "single": 15, "pair": 10, "sign": 5},
        {"identify": 25, "count": 40, "describe": 35},
    ),
}
CUSTOMERS = {"northwind-retail": 5.0, "harbor-logistics": 3.0, "studio-lumen": 2.0}

BATCH = 64

VISITS = 1900  # pictures sent; each is asked about 1.5 things
REGRESSED_FOR = 5 * HOUR
CANARY = 0.08  # share of the old version that stays after the switch
RUSH = 0.5 * HOUR  # the busy end of the recording
RUSH_VISITS, AFTERNOON_VISITS = 200, 200  # in the rush, and since the switch until the rush


@dataclass(frozen=True)
class Visit:
    """One picture sent to one endpoint, with the questions asked about it."""

    age: float  # seconds before the end of the recording
    endpoint: str
    customer: str
    version: str
    scene: scenes.Scene
    picture: bytes
    prompt_types: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.picture).hexdigest()


def record(folder: Path = DATA, truth: Path = TRUTH, seed: int = 7) -> None:
    """Writes the events and pictures into `folder`, and what is true of them to `truth`."""
    rng = random.Random(seed)
    visits = [visit(rng, age) for age in sorted(ages(rng), reverse=True)]
    answers = answered(visits)
    events = sorted(spoken(rng, visits, answers), key=lambda pair: -pair[0].age_seconds)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "events.jsonl.gz", (asdict(event) for event, _ in events))
    _write_lines(truth, (facts(event, scene) for event, scene in events))
    _write_pictures(folder / "images.zip", {one.sha256: one.picture for one in visits})


def ages(rng: random.Random) -> Iterator[float]:
    """How long before the end each visit happened: days and nights, then an afternoon, then a rush."""
    for _ in range(RUSH_VISITS):
        yield rng.uniform(0, RUSH)
    for _ in range(AFTERNOON_VISITS):
        # The root of a uniform draw thickens towards the rush.
        yield RUSH + (REGRESSED_FOR - RUSH) * (1 - math.sqrt(rng.random()))
    for _ in range(VISITS - RUSH_VISITS - AFTERNOON_VISITS):
        yield _day_and_night(rng)


def _day_and_night(rng: random.Random) -> float:
    """An age between the switch and eight days; nights have about a tenth of the noon's traffic."""
    while True:
        age = rng.uniform(REGRESSED_FOR, 8 * DAY - HOUR)
        if rng.random() < 0.55 + 0.45 * math.cos(2 * math.pi * (age - 2 * HOUR) / DAY):
            return age


def visit(rng: random.Random, age: float) -> Visit:
    endpoint = _drawn(rng, {name: share for name, (share, _, _) in ENDPOINTS.items()})
    _, kinds, prompt_types = ENDPOINTS[endpoint]
    scene, picture = drawn_picture(rng, _drawn(rng, kinds))
    old = age > REGRESSED_FOR or rng.random() < CANARY
    return Visit(
        age,
        endpoint,
        _drawn(rng, CUSTOMERS),
        vlm.GOOD if old else vlm.REGRESSED,
        scene,
        picture,
        _questions(rng, prompt_types),
    )


def _questions(rng: random.Random, weights: dict[str, float]) -> tuple[str, ...]:
    """One to three different prompt types, the endpoint's usual one most often."""
    asked = {_drawn(rng, weights) for _ in range(rng.choice((1, 2, 3)))}
    return tuple(sorted(asked))


def _drawn(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def drawn_picture(rng: random.Random, kind: str) -> tuple[scenes.Scene, bytes]:
    """A scene no training has seen and its picture as lossless WebP."""
    while True:
        scene = scenes.sample_where(rng, held_out=True, kind=kind)
        picture = scenes.render(scene, SIDE)
        if picture.getcolors(MAX_COLOURS) is None:
            continue
        packed = io.BytesIO()
        picture.save(packed, "WEBP", lossless=True, quality=80, method=4)
        if packed.tell() <= MAX_PICTURE_BYTES:
            return scene, packed.getvalue()


def answered(visits: list[Visit]) -> dict[tuple[int, str], vlm.Answer]:
    """Every visit's answers by (visit number, prompt type), each from its own version's weights."""
    answers: dict[tuple[int, str], vlm.Answer] = {}
    for version, (prompt_type, prompt) in itertools.product((vlm.GOOD, vlm.REGRESSED), captions.PROMPTS.items()):
        model = vlm.load(version)
        asked = [n for n, one in enumerate(visits) if one.version == version and prompt_type in one.prompt_types]
        for start in range(0, len(asked), BATCH):
            numbers = asked[start : start + BATCH]
            pixels = np.stack([model.processor.pixels_of(visits[number].picture) for number in numbers])
            found = model.answer_pixels(pixels, prompt)
            answers |= {(number, prompt_type): answer for number, answer in zip(numbers, found, strict=True)}
    return answers


def spoken(
    rng: random.Random, visits: list[Visit], answers: dict[tuple[int, str], vlm.Answer]
) -> Iterator[tuple[RecordedEvent, scenes.Scene]]:
    for number, one in enumerate(visits):
        for turn, prompt_type in enumerate(one.prompt_types):
            answer = answers[number, prompt_type]
            # Questions about one picture come a few seconds apart, and never after the end.
            age = max(1.0, one.age - turn * rng.uniform(2, 20))
            yield _event(one, f"recorded-{number:05d}-{prompt_type}", age, prompt_type, answer), one.scene


def _event(one: Visit, event_id: str, age: float, prompt_type: str, answer: vlm.Answer) -> RecordedEvent:
    return RecordedEvent(
        event_id=event_id,
        age_seconds=round(age, 3),
        endpoint=one.endpoint,
        prompt_type=prompt_type,
        customer=one.customer,
        model=vlm.NAME,
        model_version=one.version,
        environment="production",
        images=(one.sha256,),
        prompt=captions.PROMPTS[prompt_type],
        output=answer.text,
        tokens=answer.tokens,
        logprobs=tuple(round(value, 6) for value in answer.logprobs),
    )


def facts(event: RecordedEvent, scene: scenes.Scene) -> dict[str, Any]:
    """What is drawn, and whether what was said of it is true."""
    return {
        "event_id": event.event_id,
        "true": train_vlm.is_right(scene, event.output),
        "facts": {
            "kind": scene.kind,
            "things": [[thing.colour, thing.shape] for thing in scene.things],
            "word": scene.word,
            "bars": [[bar.colour, round(bar.height, 3)] for bar in scene.bars],
            "ground": scene.ground,
        },
    }


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))  # no clock: same run, same bytes


def _write_pictures(path: Path, pictures: dict[str, bytes]) -> None:
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for sha256, picture in sorted(pictures.items()):
            archive.writestr(ZipInfo(f"{sha256}.webp"), picture)
