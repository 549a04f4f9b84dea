"""The full runtime: any open_clip model with torch, on a GPU where there is one."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP, CustomTextCLIP
from safetensors import SafetensorError
from safetensors.torch import load_file

from cmerwatch import errors
from cmerwatch_worker import preprocess
from cmerwatch_worker.checkers import tokenizers
from cmerwatch_worker.checkers.base import Preprocess, Reference, brief, unit

Model = Any  # an open_clip CLIP or CustomTextCLIP; open_clip carries no types

LIBRARY_VERSION = f"open_clip-{open_clip.__version__}"


class OpenClip:
    """An open_clip model behind the Checker protocol."""

    def __init__(
        self, model: Model, tokenizer: tokenizers.Tokenizer, cfg: Preprocess, name: str, weights: str,
        embed_dim: int, device: str | None = None, half: bool | None = None,
    ) -> None:  # fmt: skip
        """`half`: multiply in bfloat16, weights kept whole; by default on a GPU, where it is several times as fast."""
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.half = self.device.startswith("cuda") if half is None else half
        self.model = model.float().eval().to(self.device)
        self.tokenizer = tokenizer
        self.preprocess = cfg
        self.name, self.weights = name, weights
        # Cosines in bfloat16 differ in the third digit: scores of the two never share a threshold.
        self.id = f"{name}:{weights}:{cfg.hash}:{LIBRARY_VERSION}{'-bf16' if self.half else ''}"
        self.label = f"{name} ({weights})"
        self.is_demo = False
        self.context_length = tokenizer.context_length
        self.embed_dim = embed_dim
        self.logit_scale = model.logit_scale.detach().exp().item()
        self.logit_bias = None if model.logit_bias is None else model.logit_bias.detach().item()
        self.reference: Reference | None = None

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def can_read(self, text: str) -> bool:
        return self.tokenizer.can_read(text)

    @torch.inference_mode()
    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(pixels):
            return np.zeros((0, self.embed_dim), np.float32)
        images = self._moved(preprocess.normalise(pixels, self.preprocess))
        with self._precision():
            rows = self.model.encode_image(images)
        return unit(rows.float().cpu().numpy())

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.zeros((0, self.embed_dim), np.float32)
        width = None if can_cut(self.model) else self.context_length
        tokens = self._moved(tokenizers.batch(self.tokenizer, texts, width))
        with self._precision():
            rows = encode_text(self.model, tokens)
        return unit(rows.float().cpu().numpy())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=self.half)

    def _moved(self, batch: NDArray[Any]) -> torch.Tensor:
        """On the device; to a GPU from pinned memory, so that the copy does not hold up the processor."""
        tensor = torch.from_numpy(batch)
        if self.device.startswith("cuda"):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def on_processor(self) -> "OpenClip":
        """The same weights whole and on the processor: what an export is made from and compared with."""
        made = OpenClip(
            self.model, self.tokenizer, self.preprocess, self.name, self.weights, self.embed_dim, "cpu", half=False
        )
        made.label, made.is_demo, made.reference = self.label, self.is_demo, self.reference
        return made


def can_cut(model: Model) -> bool:
    """Whether positions after the longest end mark can be left out: causal attention, pooled at the end mark.

    Exact there, and up to four times faster, since most claims are far shorter than the context.
    """
    return isinstance(model, CLIP) and model.attn_mask is not None and model.text_pool_type == "argmax"


def encode_text(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """(n, length) ids -> (n, embed_dim), not normalised; length may be below the context where `can_cut`."""
    if not can_cut(model):
        whole: torch.Tensor = model.encode_text(tokens)
        return whole
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled: torch.Tensor = x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=-1)]
    projection = model.text_projection
    if projection is None:
        return pooled
    projected: torch.Tensor = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return projected


# --- loading ---------------------------------------------------------------------------------------------


def load_pretrained(name: str, tag: str) -> OpenClip:
    """Load a model of open_clip's list whose weights are on this machine. Nothing is downloaded here.

    errors.StartRefused: unknown model or tag, another activation than the weights were trained with, weights not
    downloaded (with the command that does it).
    """
    known = _pretrained_config(name, tag)
    path = _downloaded(known)
    if path is None:
        raise errors.StartRefused(
            f"the weights {name}:{tag} are not on this machine; run: cmerwatch checker download {name}:{tag}"
        )
    _hold_to_cache(path, f"{name}:{tag}")
    try:
        with warnings.catch_warnings():
            # open_clip only warns when the activation does not fit the weights, and then scores with the wrong one.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(name, pretrained=str(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError, UserWarning) as error:
        raise errors.StartRefused(f"cannot load {name}:{tag} from {path}: {brief(error)}") from error
    cfg = {
        **open_clip.get_model_preprocess_cfg(model),
        **{k: v for k, v in known.items() if k in _PREPROCESS_KEYS and v},
    }
    text_cfg = open_clip.get_model_config(name)["text_cfg"]
    return OpenClip(
        model,
        _open_clip_tokenizer(text_cfg),
        _preprocess(cfg),
        name,
        tag,
        int(open_clip.get_model_config(name)["embed_dim"]),
    )


def _hold_to_cache(path: Path, what: str) -> None:
    """The cache names a large file by its sha256 and never looks again; a file that was changed or cut is refused."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and _sha256(blob) != blob.name:
        raise errors.StartRefused(
            f"{blob} is not the file that was published as {what}; delete it and run: cmerwatch checker download {what}"
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise errors.StartRefused(f"{path} cannot be read ({error.strerror})") from error


def load_local(config: Path, weights: Path) -> OpenClip:
    """Load a checkpoint from an open_clip config file (model_cfg, preprocess_cfg) and a safetensors file.

    A tokenizer.json beside the config wins over open_clip's own, and a `weights_sha256` in the config pins the file.
    errors.StartRefused: any other weights format, a file that is missing, not the pinned one or not of this config.
    """
    if weights.suffix != ".safetensors":
        raise errors.StartRefused(
            f"{weights.name}: only .safetensors checkpoints are loaded, because other formats can run code; "
            "convert it first"
        )
    try:
        data = json.loads(config.read_text())
        if (pinned := data.get("weights_sha256")) and _sha256(weights) != pinned:
            raise errors.StartRefused(f"{weights} is not the file whose sha256 {config} pins; copy it again")
        state = load_file(weights)
        model = _build(data["model_cfg"])
        model.load_state_dict(state)
        cfg = _preprocess({"size": data["model_cfg"]["vision_cfg"]["image_size"], **data.get("preprocess_cfg", {})})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise errors.StartRefused(f"cannot load {weights} with {config}: {brief(error)}") from error
    beside = config.parent / "tokenizer.json"
    if beside.exists():
        tokenizer = tokenizers.from_json(json.loads(beside.read_text()))
    else:
        tokenizer = _open_clip_tokenizer(data["model_cfg"]["text_cfg"])
    name = data.get("name", config.parent.name)
    checker = OpenClip(model, tokenizer, cfg, name, _fingerprint(state), data["model_cfg"]["embed_dim"])
    checker.label = data.get("label", checker.label)
    # The demo's own checkpoint must stay refused in production, however it is loaded.
    checker.is_demo = bool(data.get("is_demo", False))
    return checker


def _fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Twelve hex digits over the weights themselves, so the id does not depend on the file's name."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _build(model_cfg: Mapping[str, Any]) -> Model:
    options = dict(model_cfg)
    custom = options.pop("custom_text", False) or "hf_model_name" in options["text_cfg"]
    return (CustomTextCLIP if custom else CLIP)(**options)


_PREPROCESS_KEYS = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")


def _preprocess(cfg: Mapping[str, Any]) -> Preprocess:
    known = {**asdict(open_clip.transform.PreprocessCfg()), **{k: v for k, v in cfg.items() if v is not None}}
    size = known["size"]
    if not isinstance(size, int):
        if len(set(size)) != 1:
            raise errors.StartRefused(f"image size {tuple(size)}: only square checkers are supported")
        size = int(size[0])
    return Preprocess(
        size, known["mean"], known["std"], known["interpolation"], known["resize_mode"], known.get("fill_color", 0)
    )


def _pretrained_config(name: str, tag: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    if config is None:
        raise errors.StartRefused(f"open_clip has no model {name!r}; `open_clip.list_models()` lists them")
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise errors.StartRefused(f"{name} has no weights {tag!r}; its tags are: {', '.join(tags) or 'none'}")
    if bool(known.get("quick_gelu", False)) != bool(config.get("quick_gelu", False)):
        raise errors.StartRefused(
            f"{name}:{tag} was trained with another activation (QuickGELU); use {_other_name(name)}:{tag}"
        )
    return dict(known)


def _other_name(name: str) -> str:
    return name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"


def _downloaded(known: Mapping[str, Any]) -> Path | None:
    """The safetensors file of a pretrained entry in the local cache, or None. Pickles are not looked for."""
    repo, filename = os.path.split(known.get("hf_hub", ""))
    names = [f"{Path(filename).stem}.safetensors"] if filename else []
    for name in (*names, "open_clip_model.safetensors"):
        found = huggingface_hub.try_to_load_from_cache(repo, name) if repo else None
        if isinstance(found, str):
            return Path(found)
    return None


def _open_clip_tokenizer(text_cfg: Mapping[str, Any], fetch: bool = False) -> tokenizers.Tokenizer:
    """Our own reading of CLIP's merges, or the Hugging Face tokenizer of models trained with one."""
    context_length = int(text_cfg.get("context_length", 77))
    if name := text_cfg.get("hf_tokenizer_name"):
        return _hugging_face(str(name), context_length, text_cfg.get("tokenizer_kwargs") or {}, fetch)
    if kwargs := text_cfg.get("tokenizer_kwargs"):
        raise errors.StartRefused(f"text towers with tokenizer options {kwargs} are not supported")
    merges = list(open_clip.tokenizer.SimpleTokenizer().bpe_ranks)
    return tokenizers.Bpe(merges, context_length)


def _hugging_face(name: str, context_length: int, kwargs: Mapping[str, Any], fetch: bool) -> tokenizers.HuggingFace:
    """A tokenizer of the hub, from this machine's cache unless `fetch`: the same ids as open_clip's wrapper gives."""
    options = {"clean": "whitespace", "strip_sep_token": False, **kwargs}
    if strange := sorted(options.keys() - {"clean", "strip_sep_token"}):
        raise errors.StartRefused(f"text towers with tokenizer options {', '.join(strange)} are not supported")
    try:
        import transformers

        fast = transformers.AutoTokenizer.from_pretrained(name, local_files_only=not fetch)
        model = json.loads(fast.backend_tokenizer.to_str())
    except ImportError as error:
        raise errors.StartRefused(
            "this model's tokenizer needs one more package; run: pip install transformers"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise errors.StartRefused(
            f"the tokenizer {name} is not on this machine or not usable; fetch the model again with "
            f"`cmerwatch checker download` ({brief(error)})"
        ) from error
    drop = fast.sep_token_id if options["strip_sep_token"] else None
    return tokenizers.HuggingFace(model, context_length, str(options["clean"]), fast.pad_token_id or 0, drop)


def download(name: str, tag: str) -> Path:
    """Fetch the weights of a listed model from where open_clip publishes them.

    errors.Unavailable: they cannot be fetched now. errors.StartRefused: unknown, or published as a pickle only.
    """
    known = _pretrained_config(name, tag)
    try:
        open_clip.download_pretrained(known)
    except OSError as error:  # what the network, the hub's client and the disk raise
        raise errors.Unavailable(f"{name}:{tag} cannot be fetched now: {brief(error)}") from error
    path = _downloaded(known)
    if path is None:
        raise errors.StartRefused(
            f"{name}:{tag} is published without a .safetensors file, and other formats can run code"
        )
    _open_clip_tokenizer(open_clip.get_model_config(name)["text_cfg"], fetch=True)
    return path
