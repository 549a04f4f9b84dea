"""A small vision-language model: vision encoder, projector, decoder language model.

The decoder's input holds image placeholder tokens. Their embeddings are replaced by the
projected patches of the picture, and from there on text and picture are one sequence.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from toy_vlm.processor import Processor, Tokenizer

WEIGHTS = Path(__file__).parent / "weights"
NAME = "toy-vlm"
GOOD, REGRESSED = "2026.11.1", "2026.11.2"
MAX_ANSWER = 48  # tokens; the longest description of a scene has fewer


class PromptTooLong(ValueError):
    """The prompt leaves no room for an answer in the decoder's context."""


class PlaceholderMismatch(ValueError):
    """The text holds another number of image placeholders than the picture has patches."""


@dataclass(frozen=True)
class Config:
    words: tuple[str, ...]
    image_size: int = 64
    patch: int = 8
    vision_width: int = 128
    vision_layers: int = 2
    width: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 160

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class Answer:
    """`logprobs` are natural logarithms, one per token of `text`; the end sign is in neither."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def geo_p(self) -> float:
        return math.exp(sum(self.logprobs) / len(self.logprobs)) if self.logprobs else 1.0


class Block(nn.Module):
    """Pre-norm attention and MLP. `mask` is a boolean (batch, 1, length, seen), True = may look.

    `past` holds the keys and values of the tokens before `x`, and gains those of `x`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None, past: list[Tensor] | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            past[:] = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()


class VisionEncoder(nn.Module):
    """(batch, 3, size, size) in [-1, 1] -> (batch, patches, vision_width).

    Convolutions, three of them strided, cut the picture into patches; with a plain linear
    patch embedding a model this small needs several times the pictures to learn shapes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.patch != 8:
            raise ValueError(f"the stem halves three times: patch must be 8, not {config.patch}")
        width = config.vision_width
        self.stem = nn.Sequential(
            *_convolution(3, width // 4, stride=2),
            *_convolution(width // 4, width // 2, stride=2),
            *_convolution(width // 2, width // 2, stride=1),
            *_convolution(width // 2, width, stride=2),
            nn.Conv2d(width, width, 1),
        )
        self.positions = nn.Parameter(torch.randn(1, config.image_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A causal language model over embeddings, so that some of them can be patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(len(config.words), config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(
        self, embedded: Tensor, positions: Tensor, mask: Tensor, past: Sequence[list[Tensor] | None] | None = None
    ) -> Tensor:
        """(batch, length, width) -> logits (batch, length, words). `past` has one list for each layer."""
        x = embedded + self.positions(positions)
        for block, seen in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            x = block(x, mask, seen)
        return F.linear(self.norm(x), self.words.weight)


class Vlm(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.words)
        self.processor = Processor(self.tokenizer, config.image_size, config.image_tokens)
        self.vision = VisionEncoder(config)
        self.projector = nn.Sequential(
            nn.Linear(config.vision_width, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
        )
        self.decoder = Decoder(config)

    def see(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, size, size, 3) -> projected patches (batch, patches, width)."""
        scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.projector(self.vision(scaled))  # type: ignore[no-any-return]

    def merge(self, ids: Tensor, patches: Tensor) -> Tensor:
        """Embeds `ids` (batch, length) with each placeholder replaced by its patch, in order."""
        holes = ids == self.tokenizer.image
        for found in holes.sum(1).tolist():
            if found != patches.shape[1]:
                raise PlaceholderMismatch(
                    f"the text has {found} image placeholders, the picture has "
                    f"{patches.shape[1]} patches: give one placeholder for each patch"
                )
        embedded = self.decoder.words(ids)
        return embedded.masked_scatter(holes.unsqueeze(-1), patches.to(embedded.dtype))  # type: ignore[no-any-return]

    def forward(
        self,
        ids: Tensor,
        patches: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, length, words); positions and mask default to plain causal text."""
        length = ids.shape[1]
        if positions is None:
            positions = torch.arange(length).expand(len(ids), length)
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        return self.decoder(self.merge(ids, patches), positions, mask)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def answer_pixels(self, pixels: NDArray[np.uint8], prompt: str) -> list[Answer]:
        """Greedy answers to one prompt over several pictures, uint8 (n, size, size, 3)."""
        patches = self.see(torch.tensor(pixels))
        start = self.processor.prefix() + self.processor.question(prompt)
        if len(start) + MAX_ANSWER > self.config.context:
            room = self.config.context - MAX_ANSWER - self.config.image_tokens - 2
            raise PromptTooLong(
                f"the prompt has {len(start) - self.config.image_tokens - 2} tokens, the limit is {room}"
            )
        step = self.merge(torch.tensor([start] * len(pixels)), patches)
        mask = torch.ones(len(start), len(start), dtype=torch.bool).tril()[None, None]
        past: list[list[Tensor]] = [[] for _ in self.decoder.blocks]
        chosen: list[Tensor] = []
        logprobs: list[Tensor] = []
        ended = torch.zeros(len(pixels), dtype=torch.bool)
        seen = 0
        while len(chosen) < MAX_ANSWER and not ended.all():
            positions = torch.arange(seen, seen + step.shape[1])[None]
            seen += step.shape[1]
            best = F.log_softmax(self.decoder(step, positions, mask, past)[:, -1], dim=-1).max(-1)
            chosen.append(best.indices)
            logprobs.append(best.values)
            ended |= best.indices == self.tokenizer.eos
            step = self.decoder.words(best.indices[:, None])
            mask = torch.ones(1, 1, 1, seen + 1, dtype=torch.bool)
        return [
            self._answer(row, values)
            for row, values in zip(torch.stack(chosen, 1).tolist(), torch.stack(logprobs, 1).tolist(), strict=True)
        ]

    def answer(self, image: Image.Image, prompt: str) -> Answer:
        return self.answer_pixels(self.processor.pixels(image)[None], prompt)[0]

    def _answer(self, ids: Sequence[int], logprobs: Sequence[float]) -> Answer:
        end = ids.index(self.tokenizer.eos) if self.tokenizer.eos in ids else len(ids)
        tokens = tuple(self.tokenizer.decode(ids[:end]))
        # Rounding may lift log(1) a hair over 0; a logprob is never positive.
        return Answer("".join(tokens), tokens, tuple(min(0.0, value) for value in logprobs[:end]))


def save(model: Vlm, folder: Path, version: str) -> Path:
    """Writes `<version>.safetensors` (fp16) and `<version>.json` (its config) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    path = folder / f"{version}.safetensors"
    save_file(state, path)
    (folder / f"{version}.json").write_text(json.dumps(asdict(model.config)) + "\n")
    return path


def load(version: str, folder: Path = WEIGHTS) -> Vlm:
    """A version ready to answer. An unknown version is a FileNotFoundError naming those there are."""
    path = folder / f"{version}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no weights for version {version!r} in {folder}; there are: {known}")
    settings = json.loads((folder / f"{version}.json").read_text())
    model = Vlm(Config(**{**settings, "words": tuple(settings["words"])}))
    model.load_state_dict(load_file(path))
    return model.eval()
