"""From an open_clip model to a checker bundle: two ONNX files that are computed in fp32, whatever holds the weights."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from cmerwatch_worker import bundle, reference
from cmerwatch_worker.bundle import Manifest
from cmerwatch_worker.checkers import openclip
from cmerwatch_worker.reference import Reference

OPSET = 18
_SMALL = 64  # weights with fewer elements stay fp32: norms and biases gain nothing from fp16
_HALF_MAX = 65504.0


def export(
    checker: openclip.OpenClip, folder: Path, *, licence: str, licence_text: str, frozen: Reference | None = None,
    precision: str = "fp16",
) -> Manifest:  # fmt: skip
    """Write a complete bundle into `folder`; the manifest comes last, so half a bundle never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    model = checker.model.cpu()
    side, context = checker.preprocess.size, checker.context_length
    can_cut = openclip.can_cut(model)
    _write(_Image(model), torch.zeros(2, 3, side, side), {0: "batch"}, folder / "image.onnx", precision)
    tokens = torch.ones(2, context if not can_cut else max(2, context // 2), dtype=torch.int64)
    lengths = {0: "batch", 1: "length"} if can_cut else {0: "batch"}
    _write(_Text(model), tokens, lengths, folder / "text.onnx", precision)
    bundle.write_json(folder / "tokenizer.json", checker.tokenizer.to_json())
    (folder / "LICENCE.txt").write_text(licence_text)
    (folder / "reference.json").unlink(missing_ok=True)
    if frozen is not None:
        bundle.write_json(folder / "reference.json", reference.to_json(frozen))
    # Weights held otherwise are other weights: their scores have a scale of their own, and so an id of their own.
    suffix = "-onnx" if precision == "fp16" else f"-onnx-{precision}"
    manifest = Manifest(
        model=checker.name, weights=checker.weights, label=checker.label, is_demo=checker.is_demo, licence=licence,
        preprocess=checker.preprocess, context_length=context, embed_dim=checker.embed_dim,
        logit_scale=checker.logit_scale, logit_bias=checker.logit_bias,
        library_version=openclip.LIBRARY_VERSION + suffix, full_context=not can_cut, precision=precision,
    )  # fmt: skip
    return bundle.write_manifest(folder, manifest)


class _Image(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.encode_image(images)
        return features


class _Text(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return openclip.encode_text(self.model, tokens)


def _write(module: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, str], path: Path, precision: str) -> None:
    shapes = {axis: torch.export.Dim(name, min=1, max=4096) for axis, name in dynamic.items()}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), _quiet():
        raw = Path(scratch) / "model.onnx"
        torch.onnx.export(
            module.eval(), (example,), raw, dynamo=True, opset_version=OPSET, dynamic_shapes=(shapes,),
            external_data=False, verbose=False,
        )  # fmt: skip
        model = _quantized(raw) if precision == "int8" else onnx.load(raw)
    forget_origin(model)
    if precision != "fp32":
        halve(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantizer recommend what does not apply here; errors still come."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _quantized(raw: Path) -> onnx.ModelProto:
    """Matrices as int8 with a scale per column; what they are multiplied with is quantized as it comes, batch by batch.

    Convolutions and embeddings are left to fp16: without calibration data their activations lose too much.
    """
    small = raw.with_name("small.onnx")
    quantization.quantize_dynamic(
        raw,
        small,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,  # 7 bits: with 8, CPUs without VNNI saturate and do not answer as the one measured here
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(small)


def forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: each node carries the stack that made it, with the folders of whoever exported."""
    graph = model.graph
    holders = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""


def halve(model: onnx.ModelProto) -> None:
    """Store every large fp32 weight as fp16 with a Cast in front of its use: half the file, the same arithmetic.

    A weight that fp16 cannot hold stays as it is, and so does what scales quantized columns.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or weight.name.endswith("_scale"):
            continue
        values = numpy_helper.to_array(weight)
        if values.size < _SMALL or not np.isfinite(values).all() or np.abs(values).max() > _HALF_MAX:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    for i, cast in enumerate(casts):
        model.graph.node.insert(i, cast)
    # Shapes recorded for the old initializers would now contradict the Casts' outputs in nothing but their place.
    del model.graph.value_info[:]
