"""Two runtimes, one protocol: the same weights say the same in both, and what cannot be trusted is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from cmerwatch import errors
from cmerwatch_worker import bundle, checkers, export
from cmerwatch_worker.checkers import openclip
from cmerwatch_worker.checkers.base import Checker, logits, unit

TRAINED = Path(__file__).parents[2] / "examples" / "toy_vlm" / "checker"
TEXTS = (
    "A red circle.",
    "There is a red circle and a blue square on a white background.",
    "stop",
    "A bar chart with 4 bars",
)
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
BPE_CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": VISION,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
# As SigLIP's: no causal mask, the last position pooled, a logit bias. It must read the whole padded context.
BIDIRECTIONAL = {
    "embed_dim": 32,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": VISION,
    "text_cfg": {
        "context_length": 24, "vocab_size": 137, "width": 32, "heads": 2, "layers": 2,
        "no_causal_mask": True, "pool_type": "last",
    },
}  # fmt: skip


def pixels(side: int, count: int = 9) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def checkpoint(folder: Path, cfg: dict[str, Any], tokenizer: str | None = None) -> str:
    """A small untrained checkpoint on disk; returns its spec."""
    torch.manual_seed(0)
    options = {key: value for key, value in cfg.items() if key != "custom_text"}
    model = (CustomTextCLIP if cfg.get("custom_text") else CLIP)(**options)
    folder.mkdir()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    (folder / "config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer)
    return f"openclip-local:{folder}/config.json:{folder}/weights.safetensors"


@pytest.fixture(scope="module", params=["trained", "bpe", "bidirectional"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checker, Checker]:
    """The same weights in torch and, exported, in ONNX Runtime."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "trained":
        spec = f"openclip-local:{TRAINED}/config.json:{TRAINED}/weights.safetensors"
        return checkers.load(spec), checkers.load("demo")
    tokenizer = (TRAINED / "tokenizer.json").read_text() if request.param == "bidirectional" else None
    spec = checkpoint(folder / "model", BPE_CLIP if request.param == "bpe" else BIDIRECTIONAL, tokenizer)
    full = checkers.load(spec)
    assert isinstance(full, openclip.OpenClip)
    export.export(full, folder / "bundle", licence="none", licence_text="Random weights, free to use.\n")
    for name in ("image.onnx", "text.onnx"):
        assert b".py" not in (folder / "bundle" / name).read_bytes(), f"{name} says where it was made"
    return full, checkers.load(f"bundle:{folder / 'bundle'}")


def test_both_runtimes_give_the_same_cosines(both: tuple[Checker, Checker]) -> None:
    full, light = both
    shown = pixels(full.preprocess.size)
    cosines = [checker.embed_images(shown) @ checker.embed_texts(TEXTS).T for checker in both]
    assert np.abs(cosines[0] - cosines[1]).max() <= 1e-3
    # Untrained towers give nearly the same vector for anything, so equal cosines alone would prove little.
    assert np.abs(full.embed_images(shown) - light.embed_images(shown)).max() <= 1e-3
    assert np.abs(full.embed_texts(TEXTS) - light.embed_texts(TEXTS)).max() <= 1e-3


def test_both_runtimes_agree_on_everything_that_is_not_a_vector(both: tuple[Checker, Checker]) -> None:
    full, light = both
    names = ("preprocess", "context_length", "embed_dim", "logit_scale", "logit_bias", "label", "is_demo")
    assert {name: getattr(full, name) for name in names} == {name: getattr(light, name) for name in names}
    assert [full.count_tokens(text) for text in TEXTS] == [light.count_tokens(text) for text in TEXTS]
    assert full.id + "-onnx" == light.id


def test_a_vector_does_not_depend_on_its_neighbours_in_the_batch(both: tuple[Checker, Checker]) -> None:
    for checker in both:
        shown = pixels(checker.preprocess.size)
        alone = np.concatenate([checker.embed_images(shown[i : i + 1]) for i in range(len(shown))])
        np.testing.assert_allclose(checker.embed_images(shown), alone, atol=1e-4)
        spoken = np.concatenate([checker.embed_texts([text]) for text in TEXTS])
        np.testing.assert_allclose(checker.embed_texts(TEXTS), spoken, atol=1e-4)


def test_vectors_have_unit_length_and_the_promised_shape(both: tuple[Checker, Checker]) -> None:
    for checker in both:
        for rows in (checker.embed_images(pixels(checker.preprocess.size)), checker.embed_texts(TEXTS)):
            assert rows.dtype == np.float32
            assert rows.shape[1] == checker.embed_dim
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_nothing_in_gives_nothing_out(both: tuple[Checker, Checker]) -> None:
    for checker in both:
        assert checker.embed_texts([]).shape == checker.embed_images(pixels(checker.preprocess.size, 0)).shape
        assert checker.embed_texts([]).shape == (0, checker.embed_dim)


