"""Training data for the demo checker: a pool of drawn scenes on disk, and truth by table instead of by text.

A step compares a batch of scenes with four times as many claims. `truth` answers all of those questions at once
from integer codes, so a caption of another scene that happens to be true is learned as true.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmerwatch_worker.checkers.tokenizers import Words
from toy_vlm import captions, scenes
from toy_vlm.grammar import Claim, Group
from toy_vlm.scenes import COLOURS, GROUNDS, SHAPES, WORDS, Scene

CONTEXT = 24
POSITIVES, NEGATIVES = 6, 8  # sentences kept per scene
# single, pair, count, sign, bars. Reading is learned last and slowest, so a third of the scenes are signs.
KIND_WEIGHTS = (24, 19, 12, 34, 11)
_C, _S = len(COLOURS) + 1, len(SHAPES) + 1  # index 0 means any
SCENE_CODE = _C * _S + 5 + _C
CLAIM_CODE = 11
_ABSENT = -1

# Words that answers of other programs use about drawn shapes: known as words, though no training sentence has them.
_SPARE_WORDS = (
    "and", "the", "with", "in", "of", "on", "it", "its", "color", "colour", "shape", "shapes", "figure", "there", "are",
    "one", "single", "white", "grey", "gray",
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Memory-mapped arrays, one row per scene; the first `len` rows are filled."""

    pixels: NDArray[np.uint8]  # (n, side, side, 3)
    facts: NDArray[np.int8]  # (n, SCENE_CODE)
    tokens: NDArray[np.uint8]  # (n, POSITIVES + NEGATIVES, CONTEXT)
    said: NDArray[np.int8]  # (n, POSITIVES + NEGATIVES, CLAIM_CODE)


def open_pool(folder: Path, rows: int, side: int, mode: Literal["r+", "w+"]) -> Pool:
    """Map the pool's files; mode "w+" creates them."""

    def at(name: str, dtype: Any, *shape: int) -> NDArray[Any]:
        return np.memmap(folder / name, dtype, mode, shape=(rows, *shape))

    sentences = POSITIVES + NEGATIVES
    return Pool(
        at("pixels", np.uint8, side, side, 3), at("facts", np.int8, SCENE_CODE),
        at("tokens", np.uint8, sentences, CONTEXT), at("said", np.int8, sentences, CLAIM_CODE),
    )  # fmt: skip


def fill(pool: Pool, start: int, stop: int, seed: int, tokenizer: Words, done: NDArray[np.int64], worker: int) -> None:
    """Draw scenes into rows start..stop; `done[worker]` counts the finished rows, for the reader."""
    rng = random.Random(seed)
    side = pool.pixels.shape[1]
    for row in range(start, stop):
        kind = rng.choices(scenes.KINDS, weights=KIND_WEIGHTS)[0]
        scene = scenes.sample_where(rng, held_out=False, kind=kind)
        pool.pixels[row] = np.asarray(scenes.render(scene).resize((side, side), Image.Resampling.BICUBIC))
        pool.facts[row] = scene_code(scene)
        for i, claim in enumerate(_sentences(scene, rng)):
            pool.said[row, i] = claim_code(claim)
            pool.tokens[row, i] = padded(tokenizer, captions.say(claim, rng))
        done[worker] = row + 1 - start


def _sentences(scene: Scene, rng: random.Random) -> list[Claim]:
    """POSITIVES true claims and NEGATIVES false ones; the false ones mix all edit kinds evenly."""
    if scene.word is not None:
        return _sign_sentences(scene, scene.word, rng)
    true = [claim for _ in range(3) for claim in captions.claims(scene, rng)]
    positives = true[:2] + rng.choices(true, k=POSITIVES - 2)
    return positives + _false(scene, true, rng, NEGATIVES)


def _false(scene: Scene, true: list[Claim], rng: random.Random, count: int) -> list[Claim]:
    edits = [pair for claim in true for pair in captions.false_neighbours(scene, claim, rng)]
    kinds = sorted({kind for kind, _ in edits})
    # Claimed kinds three times as often: what a small CLIP cannot learn should not take its capacity.
    weights = [3 if kind in captions.CLAIMED_EDITS else 1 for kind in kinds]
    drawn = rng.choices(kinds, weights=weights, k=count)
    return [rng.choice([claim for kind, claim in edits if kind == wanted]) for wanted in drawn]


def _sign_sentences(scene: Scene, word: str, rng: random.Random) -> list[Claim]:
    """Mostly the word itself and six other words: only telling many words apart teaches reading."""
    true = captions.claims(scene, rng)
    others = [str(n) for n in range(100)] if word.isdigit() else list(WORDS)
    wrong = rng.sample([other for other in others if other != word], 6)
    positives = [Claim(sign=word)] * (POSITIVES - 2) + rng.choices(true, k=2)
    return positives + [Claim(sign=other) for other in wrong] + _false(scene, true, rng, NEGATIVES - 6)


