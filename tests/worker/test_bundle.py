"""A bundle is taken whole and unchanged, or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from cmerwatch import errors
from cmerwatch_worker import bundle


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
