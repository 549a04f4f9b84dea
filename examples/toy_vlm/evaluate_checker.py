"""What a checker can and cannot see in drawn scenes: AUROC of true sentences against false ones, with intervals."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmerwatch_worker import preprocess
from cmerwatch_worker.checkers.base import Checker, logits
from toy_vlm import captions, foreign, scenes
from toy_vlm.grammar import Claim

Array = NDArray[np.float32]
_CHUNK = 128
_RESAMPLES = 300


@dataclass(frozen=True)
class Auroc:
    """Chance that a true sentence scores above a false one, with its 95 % bootstrap interval over scenes."""

    value: float
    low: float
    high: float
    true: int
    false: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]  ({self.true} true, {self.false} false)"


@dataclass
class Measured:
    """Logits of sentences with the number of the scene each belongs to."""

    true: list[float] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    true_scene: list[int] = field(default_factory=list)
    false_scene: list[int] = field(default_factory=list)

    def add(self, scene: int, true: Iterable[float], false: Iterable[float]) -> None:
        for logit in true:
            self.true.append(logit)
            self.true_scene.append(scene)
        for logit in false:
            self.false.append(logit)
            self.false_scene.append(scene)

    def auroc(self) -> Auroc:
        true, false = np.array(self.true), np.array(self.false)
        spread = self._bootstrap(true, false)
        low, high = np.quantile(spread, (0.025, 0.975)).tolist()
        return Auroc(area(true, false), low, high, len(true), len(false))

    def _bootstrap(self, true: NDArray[np.float64], false: NDArray[np.float64]) -> list[float]:
        """Scenes are drawn, not sentences: the sentences of one picture rise and fall together."""
        rng = np.random.default_rng(0)
        count = max([*self.true_scene, *self.false_scene]) + 1
        values = []
        for _ in range(_RESAMPLES):
            weight = np.bincount(rng.integers(0, count, count), minlength=count)
            resampled = np.repeat(true, weight[self.true_scene]), np.repeat(false, weight[self.false_scene])
            if all(len(part) for part in resampled):
                values.append(area(*resampled))
        return values


def area(true: NDArray[np.float64], false: NDArray[np.float64]) -> float:
    """AUROC by ranks; ties count half."""
    ordered = np.sort(false)
    below, upto = np.searchsorted(ordered, true, "left"), np.searchsorted(ordered, true, "right")
    return float((below + upto).mean() / 2 / len(false))


def similarity(checker: Checker, images: Sequence[Image.Image], texts: Sequence[str], at: Sequence[int]) -> Array:
    """Logit of each text with image number `at[i]`."""
    shown = np.concatenate([_embed_images(checker, images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)])
    said = np.concatenate([checker.embed_texts(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)])
    return logits(checker, (shown[np.asarray(at)] * said).sum(axis=1))


def _embed_images(checker: Checker, images: Sequence[Image.Image]) -> Array:
    return checker.embed_images(np.stack([preprocess.apply(image, checker.preprocess) for image in images]))


def held_out(checker: Checker, count: int, seed: int = 7) -> dict[str, Auroc]:
    """AUROC on `count` held-out scenes: "claimed" pooled over the claimed edits, each edit kind, and "other scene"."""
    rng = random.Random(seed)
    drawn = [scenes.sample_where(rng, held_out=True) for _ in range(count)]
    asked = [(i, *one) for i, scene in enumerate(drawn) for one in questions(scene, rng)]
    strangers = [drawn[i - 1] for i in range(count)]
    foreign_claims = [captions.say(captions.claims(scene, rng)[0], rng) for scene in strangers]
    texts = [text for _, _, _, text in asked] + foreign_claims
    found = similarity(checker, [scenes.render(s) for s in drawn], texts, [i for i, *_ in asked] + list(range(count)))
    return _by_kind(asked, found, [captions.is_true(s, t) for s, t in zip(drawn, foreign_claims, strict=True)])


Question = tuple[str, bool, str]  # edit kind, whether the sentence is true, the sentence


def questions(scene: scenes.Scene, rng: random.Random) -> list[Question]:
    """For one true claim of each family: itself once per edit kind, and the edits."""
    asked: list[Question] = []
    for claim in _one_per_family(scene, rng):
        for kind, edit in captions.false_neighbours(scene, claim, rng):
            asked += [(kind, True, captions.say(claim, rng)), (kind, False, captions.say(edit, rng))]
    return asked


def _one_per_family(scene: scenes.Scene, rng: random.Random) -> list[Claim]:
    families: dict[tuple[bool, ...], list[Claim]] = {}
    for claim in captions.claims(scene, rng):
        key = tuple(getattr(claim, name) not in (None, ()) for name in Claim.__dataclass_fields__)
        families.setdefault(key, []).append(claim)
    return [rng.choice(group) for group in families.values()]


def _by_kind(asked: list[tuple[int, str, bool, str]], found: Array, stranger_is_true: list[bool]) -> dict[str, Auroc]:
    by_kind: dict[str, Measured] = {"claimed": Measured()}
    everything = Measured()
    for (scene, kind, is_true, _), logit in zip(asked, found[: len(asked)].tolist(), strict=True):
        for name in (kind, "claimed") if kind in captions.CLAIMED_EDITS else (kind,):
            by_kind.setdefault(name, Measured()).add(scene, [logit] if is_true else [], [] if is_true else [logit])
        everything.add(scene, [logit] if is_true else [], [])
    for scene, logit in enumerate(found[len(asked) :].tolist()):
        if not stranger_is_true[scene]:
            everything.add(scene, [], [logit])
    return {**{kind: measured.auroc() for kind, measured in by_kind.items()}, "other scene": everything.auroc()}


def plain_shapes(checker: Checker, count: int, seed: int = 11) -> Auroc:
    """AUROC on shapes drawn without the renderer."""
    rng = random.Random(seed)
    pairs = [foreign.pair(rng) for _ in range(count)]
    texts = [text for _, true, false in pairs for text in (true, false)]
    found = similarity(checker, [image for image, _, _ in pairs], texts, [i for i in range(count) for _ in range(2)])
    measured = Measured()
    for i in range(count):
        measured.add(i, [float(found[2 * i])], [float(found[2 * i + 1])])
    return measured.auroc()