def padded(tokenizer: Words, text: str) -> NDArray[np.uint8]:
    """Token ids (CONTEXT,), zeros after the end mark. ValueError when the text is longer."""
    ids = tokenizer.encode(text)
    if len(ids) > CONTEXT:
        raise ValueError(f"a caption has {len(ids)} tokens, more than the context of {CONTEXT}")
    row = np.zeros(CONTEXT, np.uint8)
    row[: len(ids)] = ids
    return row


def build_tokenizer() -> Words:
    """The words of 20 000 captions and answers, then letters and digits, then the marks."""
    rng = random.Random(0)
    seen: set[str] = set(_SPARE_WORDS)
    for _ in range(5000):
        scene = scenes.sample(rng)
        texts = captions.captions(scene, rng) + [text for _, text in captions.edits(scene, rng)]
        texts += [captions.answer(scene, kind) for kind in captions.PROMPTS]
        for text in texts:
            seen.update(word.strip('.,"').lower() for word in text.split())
    letters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    words = sorted(word for word in seen if word and word not in letters and not word.isdigit())
    vocabulary = ["<pad>", "<unknown>", *words, *letters, "<start>", "<end>"]
    if len(vocabulary) > 256:
        raise ValueError(f"{len(vocabulary)} words do not fit the pool's one byte per token")
    return Words(vocabulary, CONTEXT)


# --- truth by table --------------------------------------------------------------------------------------------------


def _index(names: tuple[str, ...], name: str | None) -> int:
    return names.index(name) + 1 if name in names else 0


def _sign_code(text: str) -> int:
    return WORDS.index(text) + 1 if text in WORDS else len(WORDS) + 1 + int(text)


def scene_code(scene: Scene) -> NDArray[np.int8]:
    """(SCENE_CODE,): counts by colour and shape (0 = any), sign, bars, tallest, shortest, ground, colours present."""
    counts = np.zeros((_C, _S), np.int8)
    present = np.zeros(_C, np.int8)
    for thing in scene.things:
        c, s = _index(COLOURS, thing.colour), _index(SHAPES, thing.shape)
        for cell in ((0, 0), (c, 0), (0, s), (c, s)):
            counts[cell] += 1
    for colour in [t.colour for t in scene.things] + [b.colour for b in scene.bars] + [scene.ground]:
        present[_index(COLOURS, colour)] = 1
    rest = (
        _sign_code(scene.word) if scene.word is not None else _ABSENT,
        len(scene.bars),
        _index(COLOURS, captions.extreme(scene, "tallest")),
        _index(COLOURS, captions.extreme(scene, "shortest")),
        _index(GROUNDS, scene.ground),
    )
    return np.concatenate([counts.ravel(), np.array(rest, np.int8), present])


def claim_code(claim: Claim) -> NDArray[np.int8]:
    """(CLAIM_CODE,): two groups of cell and number, a bare colour, sign, bars, tallest, shortest, ground, relation."""
    some, groups = 0, []
    for group in claim.groups:
        if group.n is None and group.shape is None:
            some = _index(COLOURS, group.colour)
        else:
            groups.append((_cell(group), group.n or 0))
    groups += [(0, _ABSENT)] * (2 - len(groups))
    sign = _ABSENT if claim.sign is None else (_sign_code(claim.sign) if claim.sign else 0)
    bars = _ABSENT if claim.bars is None else claim.bars
    code = (
        *groups[0], *groups[1], some, sign, bars, _index(COLOURS, claim.tallest), _index(COLOURS, claim.shortest),
        _index(GROUNDS, claim.ground), int(claim.relation is not None),
    )  # fmt: skip
    return np.array(code, np.int8)


def _cell(group: Group) -> int:
    return _index(COLOURS, group.colour) * _S + _index(SHAPES, group.shape)


def truth(facts: NDArray[np.int8], said: NDArray[np.int8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(scenes, claims) twice: what holds, and what the codes cannot decide (relations; colours of a sign)."""
    at = _C * _S
    sign, bars, tallest, shortest, ground = (facts[:, at + i, None] for i in range(5))
    present = facts[:, at + 5 :]
    holds = np.ones((len(facts), len(said)), np.bool_)
    for g in (0, 2):
        found, wanted = facts[:, said[:, g]], said[None, :, g + 1]
        holds &= (wanted == _ABSENT) | ((wanted == 0) & (found >= 1)) | ((wanted > 0) & (found == wanted))
    some = said[:, 4]
    holds &= (some[None] == 0) | (present[:, some] > 0) | (sign != _ABSENT)
    holds &= (said[None, :, 5] == _ABSENT) | (
        (sign != _ABSENT) & ((said[None, :, 5] == 0) | (said[None, :, 5] == sign))
    )
    holds &= (said[None, :, 6] == _ABSENT) | ((bars > 0) & ((said[None, :, 6] == 0) | (said[None, :, 6] == bars)))
    for column, fact in ((7, tallest), (8, shortest), (9, ground)):
        holds &= (said[None, :, column] == 0) | (said[None, :, column] == fact)
    unsure = holds & ((said[None, :, 10] > 0) | ((some[None] > 0) & (sign != _ABSENT)))
    return holds, unsure