def test_a_text_over_the_context_is_refused_and_never_cut(both: tuple[Checker, Checker]) -> None:
    for checker in both:
        fits = " ".join(["red"] * (checker.context_length - 2))
        assert checker.count_tokens(fits) == checker.context_length
        checker.embed_texts([fits])
        with pytest.raises(errors.TextTooLong, match=f"{checker.context_length + 1} tokens"):
            checker.embed_texts([fits + " red"])


def test_cutting_the_padding_changes_no_text_vector(tmp_path: Path) -> None:
    full = checkers.load(checkpoint(tmp_path / "model", BPE_CLIP))
    assert isinstance(full, openclip.OpenClip)
    with torch.inference_mode():
        whole = full.model.encode_text(open_clip.SimpleTokenizer()(list(TEXTS)))
    np.testing.assert_allclose(full.embed_texts(TEXTS), unit(whole.numpy()), atol=1e-6)


def test_bfloat16_moves_cosines_in_the_third_digit_and_is_another_checker(tmp_path: Path) -> None:
    whole = checkers.load(checkpoint(tmp_path / "clip", BPE_CLIP))
    assert isinstance(whole, openclip.OpenClip)
    half = openclip.OpenClip(
        whole.model, whole.tokenizer, whole.preprocess, whole.name, whole.weights, whole.embed_dim, "cpu", half=True
    )
    shown, said = pixels(whole.preprocess.size), TEXTS
    cosines = [one.embed_images(shown) @ one.embed_texts(said).T for one in (whole, half)]
    assert 0 < np.abs(cosines[0] - cosines[1]).max() < 0.03
    assert cosines[1].dtype == np.float32
    assert half.id == f"{whole.id}-bf16"
    assert half.on_processor().id == whole.id


def test_a_vector_that_is_not_a_number_is_passed_on() -> None:
    rows = unit(np.array([[3.0, 4.0], [np.nan, 1.0], [0.0, 0.0], [np.inf, 1.0]], np.float32))
    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, False]


def test_logits_are_cosines_without_a_bias_and_scaled_with_one(both: tuple[Checker, Checker]) -> None:
    cosines = np.array([-0.2, 0.3], np.float32)
    for checker in both:
        if checker.logit_bias is None:
            np.testing.assert_array_equal(logits(checker, cosines), cosines)
        else:
            wanted = checker.logit_scale * cosines + checker.logit_bias
            np.testing.assert_allclose(logits(checker, cosines), wanted, rtol=1e-5)


def test_the_light_runtime_never_imports_torch() -> None:
    code = "import sys; from cmerwatch_worker import checkers; checkers.load('demo'); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    "spec", ["", "clip", "demo:x", "openclip", "openclip:ViT-B-32", "openclip-local:x.safetensors"]
)
def test_a_spec_of_no_known_form_is_answered_with_the_forms(spec: str) -> None:
    with pytest.raises(errors.StartRefused, match="openclip"):
        checkers.load(spec)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.pth", "weights.pickle", "weights"])
def test_only_safetensors_are_loaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.StartRefused, match=r"only \.safetensors"):
        checkers.load(f"openclip-local:{TRAINED}/config.json:{tmp_path / name}")


def test_a_pickle_under_another_name_is_not_run(tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.zeros(())}, tmp_path / "weights.safetensors")
    with pytest.raises(errors.StartRefused, match="cannot load"):
        checkers.load(f"openclip-local:{TRAINED}/config.json:{tmp_path}/weights.safetensors")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", BPE_CLIP)
    with pytest.raises(errors.StartRefused, match="cannot load"):
        checkers.load(f"openclip-local:{TRAINED}/config.json:{tmp_path}/model/weights.safetensors")


def test_weights_that_are_not_here_are_answered_with_the_command_that_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wanted = "run: cmerwatch checker download ViT-B-32-256:datacomp_s34b_b86k"
    with pytest.raises(errors.StartRefused, match=wanted):
        checkers.load("openclip:ViT-B-32-256:datacomp_s34b_b86k")


def test_weights_trained_with_another_activation_are_refused_with_the_right_name() -> None:
    with pytest.raises(errors.StartRefused, match="use ViT-B-32-quickgelu:openai"):
        checkers.load("openclip:ViT-B-32:openai")


@pytest.mark.parametrize(
    "spec, named",
    [("openclip:ViT-Z-99:openai", "no model 'ViT-Z-99'"), ("openclip:ViT-B-32:nobody", "no weights 'nobody'")],
)
def test_an_unknown_model_or_tag_is_named(spec: str, named: str) -> None:
    with pytest.raises(errors.StartRefused, match=named):
        checkers.load(spec)


def test_a_bundle_that_onnx_runtime_cannot_read_stops_the_start(tmp_path: Path) -> None:
    for path in bundle.DEMO.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "image.onnx").write_bytes(b"not a model")
    bundle.write_manifest(tmp_path, bundle.read_manifest(tmp_path))
    with pytest.raises(errors.StartRefused, match="ONNX Runtime cannot load it"):
        checkers.load(f"bundle:{tmp_path}")
