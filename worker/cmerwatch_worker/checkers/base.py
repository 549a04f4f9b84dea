"""The one protocol behind which every checker stands."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmerwatch_worker.preprocess import Preprocess
from cmerwatch_worker.reference import Reference

__all__ = ["Checker", "Preprocess", "Reference", "brief", "logits", "unit"]


class Checker(Protocol):
    """An independent image-text encoder. Its attributes never change once it is loaded."""

    id: str  # model : weights : preprocess hash : library version; scores of different ids never meet
    label: str  # shown wherever it scores
    is_demo: bool
    preprocess: Preprocess
    context_length: int  # tokens, start and end marks included
    embed_dim: int
    logit_scale: float
    logit_bias: float | None  # None: a softmax-trained model, judged by its cosine
    reference: Reference | None  # None: "calibrating", scored and undecided

    def count_tokens(self, text: str) -> int:
        """Tokens of the whole text with its marks, nothing cut."""
        ...

    def can_read(self, text: str) -> bool:
        """False where the tokenizer knows nothing of the text, so an embedding would mean nothing."""
        ...

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, size, size, 3) from `preprocess.apply` -> (n, embed_dim), unit length. NaN is passed on, never hidden."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """n texts -> (n, embed_dim), unit length. errors.TextTooLong: a text over the context; nothing is ever cut."""
        ...


def brief(error: BaseException) -> str:
    """What a library said, on one line: torch lists every missing key of a checkpoint."""
    said = " ".join(str(error).split())
    return said if len(said) <= 300 else f"{said[:297]}..."


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, d) at unit length; a row that is zero or not finite comes out as NaN, for the caller to see."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def logits(checker: Checker, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """What percentiles are taken of: the cosine, or scale * cosine + bias for models trained with a bias."""
    if checker.logit_bias is None:
        return cosines
    return np.asarray(checker.logit_scale * cosines + checker.logit_bias, np.float32)
