"""The light runtime: ONNX Runtime over an exported bundle, on the CPU, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cmerwatch import errors
from cmerwatch_worker import bundle, preprocess
from cmerwatch_worker.checkers import tokenizers
from cmerwatch_worker.checkers.base import brief, unit


class Onnx:
    """A bundle behind the Checker protocol."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """`threads` 0: as many as ONNX Runtime sees fit. errors.StartRefused: a bundle that does not verify or run."""
        held = bundle.load(folder)
        manifest = held.manifest
        self.id = manifest.checker_id
        self.label = manifest.label
        self.licence = manifest.licence
        self.is_demo = manifest.is_demo
        self.preprocess = manifest.preprocess
        self.context_length = manifest.context_length
        self.embed_dim = manifest.embed_dim
        self.logit_scale = manifest.logit_scale
        self.logit_bias = manifest.logit_bias
        self.reference = held.reference
        self._tokenizer = held.tokenizer
        self._width = manifest.context_length if manifest.full_context else None
        self._image, self._text = (_session(folder, model, threads) for model in (held.image, held.text))
        self._hold_to_manifest(folder)

    def _hold_to_manifest(self, folder: Path) -> None:
        """One blank picture and one word: towers of other sizes than the manifest's fail here, not under events."""
        side = self.preprocess.size
        try:
            shapes = {
                "image.onnx": self.embed_images(np.zeros((1, side, side, 3), np.uint8)).shape,
                "text.onnx": self.embed_texts(["a"]).shape,
            }
        except Exception as error:  # ONNX Runtime's own errors share no public base class
            raise errors.StartRefused(
                f"checker bundle {folder}: its towers do not fit its manifest: {error}"
            ) from error
        for name, shape in shapes.items():
            if shape != (1, self.embed_dim):
                raise errors.StartRefused(
                    f"checker bundle {folder}: {name} gives {shape[-1]} numbers, the manifest says {self.embed_dim}"
                )

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def can_read(self, text: str) -> bool:
        return self._tokenizer.can_read(text)

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(pixels):
            return np.zeros((0, self.embed_dim), np.float32)
        return unit(_run(self._image, preprocess.normalise(pixels, self.preprocess)))

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.zeros((0, self.embed_dim), np.float32)
        return unit(_run(self._text, tokenizers.batch(self._tokenizer, texts, self._width)))


def _session(folder: Path, model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Several workers share one machine: a thread that spins while it waits takes the core of one that works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own errors share no public base class
        raise errors.StartRefused(f"checker bundle {folder}: ONNX Runtime cannot load it: {brief(error)}") from error


def _run(session: onnxruntime.InferenceSession, batch: NDArray[Any]) -> NDArray[np.float32]:
    (rows,) = session.run(None, {session.get_inputs()[0].name: batch})
    return np.asarray(rows, np.float32)
