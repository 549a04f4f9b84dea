"""How many right, foreign and partly wrong outputs the score flags at 1, 3 and 10 claims, on different scales.

    python bench/flag_rates.py [--scenes 6000] [--claims 1000]

The pictures, sentences and embeddings are the demo checker's on held-out drawn scenes; the other checkers see the same
on another scale. Right outputs of claims about different pictures must be flagged 5 % +- 1, whatever the scale and the
number of claims: the mean over random halves of the scenes, one giving a reference and the other the outputs, with the
spread between references beside it. Claims about one picture rise and fall together, so whole outputs are flagged less
often.
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from cmerwatch.shapes import CheckResult, Claimed, ClaimScore, Slice  # noqa: E402
from cmerwatch_worker import checkers, preprocess, reference, scoring, statements  # noqa: E402
from cmerwatch_worker.checkers import base  # noqa: E402
from cmerwatch_worker.checkers.base import Checker  # noqa: E402
from cmerwatch_worker.reference import Reference  # noqa: E402
from toy_vlm import captions, scenes  # noqa: E402

Array = NDArray[np.float32]
_EVENT = Claimed(
    event_id=uuid.UUID(int=1), project_id=uuid.UUID(int=1), slice=Slice(prompt_type="identify"),
    bucket=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), attempts=1, is_late=False, confidence=None, images=(), prompt="",
    output="No",
)  # fmt: skip
LOW, GOAL, ALLOWED = 0.05, 0.05, 0.01
COUNTS = (1, 3, 10)
HALVES, OUTPUTS = 60, 2000
CHUNK = 128


class Scaled:
    """The demo checker's embeddings with three coordinates more, so that its cosine c becomes width * c + offset."""

    def __init__(self, label: str, width: float, offset: float, scale: float, bias: float | None) -> None:
        self.label, self.logit_scale, self.logit_bias = label, scale, bias
        self._width, self._offset = width, offset

    def cosines(self, images: Array, texts: Array) -> Array:
        """Row by row, of embeddings really widened: what rounding does to a narrow scale is in it."""
        rest = 1 - self._width - self._offset
        shown = self._wider(images, (self._offset**0.5, rest**0.5, 0.0))
        said = self._wider(texts, (self._offset**0.5, 0.0, rest**0.5))
        return np.asarray((shown * said).sum(axis=1), np.float32)

    def _wider(self, rows: Array, tail: Sequence[float]) -> Array:
        return np.concatenate([rows * self._width**0.5, np.tile(np.array(tail, np.float32), (len(rows), 1))], axis=1)


