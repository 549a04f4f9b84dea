"""A checker bundle: a folder that holds everything a checker is, each file named with its sha256."""

import hashlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmerwatch import errors
from cmerwatch_worker import reference
from cmerwatch_worker.checkers import tokenizers
from cmerwatch_worker.preprocess import Preprocess
from cmerwatch_worker.reference import Reference

DEMO = Path(__file__).parent / "bundles" / "demo"
FORMAT = 1
REQUIRED = ("image.onnx", "text.onnx", "tokenizer.json", "LICENCE.txt")
OPTIONAL = ("reference.json",)


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `full_context`: the text tower reads every position, so texts are padded to the whole context.

    `precision` of the stored weights. `parity`: the largest difference of a cosine from the same model in torch, as
    measured when the bundle was made; None where it was not.
    """

    model: str
    weights: str
    label: str
    is_demo: bool
    licence: str
    preprocess: Preprocess
    context_length: int
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    library_version: str
    full_context: bool = False
    precision: str = "fp16"
    parity: float | None = None
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def checker_id(self) -> str:
        return f"{self.model}:{self.weights}:{self.preprocess.hash}:{self.library_version}"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `image` and `text` are the ONNX models' bytes: what was hashed is what runs."""

    manifest: Manifest
    tokenizer: tokenizers.Tokenizer
    reference: Reference | None
    image: bytes
    text: bytes


def load(folder: Path) -> Bundle:
    """Read and verify a bundle. errors.StartRefused names the file that is missing, differs or cannot be read."""
    manifest = read_manifest(folder)
    held = {name: _verified(folder, name, manifest.files[name]) for name in manifest.files}
    try:
        tokenizer = tokenizers.from_json(json.loads(held["tokenizer.json"]))
        frozen = reference.from_json(json.loads(held["reference.json"])) if "reference.json" in held else None
    except (ValueError, KeyError, TypeError) as error:
        raise errors.StartRefused(f"checker bundle {folder}: {error}") from error
    if tokenizer.context_length != manifest.context_length:
        raise errors.StartRefused(f"checker bundle {folder}: tokenizer.json and manifest.json differ in context_length")
    return Bundle(manifest, tokenizer, frozen, held["image.onnx"], held["text.onnx"])


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json alone. errors.StartRefused when it is missing, of another format or incomplete."""
    path = folder / "manifest.json"
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise errors.StartRefused(
                f"{path} has format {data['format']}, this version reads {FORMAT}; export the bundle again"
            )
        manifest = Manifest(**{**data, "preprocess": Preprocess(**data["preprocess"])})
        _hold_to_types(manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise errors.StartRefused(f"{folder} is no checker bundle: it has no manifest.json") from None
    except (KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise errors.StartRefused(f"{path} cannot be read: {error}") from error
    if missing := [name for name in REQUIRED if name not in manifest.files]:
        raise errors.StartRefused(f"{path} does not list {', '.join(missing)}")
    if strange := [name for name in manifest.files if name not in REQUIRED + OPTIONAL]:
        raise errors.StartRefused(f"{path} lists files a bundle does not have: {', '.join(strange)}")
    return manifest


def _hold_to_types(manifest: Manifest) -> None:
    """Raises ValueError: a manifest that was edited by hand must not surface as a crash in the middle of scoring."""
    for name in ("model", "weights", "label", "licence", "library_version", "precision"):
        if not isinstance(getattr(manifest, name), str):
            raise ValueError(f"{name} must be a text")
    for name in ("context_length", "embed_dim"):
        if type(getattr(manifest, name)) is not int or getattr(manifest, name) < 1:
            raise ValueError(f"{name} must be a whole number above 0")
    for name in ("logit_scale", "logit_bias", "parity"):
        value = getattr(manifest, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number and (value is not None or name == "logit_scale"):
            raise ValueError(f"{name} must be a finite number")
    for name in ("is_demo", "full_context"):
        if not isinstance(getattr(manifest, name), bool):
            raise ValueError(f"{name} must be true or false")
    if not isinstance(manifest.files, dict) or not all(isinstance(value, str) for value in manifest.files.values()):
        raise ValueError("files must give each file's sha256")


def _verified(folder: Path, name: str, wanted: str) -> bytes:
    try:
        held = (folder / name).read_bytes()
    except OSError as error:
        raise errors.StartRefused(f"checker bundle {folder}: {name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(held).hexdigest() != wanted:
        raise errors.StartRefused(
            f"checker bundle {folder}: {name} is not the file its manifest names; copy the bundle again"
        )
    return held


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the files that lie in `folder` and write its manifest.json; returns the manifest with the hashes."""
    names = [name for name in REQUIRED + OPTIONAL if (folder / name).exists()]
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    complete = Manifest(**{**_fields(manifest), "files": hashes})
    draft = folder / "manifest.json.new"
    draft.write_text(json.dumps(asdict(complete), indent=1) + "\n")
    draft.replace(folder / "manifest.json")
    return complete


def refuse_occupied(out: Path) -> None:
    """A bundle is never written over another: workers may be loading it. errors.StartRefused.

    Also where nothing can be written: that is better known before the minutes that making it takes.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.StartRefused(f"{out} is there already and not an empty folder; name a new one with --out")
    is_new = not out.exists()
    require_writable(out)
    if is_new:
        out.rmdir()


def require_writable(folder: Path) -> None:
    """Make the folder, if need be. errors.StartRefused where that fails or it takes no files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise errors.StartRefused(
            f"nothing can be written to {folder} ({error.strerror}); name another folder with --out"
        ) from error


def replace_reference(folder: Path, frozen: Reference) -> Manifest:
    """Give a verified bundle another reference. Interrupted half-way it is refused, never scored with a mixture."""
    manifest = load(folder).manifest
    draft = folder / "reference.json.new"
    write_json(draft, reference.to_json(frozen))
    draft.replace(folder / "reference.json")
    return write_manifest(folder, manifest)


def write_json(path: Path, data: object) -> None:
    """Compact JSON with a final newline."""
    path.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
