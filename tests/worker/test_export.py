"""From weights to a bundle: measured before it can be loaded, refused where it differs, licensed as it says."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cmerwatch import errors
from cmerwatch_worker import bundle, checkers, commands, parity, profiles
from cmerwatch_worker.checkers import openclip
from tests.worker.test_checkers import BIDIRECTIONAL, BPE_CLIP, checkpoint, pixels
from tests.worker.test_checkers_tokenizers import fast

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: (status, stdout, stderr)."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmerwatch checker", *map(str, arguments)])
        try:
            status = commands.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return called


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a small untrained model with CLIP's tokenizer."""
    return checkpoint(tmp_path_factory.mktemp("small") / "model", BPE_CLIP)


# A model this narrow feels int8 more than a real one: 5e-2 instead of 1e-2.
NARROW = ("--precision", "int8", "--licence", "MIT", "--max-difference", "0.05")


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-4), ("fp16", 1e-3), ("int8", 5e-2)])
def test_every_precision_holds_its_stated_parity_and_has_an_id_of_its_own(
    small: str, tmp_path: Path, run: Run, precision: str, limit: float
) -> None:
    out = tmp_path / "bundle"
    arguments = NARROW if precision == "int8" else ("--precision", precision, "--licence", "MIT")
    status, _, err = run("export", small, "--out", out, *arguments)
    assert status == 0, err
    manifest = bundle.read_manifest(out)
    assert manifest.precision == precision
    assert manifest.parity is not None
    assert manifest.parity <= limit
    assert f"CMERWATCH_CHECKER=bundle:{out}" in err
    assert "parity with the model: image-text cosines within" in err
    light, full = checkers.load(f"bundle:{out}"), checkers.load(small)
    assert light.id == full.id + ("-onnx" if precision == "fp16" else f"-onnx-{precision}")
    shown = pixels(full.preprocess.size)
    near = (full.embed_images(shown) * light.embed_images(shown)).sum(axis=1)
    assert (1 - near).max() <= limit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_quantized_weights_are_smaller_and_are_really_int8(small: str, tmp_path: Path, run: Run) -> None:
    sizes = {}
    for precision, arguments in (("fp32", ("--precision", "fp32", "--licence", "MIT")), ("int8", NARROW)):
        run("export", small, "--out", tmp_path / precision, *arguments)
        sizes[precision] = (tmp_path / precision / "image.onnx").stat().st_size
    assert sizes["int8"] < sizes["fp32"] / 2
    assert b"MatMulInteger" in (tmp_path / "int8" / "image.onnx").read_bytes()


def test_a_bundle_that_differs_more_than_allowed_is_not_written_and_the_difference_is_told(
    small: str, tmp_path: Path, run: Run
) -> None:
    arguments = ("--precision", "int8", "--licence", "MIT", "--max-difference", "1e-9")
    status, _, err = run("export", small, "--out", tmp_path / "bundle", *arguments)
    assert status == 2
    assert "parity with the model" in err
    assert "no bundle was written" in err
    assert "Try --precision fp16" in err
    assert list(tmp_path.iterdir()) == []


def test_parity_sees_towers_that_disagree(small: str) -> None:
    full, other = checkers.load(small), checkers.load(small)
    assert parity.measure(full, other).worst == pytest.approx(0, abs=1e-5)
    assert isinstance(other, openclip.OpenClip)
    with torch.no_grad():
        other.model.text_projection += 0.05 * torch.randn(other.model.text_projection.shape)
    assert parity.measure(full, other).worst > parity.LIMITS["int8"]
    with torch.no_grad():
        other.model.visual.proj[:] = float("nan")
    assert parity.measure(full, other).worst == float("inf")


