"""A bundle is taken whole and unchanged, or not at all."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cmerwatch import errors
from cmerwatch_worker import bundle, checkers

TRAINED = Path(__file__).parents[2] / "examples" / "toy_vlm" / "checker"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.DEMO, tmp_path / "bundle"))


def test_the_shipped_bundle_is_whole_and_says_what_it_is() -> None:
    held = bundle.load(bundle.DEMO)
    assert held.manifest.is_demo
    assert held.manifest.label == "demo: drawn scenes only"
    assert held.manifest.licence == "Apache-2.0"
    assert held.reference is not None
    assert sum(path.stat().st_size for path in bundle.DEMO.iterdir()) <= 8_000_000


def test_the_shipped_bundle_does_not_say_where_it_was_made() -> None:
    held = b"".join(path.read_bytes() for path in bundle.DEMO.iterdir())
    assert b"site-packages" not in held
    assert b".py" not in held


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json", "reference.json", "LICENCE.txt"])
def test_a_changed_file_is_named_and_refused(copied: Path, name: str) -> None:
    held = (copied / name).read_bytes()
    (copied / name).write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(errors.StartRefused, match=f"{name} is not the file its manifest names"):
        bundle.load(copied)


def test_a_missing_file_is_named_and_refused(copied: Path) -> None:
    (copied / "text.onnx").unlink()
    with pytest.raises(errors.StartRefused, match=r"text\.onnx cannot be read"):
        bundle.load(copied)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match=r"no manifest\.json"):
        bundle.load(tmp_path)


def edited(folder: Path, **changes: object) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder


def test_a_bundle_of_another_format_is_refused_with_both_numbers(copied: Path) -> None:
    with pytest.raises(errors.StartRefused, match="format 2, this version reads 1"):
        bundle.load(edited(copied, format=2))


def test_a_manifest_cannot_leave_out_a_file_it_needs(copied: Path) -> None:
    files = json.loads((copied / "manifest.json").read_text())["files"]
    del files["image.onnx"]
    with pytest.raises(errors.StartRefused, match=r"does not list image\.onnx"):
        bundle.load(edited(copied, files=files))


def test_a_manifest_cannot_reach_outside_its_folder(copied: Path) -> None:
    files = json.loads((copied / "manifest.json").read_text())["files"]
    with pytest.raises(errors.StartRefused, match="files a bundle does not have"):
        bundle.load(edited(copied, files={**files, "../../etc/passwd": "0" * 64}))


def test_a_manifest_with_an_impossible_setting_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    with pytest.raises(errors.StartRefused, match="resize_mode"):
        bundle.load(edited(copied, preprocess={**manifest["preprocess"], "resize_mode": "stretch"}))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"embed_dim": "256"}, "embed_dim must be a whole number"),
        ({"context_length": 0}, "context_length must be a whole number"),
        ({"logit_scale": float("nan")}, "logit_scale must be a finite number"),
        ({"logit_scale": None}, "logit_scale must be a finite number"),
        ({"logit_bias": "small"}, "logit_bias must be a finite number"),
        ({"is_demo": "no"}, "is_demo must be true or false"),
        ({"label": 3}, "label must be a text"),
        ({"files": []}, "files must give"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_manifest_edited_by_hand_is_refused_by_the_fields_name(
    copied: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(errors.StartRefused, match=said):
        bundle.load(edited(copied, **change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_a_manifest_that_is_no_json_object_is_refused(copied: Path, content: bytes) -> None:
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(errors.StartRefused, match=r"manifest\.json cannot be read"):
        bundle.load(copied)


def test_towers_of_other_sizes_than_the_manifest_says_stop_the_start(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    with pytest.raises(errors.StartRefused, match="the manifest says 64"):
        checkers.load(f"bundle:{edited(copied, embed_dim=64)}")
    smaller = {**manifest["preprocess"], "size": 7}
    with pytest.raises(errors.StartRefused, match="do not fit its manifest"):
        checkers.load(f"bundle:{edited(copied, embed_dim=manifest['embed_dim'], preprocess=smaller)}")


def _tampered(folder: Path) -> str:
    (folder / "image.onnx").write_bytes((folder / "image.onnx").read_bytes() + b"!")
    return f"bundle:{folder}"


def _pickled(folder: Path) -> str:
    (folder / "weights.safetensors").write_bytes(pickle.dumps({"weights": 1}))
    (folder / "config.json").write_text((TRAINED / "config.json").read_text())
    return f"openclip-local:{folder}/config.json:{folder}/weights.safetensors"


def _foreign(folder: Path) -> str:
    save_file({"other": np.zeros(3, np.float32)}, folder / "weights.safetensors")
    (folder / "config.json").write_text((TRAINED / "config.json").read_text())
    return f"openclip-local:{folder}/config.json:{folder}/weights.safetensors"


@pytest.mark.parametrize(
    "spec_of, said",
    [
        (_tampered, "image.onnx is not the file its manifest names"),
        (_pickled, "cannot load"),
        (_foreign, "Missing key"),
        (lambda folder: f"bundle:{folder}/nowhere", "is no checker bundle"),
        (lambda folder: "openclip:ViT-B-32-256:nobody", "no weights 'nobody'"),
        (lambda folder: "openclip:ViT-Z:openai", "no model 'ViT-Z'"),
        (lambda folder: "openclip:ViT-B-32:openai", "use ViT-B-32-quickgelu:openai"),
        (lambda folder: "clip", "is none of: demo, bundle:FOLDER"),
    ],
)
def test_a_worker_does_not_start_with_it_and_says_why_in_one_line(
    copied: Path, spec_of: Callable[[Path], str], said: str
) -> None:
    environment = os.environ | {"CMERWATCH_CHECKER": spec_of(copied)}
    command = [sys.executable, "-m", "cmerwatch_worker"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
