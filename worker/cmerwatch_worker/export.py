"""From an open_clip model to a checker bundle: two ONNX files with fp16 weights, computed in fp32."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cmerwatch_worker import bundle, reference
from cmerwatch_worker.bundle import Manifest
from cmerwatch_worker.checkers import openclip
from cmerwatch_worker.reference import Reference

OPSET = 18
_SMALL = 64  # weights with fewer elements stay fp32: norms and biases gain nothing from fp16
_HALF_MAX = 65504.0


def export(
    checker: openclip.OpenClip, folder: Path, *, licence: str, licence_text: str, frozen: Reference | None = None
) -> Manifest:  # fmt: skip
    """Write a complete bundle into `folder`; the manifest comes last, so half a bundle never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    model = checker.model.cpu()
    side, context = checker.preprocess.size, checker.context_length
    can_cut = openclip.can_cut(model)
    _write(_Image(model), torch.zeros(2, 3, side, side), {0: "batch"}, folder / "image.onnx")
    tokens = torch.ones(2, context if not can_cut else max(2, context // 2), dtype=torch.int64)
    _write(_Text(model), tokens, {0: "batch", 1: "length"} if can_cut else {0: "batch"}, folder / "text.onnx")
    write_json(folder / "tokenizer.json", checker.tokenizer.to_json())
    (folder / "LICENCE.txt").write_text(licence_text)
    (folder / "reference.json").unlink(missing_ok=True)
    if frozen is not None:
        write_json(folder / "reference.json", reference.to_json(frozen))
    manifest = Manifest(
        model=checker.name, weights=checker.weights, label=checker.label, is_demo=checker.is_demo, licence=licence,
        preprocess=checker.preprocess, context_length=context, embed_dim=checker.embed_dim,
        logit_scale=checker.logit_scale, logit_bias=checker.logit_bias,
        library_version=f"{openclip.LIBRARY_VERSION}-onnx", full_context=not can_cut,
    )  # fmt: skip
    return bundle.write_manifest(folder, manifest)


def write_json(path: Path, data: object) -> None:
    """Compact JSON with a final newline."""
    path.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")


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


def _write(module: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, str], path: Path) -> None:
    shapes = {axis: torch.export.Dim(name, min=1, max=4096) for axis, name in dynamic.items()}
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        raw = Path(scratch) / "model.onnx"
        torch.onnx.export(
            module.eval(), (example,), raw, dynamo=True, opset_version=OPSET, dynamic_shapes=(shapes,),
            external_data=False, verbose=False,
        )  # fmt: skip
        model = onnx.load(raw)
    forget_origin(model)
    halve(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: each node carries the stack that made it, with the folders of whoever exported."""
    graph = model.graph
    holders = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for holder in holders:
        del holder.metadata_props[:]
        holder.doc_string = ""


def halve(model: onnx.ModelProto) -> None:
    """Store every large fp32 weight as fp16 with a Cast in front of its use: half the file, the same arithmetic.

    A weight that fp16 cannot hold stays as it is.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
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