def test_an_occupied_folder_is_never_written_over(small: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    status, _, err = run("export", small, "--out", tmp_path, "--licence", "MIT")
    assert status == 2
    assert "not an empty folder" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_licence_is_asked_for_where_it_is_not_known_and_kept(small: str, tmp_path: Path, run: Run) -> None:
    status, _, err = run("export", small, "--out", tmp_path / "bundle")
    assert status == 2
    assert "--licence NAME" in err
    (tmp_path / "terms.txt").write_text("Do as you like.\n")
    run("export", small, "--out", tmp_path / "bundle", "--licence", "own", "--licence-file", tmp_path / "terms.txt")
    assert (tmp_path / "bundle" / "LICENCE.txt").read_text() == "Do as you like.\n"
    assert bundle.read_manifest(tmp_path / "bundle").licence == "own"


def test_non_commercial_weights_warn_at_export_and_whenever_they_are_loaded(
    small: str, tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, err = run("export", small, "--out", tmp_path / "bundle", "--licence", "apple-amlr")
    assert "warning: " in err
    assert "research or non-commercial use only" in err
    with caplog.at_level(logging.WARNING):
        checkers.load(f"bundle:{tmp_path / 'bundle'}")
    assert "apple-amlr" in caplog.text
    caplog.clear()
    checkers.load("demo")
    assert caplog.text == ""


def test_an_unknown_precision_is_answered_with_the_known_ones(small: str, tmp_path: Path, run: Run) -> None:
    status, _, err = run("export", small, "--out", tmp_path / "b", "--precision", "int4", "--licence", "MIT")
    assert status == 2
    assert "fp32, fp16, int8" in err


def test_weights_that_are_not_here_are_not_exported(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    status, _, err = run("export", "ViT-B-32-256:datacomp_s34b_b86k", "--out", tmp_path / "bundle")
    assert status == 2
    assert "cmerwatch checker download ViT-B-32-256:datacomp_s34b_b86k" in err


def test_openai_weights_in_a_model_with_another_activation_are_refused(tmp_path: Path, run: Run) -> None:
    for command in (("export", "--out", tmp_path / "b"), ("download",)):
        status, _, err = run(command[0], "ViT-B-32:openai", *command[1:])
        assert status == 2
        assert "QuickGELU" in err
        assert "ViT-B-32-quickgelu:openai" in err


# Profiles


def test_the_default_profile_is_the_settings_default_and_free_to_use() -> None:
    from cmerwatch.settings import Settings

    assert profiles.PROFILES[0].spec == Settings.model_fields["checker"].default
    assert not any(profiles.is_non_commercial(one.licence) for one in profiles.PROFILES)


def test_every_profile_is_one_that_open_clip_knows_by_the_same_repository() -> None:
    for profile in profiles.PROFILES:
        if profile.repository:
            _, model, tag = profile.spec.split(":")
            known = open_clip.get_pretrained_cfg(model, tag)
            assert known["hf_hub"].rstrip("/") == profile.repository
            assert profiles.licence_of(model, tag) == profile.licence


@pytest.mark.parametrize(
    "model, tag, licence",
    [
        ("ViT-B-16-quickgelu", "dfn2b", "apple-amlr"),
        ("MobileCLIP2-S0", "dfndr2b", "apple-amlr"),
        ("MobileCLIP-B", "datacompdr_lt", "apple-amlr"),
        ("ViT-B-32-quickgelu", "metaclip_fullcc", "CC-BY-NC-4.0"),
        ("nllb-clip-base", "v1", "CC-BY-NC-4.0"),
    ],
)
def test_research_weights_are_known_as_such(model: str, tag: str, licence: str) -> None:
    assert profiles.licence_of(model, tag) == licence
    assert profiles.warning(f"{model}:{tag}", licence) is not None


def test_a_licence_nobody_looked_up_is_not_made_up() -> None:
    assert profiles.licence_of("RN50", "yfcc15m") is None


def test_list_and_help_are_answered_without_loading_a_model() -> None:
    import subprocess

    code = (
        "import sys; from cmerwatch_worker import commands\n"
        "try: commands.app(['list'], prog_name='x')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'open_clip', 'numpy', 'onnxruntime') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openclip:ViT-B-32-256:datacomp_s34b_b86k" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_main_command_hands_over(tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-m", "cmerwatch.cli", "checker"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True)
    assert "drawn scenes only, refused in production" in listed.stdout
    refused = subprocess.run(
        [*command, "evaluate", str(tmp_path / "none.jsonl"), "--checker", "demo"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "cannot be read" in refused.stderr
    assert "Traceback" not in refused.stderr


# Published weights in the local cache, as a download leaves them


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default profile's model with random weights, laid as the hub's cache lays files: named by their sha256."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-256", precision="fp16")
    home = folder / f"models--{profiles.PROFILES[0].repository.replace('/', '--')}"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, home / "blobs" / "draft")
    name = openclip._sha256(home / "blobs" / "draft")
    (home / "blobs" / "draft").rename(home / "blobs" / name)
    shot = home / "snapshots" / "abc"
    shot.mkdir(parents=True)
    (shot / "open_clip_model.safetensors").symlink_to(home / "blobs" / name)
    return folder


@pytest.fixture
def blob(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found,) = next(cache.iterdir()).glob("blobs/*")
    return found


DEFAULT = profiles.PROFILES[0].spec


def test_the_default_checker_starts_offline_from_the_cache(blob: Path) -> None:
    checker = checkers.load(DEFAULT)
    assert checker.preprocess.size == 256
    assert checker.context_length == 77
    assert np.isfinite(checker.embed_images(pixels(256, 1))).all()
    assert checker.embed_texts(["A dog."]).shape == (1, 512)
    assert profiles.state(profiles.PROFILES[0]) == "downloaded"


def test_changed_and_truncated_weights_in_the_cache_are_refused(blob: Path) -> None:
    held = blob.read_bytes()
    for changed in (held[:-1] + bytes([held[-1] ^ 1]), held[: len(held) // 2], b""):
        blob.write_bytes(changed)
        with pytest.raises(errors.StartRefused, match="is not the file that was published as ViT-B-32-256"):
            checkers.load(DEFAULT)
    blob.write_bytes(held)


def test_a_file_without_a_hash_for_a_name_is_refused_when_it_does_not_fit(
    cache: Path, blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches without links hold plain files, whose names say nothing of their content."""
    shutil.copytree(cache, tmp_path / "hub", symlinks=True, ignore=shutil.ignore_patterns("blobs"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (path,) = (tmp_path / "hub").glob("*/snapshots/abc/*")
    path.unlink()
    for content in (b"", b"\x80\x04pickle", blob.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(errors.StartRefused, match=r"cannot load ViT-B-32-256:datacomp_s34b_b86k"):
            checkers.load(DEFAULT)


def test_a_pinned_local_file_is_loaded_only_as_pinned(small: str, tmp_path: Path) -> None:
    shutil.copytree(Path(small.split(":")[1]).parent, tmp_path / "model")
    config, weights = tmp_path / "model" / "config.json", tmp_path / "model" / "weights.safetensors"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "weights_sha256": openclip._sha256(weights)}))
    spec = f"openclip-local:{config}:{weights}"
    assert checkers.load(spec).id == checkers.load(small).id
    held = weights.read_bytes()
    weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(errors.StartRefused, match="is not the file whose sha256"):
        checkers.load(spec)


@pytest.mark.parametrize("keep", [0, 7, 100, 10_000])
def test_a_truncated_local_checkpoint_is_refused(small: str, tmp_path: Path, keep: int) -> None:
    config, weights = (Path(part) for part in small.split(":")[1:])
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(errors.StartRefused, match="cannot load"):
        checkers.load(f"openclip-local:{config}:{tmp_path}/cut.safetensors")


def test_a_siglip_shaped_model_is_exported_with_its_hub_tokenizer_and_logit_bias(tmp_path: Path, run: Run) -> None:
    fast().save_pretrained(tmp_path / "tokenizer")
    text = {
        **BIDIRECTIONAL["text_cfg"],
        "hf_tokenizer_name": str(tmp_path / "tokenizer"),
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    spec = checkpoint(tmp_path / "model", {**BIDIRECTIONAL, "text_cfg": text})
    status, _, err = run("export", spec, "--out", tmp_path / "bundle", "--licence", "Apache-2.0")
    assert status == 0, err
    shutil.rmtree(tmp_path / "tokenizer")
    light = checkers.load(f"bundle:{tmp_path / 'bundle'}")
    assert light.logit_bias == -10
    assert light.count_tokens("A red dog.") == 4
    held = json.loads((tmp_path / "bundle" / "tokenizer.json").read_text())
    assert (held["kind"], held["pad_id"], held["clean"]) == ("huggingface", 1, "canonicalize")
