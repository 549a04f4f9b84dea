"""What contrast sets gain: AUROC of true drawn sentences against false ones, without them and with them.

    python bench/contrast.py [--scenes 1500]

Each claim is put against itself with one number, colour, object or side changed; `margin` is the least log share of the
claim among them. They are on by default only where the best mix gains at least 0.01 of AUROC on the claimed set.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from cmerwatch.settings import Settings  # noqa: E402
from cmerwatch_worker import checkers, contrast, preprocess  # noqa: E402
from cmerwatch_worker.checkers.base import Checker  # noqa: E402
from toy_vlm import captions, evaluate_checker, scenes  # noqa: E402

WORTH = 0.01
CHUNK = 128
MIXES = {"logit": (1.0, 0.0), "margin": (0.0, 1.0), "+ 0.5": (1.0, 0.5), "+ 1": (1.0, 1.0), "+ 2": (1.0, 2.0)}
Array = NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1500)
    count = parser.parse_args().scenes
    demo, rng = checkers.load("demo"), random.Random(11)
    drawn = [scenes.sample_where(rng, held_out=True) for _ in range(count)]
    said = [(i, "true", text) for i, scene in enumerate(drawn) for text in captions.captions(scene, rng)]
    said += [(i, kind, text) for i, scene in enumerate(drawn) for kind, text in captions.edits(scene, rng)]
    logits, margins = _measure(demo, drawn, [(i, text) for i, _, text in said])
    kinds = np.array([kind for _, kind, _ in said])
    print(f"AUROC of the logit, of the margin, and of the logit + weight * margin; {count} held-out scenes")
    print("changed        " + "".join(f"{name:>9s}" for name in MIXES))
    for kind in (*captions.CLAIMED_EDITS, *captions.UNCLAIMED_EDITS):
        if (kinds == kind).sum() >= 50:
            _print(kind, logits, margins, kinds == "true", kinds == kind)
    gained = _print("claimed set", logits, margins, kinds == "true", np.isin(kinds, captions.CLAIMED_EDITS))
    is_on = bool(Settings.model_fields["contrast"].default)
    print(f"\nthe best mix gains {gained:+.4f} on the claimed set; on by default from {WORTH}: {gained >= WORTH}")
    return 0 if is_on == (gained >= WORTH) else 1


def _measure(
    demo: Checker, drawn: list[scenes.Scene], said: list[tuple[int, str]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    contrasting = contrast.Contrasting(demo)
    pixels = np.stack([preprocess.apply(scenes.render(scene), demo.preprocess) for scene in drawn])
    images = np.concatenate([demo.embed_images(pixels[i : i + CHUNK]) for i in range(0, len(pixels), CHUNK)])
    edits = [
        [[t for t in slot if demo.count_tokens(t) <= demo.context_length] for slot in contrast.edits(text)]
        for _, text in said
    ]
    texts = list(dict.fromkeys([text for _, text in said] + [t for claim in edits for slot in claim for t in slot]))
    rows: dict[str, Array] = {}
    for i in range(0, len(texts), CHUNK):
        rows.update(zip(texts[i : i + CHUNK], demo.embed_texts(texts[i : i + CHUNK]), strict=True))
    per_claim = 1 + np.mean([sum(map(len, claim)) for claim in edits])
    print(f"{len(said)} sentences, {per_claim:.1f} texts embedded for each\n")
    logits = np.array([contrast.logit(demo, float(rows[text] @ images[i]), None) for i, text in said])
    margins = np.array(
        [
            contrasting.margin(
                images[i][None], rows[text], [np.stack([rows[t] for t in slot]) for slot in claim if slot]
            )
            for (i, text), claim in zip(said, edits, strict=True)
        ]
    )
    return logits, margins


def _print(
    name: str,
    logits: NDArray[np.float64],
    margins: NDArray[np.float64],
    true: NDArray[np.bool_],
    false: NDArray[np.bool_],
) -> float:
    """One line; returns what the best mix gains over the logit alone."""
    found = []
    for of_logit, of_margin in MIXES.values():
        mixed = of_logit * logits + of_margin * margins
        found.append(evaluate_checker.area(mixed[true], mixed[false]))
    print(f"{name:15s}" + "".join(f"{value:9.4f}" for value in found) + f"   (n {int(false.sum())})")
    return max(found[2:]) - found[0]


if __name__ == "__main__":
    sys.exit(main())
