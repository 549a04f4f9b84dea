"""A reference from pairs that are known to match: the worker's own collecting of samples, over a file."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmerwatch import errors, shapes
from cmerwatch_worker import bundle, reference
from cmerwatch_worker.bundle import Manifest
from cmerwatch_worker.checkers import onnx
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.datasets import CORRECT, Dataset
from cmerwatch_worker.offline import Looking, Sample
from cmerwatch_worker.reference import MIN_CLAIMS, Reference

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`unused`: why rows gave no claims, with how many."""

    reference: Reference
    claims: dict[str, int]
    unused: dict[str, int]


def from_pairs(looking: Looking, pairs: Dataset, show: Progress) -> Calibrated:
    """Freeze the logits of every matched pair's claims, with their own pictures and with others'.

    errors.StartRefused: fewer than MIN_CLAIMS claims.
    """
    rows = [row for row in pairs.rows if row.label == CORRECT]
    unused = Counter({"labelled as not correct": len(pairs.rows) - len(rows)})
    samples: dict[uuid.UUID, shapes.Sample] = {}
    given = [Sample(row.images, row.output, row.prompt, row.prompt_type) for row in rows]
    for count, looked in enumerate(looking.look(given), 1):
        show(count, len(rows))
        sample = looked.result.sample if looked.result else None
        if sample is not None and sample.own:
            samples[sample.content] = sample  # the same pair twice says its scale once
        else:
            unused[_why(looked.refused, looked.result)] += 1
    counts = Counter({kind: 0 for kind in {sample.prompt_type for sample in samples.values()}})
    for sample in samples.values():
        counts[sample.prompt_type] += len(sample.own)
    if counts.total() < MIN_CLAIMS:
        raise errors.StartRefused(
            f"these pairs have {counts.total()} claims that can be checked; a reference needs {MIN_CLAIMS}"
        )
    frozen = reference.from_traffic((one.prompt_type, one.own, one.mismatched) for one in samples.values())
    return Calibrated(frozen, dict(counts), {why: count for why, count in unused.items() if count})


def _why(refused: str | None, result: shapes.CheckResult | None) -> str:
    if result is None:
        return refused or "refused"
    return ", ".join(result.reasons) or result.outcome


def recalibrate(folder: Path, out: Path | None, make: Callable[[Checker], Reference]) -> Manifest:
    """A bundle with a new reference, in place or as a copy in `out`. errors.StartRefused: the shipped one in place."""
    if out is not None:
        bundle.refuse_occupied(out)
    elif folder.resolve() == bundle.DEMO.resolve():
        raise errors.StartRefused("the demo bundle belongs to the installation; name a folder for its copy with --out")
    frozen = make(onnx.Onnx(folder))
    if out is not None:
        shutil.copytree(folder, out, dirs_exist_ok=True)
    return bundle.replace_reference(out or folder, frozen)
