"""A bundle that was measured before anybody can load it: exported aside, compared with its model, then moved."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from cmerwatch import errors
from cmerwatch_worker import bundle, export, parity
from cmerwatch_worker.bundle import Manifest
from cmerwatch_worker.checkers import onnx, openclip
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.parity import Parity
from cmerwatch_worker.reference import Reference


def publish(
    full: openclip.OpenClip, out: Path, *, precision: str, limit: float, licence: str, licence_text: str,
    calibrate: Callable[[Checker], Reference] | None = None, said: Callable[[Parity], None] = lambda found: None,
) -> Manifest:  # fmt: skip
    """Export into `out`, a folder that is new or empty; `said` hears the measured parity either way.

    `calibrate` makes the reference with the exported checker. errors.StartRefused: cosines that differ by more than
    `limit` from the model's own; then nothing is left behind.
    """
    bundle.refuse_occupied(out)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        manifest = export.export(full, draft, licence=licence, licence_text=licence_text, precision=precision)
        manifest = _held_to(limit, full, draft, manifest, said)
        if calibrate is not None:
            manifest = bundle.replace_reference(draft, calibrate(onnx.Onnx(draft)))
        if out.exists():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _held_to(
    limit: float, full: openclip.OpenClip, draft: Path, manifest: Manifest, said: Callable[[Parity], None]
) -> Manifest:
    # Both on the CPU in fp32, whatever this machine scores with: the comparison is of the export alone.
    full.model.cpu()
    full.device = "cpu"
    found = parity.measure(full, onnx.Onnx(draft))
    said(found)
    if found.worst > limit:
        raise errors.StartRefused(
            f"no bundle was written: with {manifest.precision} weights cosines differ by up to {found.worst:.1e} from "
            f"the model's own, and {limit:.1e} is allowed. "
            + ("Try --precision fp16." if manifest.precision == "int8" else "Try --precision fp32.")
        )
    return bundle.write_manifest(draft, dataclasses.replace(manifest, parity=found.worst))