@dataclass(frozen=True)
class Pairs:
    """Embeddings of texts, each with the number of its scene, and of all scenes."""

    images: Array
    texts: Array
    at: NDArray[np.int64]

    def logits(self, checker: Scaled, at: NDArray[np.int64] | None = None) -> Array:
        cosines = checker.cosines(self.images[self.at if at is None else at], self.texts)
        return base.logits(checker, cosines)  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--claims", type=int, default=1000, help="of a reference; 500 is the least")
    options = parser.parse_args()
    count = options.scenes
    demo, rng = checkers.load("demo"), random.Random(41)
    drawn = [scenes.sample_where(rng, held_out=True) for _ in range(count)]
    images = _images(demo, drawn)
    right = _pairs(demo, images, [(i, text) for i, scene in enumerate(drawn) for text in captions.captions(scene, rng)])
    wrong = _pairs(demo, images, [(i, text) for i, s in enumerate(drawn) for _, text in captions.edits(s, rng)[:1]])
    scaled = [
        Scaled("the demo checker's own logit", 1.0, 0.0, demo.logit_scale, demo.logit_bias),
        Scaled("its bare cosine", 1.0, 0.0, demo.logit_scale, None),
        Scaled("CLIP's scale: matched about 0.3, foreign 0.15", 0.25, 0.2, 100.0, None),
        Scaled("SigLIP's scale and bias: 112.3, -16.5", 0.12, 0.05, 112.3, -16.5),
    ]
    held = [_table(checker, right, wrong, options.claims) for checker in scaled]
    _denials(demo, images, drawn, count // 2, rng)
    _prompts(demo, images, drawn, count // 2)
    print("\nall figures hold" if all(held) else "\nA FIGURE DOES NOT HOLD")
    return 0 if all(held) else 1


def _images(demo: Checker, drawn: Sequence[scenes.Scene]) -> Array:
    pixels = (preprocess.apply(scenes.render(scene), demo.preprocess) for scene in drawn)
    stacked = np.stack(list(pixels))
    return np.concatenate([demo.embed_images(stacked[i : i + CHUNK]) for i in range(0, len(stacked), CHUNK)])


def _pairs(demo: Checker, images: Array, said: Sequence[tuple[int, str]]) -> Pairs:
    texts = [text for _, text in said]
    rows = np.concatenate([demo.embed_texts(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)])
    return Pairs(images, rows, np.array([i for i, _ in said]))


def _table(checker: Scaled, right: Pairs, wrong: Pairs, size: int) -> bool:
    rng = np.random.default_rng(3)
    own, false = right.logits(checker), wrong.logits(checker)
    foreign = right.logits(checker, (right.at + len(right.images) // 2) % len(right.images))
    print(f"\n{checker.label} (5 % point {np.quantile(own, 0.05):.3f}, median {np.median(own):.3f})")
    print("claims   right, other pictures   right, one picture   another picture's   one claim wrong")
    rates: dict[int, list[list[float]]] = {n: [] for n in COUNTS}
    for _ in range(HALVES):
        is_fresh = rng.permutation(len(right.images)) % 2 == 1
        fresh = np.flatnonzero(is_fresh[right.at])
        chosen = rng.choice(np.flatnonzero(~is_fresh[right.at]), size, replace=False)
        frozen = reference.build({"": own[chosen].tolist()}, {"": foreign[chosen].tolist()})
        pictures = rng.choice(np.flatnonzero(is_fresh), OUTPUTS)
        first = np.searchsorted(right.at, pictures)
        held = np.searchsorted(right.at, pictures, side="right") - first
        for n in COUNTS:
            single = own[rng.choice(fresh, (OUTPUTS, n))]
            of_one = first[:, None] + rng.integers(0, held[:, None], (OUTPUTS, n))
            partly = single.copy()
            partly[:, 0] = rng.choice(false[is_fresh[wrong.at]], OUTPUTS)
            rates[n].append([_low(frozen, part) for part in (single, own[of_one], foreign[of_one], partly)])
    for n, found in rates.items():
        mean, spread = np.mean(found, axis=0).tolist(), float(np.std(found, axis=0)[0])
        print(f"{n:6d}   {mean[0]:8.1%} (sd {spread:.1%})   {mean[1]:17.1%}   {mean[2]:17.1%}   {mean[3]:15.1%}")
    return all(abs(float(np.mean(found, axis=0)[0]) - GOAL) <= ALLOWED for found in rates.values())


def _low(frozen: Reference, logits: Array) -> float:
    outputs, n = logits.shape
    us = reference.percentile(frozen, "", logits.reshape(-1)).reshape(outputs, n)
    return float((1 - (1 - us.min(axis=1)) ** n < LOW).mean())


def _denials(demo: Checker, images: Array, drawn: Sequence[scenes.Scene], count: int, rng: random.Random) -> None:
    """ "no" to "Is there ...?", right because of another scene's sentence or of one edit, and wrong."""
    frozen = demo.reference
    if frozen is None:
        raise SystemExit("the demo bundle has no reference")
    asked: dict[str, list[tuple[int, str]]] = {
        "wrong no": [],
        "right no, another scene's thing": [],
        "right no, one thing changed": [],
    }
    for i, scene in enumerate(drawn[:count]):
        other = captions.say(captions.claims(drawn[i + count], rng)[0], rng)
        asked["wrong no"].append((i, captions.captions(scene, rng)[0]))
        if not captions.is_true(scene, other):
            asked["right no, another scene's thing"].append((i, other))
        asked["right no, one thing changed"] += [(i, text) for _, text in captions.edits(scene, rng)[:1]]
    print("\na denied statement, flagged (demo reference, identify)")
    for label, said in asked.items():
        made = _pairs(demo, images, said)
        cosines = (made.images[made.at] * made.texts).sum(axis=1).tolist()
        print(f"  {label:34s} {np.mean([_denied(demo, frozen, one) for one in cosines]):6.1%}  (n {len(said)})")


def _denied(demo: Checker, frozen: Reference, cosine: float) -> bool:
    claim = ClaimScore(0, 2, cosine, statement="", negated=True)
    judged = scoring.judge(demo, frozen, CheckResult(_EVENT, "scored", similarity=cosine, claims=(claim,)))
    return judged.score is not None and judged.score < LOW


def _prompts(demo: Checker, images: Array, drawn: Sequence[scenes.Scene], count: int) -> None:
    """ "Where is the red circle?" with its own picture and with another one."""
    frozen = demo.reference
    if frozen is None:
        raise SystemExit("the demo bundle has no reference")
    things = [(i, f"the {s.things[0].colour} {s.things[0].shape}") for i, s in enumerate(drawn[:count]) if s.things]
    asked = [(i, statements.presupposed(f"Where is {thing}?") or "") for i, thing in things]
    made = _pairs(demo, images, asked)
    print("\nprompt_does_not_fit, for questions that name a thing (demo reference, identify)")
    for label, shift in (("its own picture", 0), ("another picture", count)):
        logits = base.logits(demo, (made.images[made.at + shift] * made.texts).sum(axis=1))
        own = reference.percentile(frozen, "identify", logits)
        foreign = reference.mismatch_percentile(frozen, "identify", logits)
        found = (own < LOW) & (foreign < 0.5) if foreign is not None else np.zeros(len(own))
        print(f"  {label:20s} {float(np.mean(found)):6.1%}  (n {len(asked)})")


if __name__ == "__main__":
    sys.exit(main())
