"""A labelled file scored row by row, each row written beside it at once, so that an interrupted run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from cmerwatch import errors
from cmerwatch.shapes import CheckResult, ClaimScore
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.datasets import Labelled
from cmerwatch_worker.offline import Looked, Looking, Sample

FORMAT = 1
SIDECAR = "rows.jsonl"
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, slots=True)
class Origin:
    """What the scores of a run depend on. A run goes on only where all of it is the same."""

    checker: str
    reference: str | None
    input: str  # sha256 of the labelled file, and of the answers beside it
    images: str
    kind: str
    version: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Scored:
    """One row's result. `group` names its pictures by content; claims are (start, end, number that is low where
    suspicious): the percentile, or without a reference the cosine, turned round where the output denies the claim."""

    line: int
    outcome: str
    similarity: float | None = None
    score: float | None = None
    group: str = ""
    claims: tuple[tuple[int, int, float], ...] = ()
    reasons: tuple[str, ...] = ()


def origin(checker: Checker, path: Path, kind: str, images: Path | None, answers: Path | None = None) -> Origin:
    digest = hashlib.sha256()
    for file in (path, answers):
        if file is not None:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Origin(
        checker=checker.id,
        reference=checker.reference.version if checker.reference else None,
        input=digest.hexdigest(),
        images=str((images or path.parent).resolve()),
        kind=kind,
        version=metadata.version("cmerwatch"),
    )


def run(looking: Looking, rows: Sequence[Labelled], sidecar: Path, of: Origin, show: Progress) -> list[Scored]:
    """Score what the sidecar does not hold yet, and return all of it in the order of `rows`.

    errors.StartRefused: the sidecar belongs to another checker, input or version, or another run writes it now.
    """
    with sidecar.open("a") as file:
        _claim(file, sidecar)
        done = {scored.line: scored for scored in resume(sidecar, of)}
        left = [row for row in rows if row.line not in done]
        count = len(rows) - len(left)
        show(count, len(rows))
        samples = [Sample(row.images, row.output, row.prompt, row.prompt_type) for row in left]
        for row, looked in zip(left, looking.look(samples), strict=True):
            done[row.line] = scored = _scored(row, looked)
            _write(file, asdict(scored))
            count += 1
            show(count, len(rows))
    return [done[row.line] for row in rows]


def _claim(file: TextIO, sidecar: Path) -> None:
    """Two runs would write their lines into each other's. Released when the file is closed, however that comes."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise errors.StartRefused(f"another run is writing {sidecar}; wait for it, or name another --out") from None


def _scored(row: Labelled, looked: Looked) -> Scored:
    group = " ".join(looked.images)
    if looked.result is None:
        return Scored(row.line, "refused", group=group, reasons=(looked.refused or "",))
    result: CheckResult = looked.result
    # A low cosine is right for what is denied: without a reference such an output cannot be placed among the others.
    denies = any(claim.negated for claim in result.claims)
    return Scored(
        row.line, result.outcome, None if denies else result.similarity, result.score, group,
        tuple((claim.start, claim.end, _low_if_suspicious(claim)) for claim in result.claims),
        tuple(result.reasons),
    )  # fmt: skip


def _low_if_suspicious(claim: ClaimScore) -> float:
    if claim.percentile is not None:
        return claim.percentile
    return -claim.similarity if claim.negated else claim.similarity


# The sidecar: one line of origin, then one line per scored row, flushed as it comes.


def resume(sidecar: Path, of: Origin) -> list[Scored]:
    """The rows of an earlier run of the same origin; an empty file is begun.

    A last line that was cut short by the interruption is dropped.
    """
    lines = list(_whole_lines(sidecar))
    if not lines:
        with sidecar.open("a") as file:
            _write(file, asdict(of))
        return []
    _hold_to(of, lines[0], sidecar)
    return [_read(line) for line in lines[1:]]


def _whole_lines(sidecar: Path) -> Iterator[dict[str, Any]]:
    """JSON objects up to the first line that is none; the file is cut there."""
    end = 0
    with sidecar.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if not isinstance(line, dict):
                break
            end += len(raw)
            yield line
    os.truncate(sidecar, end)


_NAMES = {
    "checker": "checker",
    "reference": "checker's reference",
    "input": "labelled file",
    "images": "folder of images",
    "kind": "format",
    "version": "cmerwatch version",
    "format": "layout of the file",
}


def _hold_to(of: Origin, held: dict[str, Any], sidecar: Path) -> None:
    changed = [name for key, name in _NAMES.items() if held.get(key) != getattr(of, key)]
    if changed:
        raise errors.StartRefused(
            f"{sidecar} holds an earlier run with another {' and another '.join(changed)}; "
            "add --restart to begin again, or name another folder with --out"
        )


def _read(line: dict[str, Any]) -> Scored:
    claims = tuple((start, end, value) for start, end, value in line["claims"])
    return Scored(**{**line, "claims": claims, "reasons": tuple(line["reasons"])})


def _write(file: TextIO, data: dict[str, Any]) -> None:
    file.write(json.dumps(data, separators=(",", ":")) + "\n")
    file.flush()
