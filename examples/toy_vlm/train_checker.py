"""Train the demo checker: open_clip's own CLIP class, sigmoid loss, facts as labels.

    PYTHONPATH=examples python -m toy_vlm.train_checker --minutes 45

Drawing and training share the machine: producer processes fill a pool of scenes on disk, the trainer draws batches
from whatever is there. The schedule runs by the clock, so a busy machine gives fewer steps, never an unfinished run.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from toy_vlm import training_data
from toy_vlm.training_data import NEGATIVES, POSITIVES, Pool

HERE = Path(__file__).parent / "checker"
SIDE = 64
BATCH = 128
HARD = 3  # own false sentences per image and step
OWN_WEIGHT = 6.0  # of an image's own sentences against those of the rest of the batch
LR = 1e-3
WARM_START = 4000  # scenes in the pool before the first step


def config(vocabulary: int) -> dict[str, Any]:
    """The model's configuration in the layout of open_clip's own JSON files."""
    return {
        "embed_dim": 256,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 24},
        "text_cfg": {
            "context_length": training_data.CONTEXT,
            "vocab_size": vocabulary,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
        "init_logit_scale": math.log(10),
        "init_logit_bias": -6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--pool", type=Path, help="folder for the drawn scenes (12 KB each); default: a temporary one")
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--producers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out")
    parser.add_argument("--rate", type=float, default=LR, help="highest learning rate")
    args = parser.parse_args()
    folder = args.pool or Path(tempfile.mkdtemp(prefix="drawn-scenes-"))
    try:
        train(args.minutes, args.out, folder, args.scenes, args.producers, args.threads, args.resume, args.rate)
    finally:
        if args.pool is None:
            shutil.rmtree(folder)


def train(
    minutes: float, out: Path, folder: Path, rows: int, producers: int, threads: int, resume: bool, rate: float
) -> None:
    """Train for `minutes` and leave config.json, tokenizer.json and weights.safetensors (fp16) in `out`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = training_data.build_tokenizer()
    cfg = config(len(tokenizer.vocabulary))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(
        json.dumps({**ABOUT, "model_cfg": cfg, "preprocess_cfg": PREPROCESS}, indent=1) + "\n"
    )
    (out / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()) + "\n")
    model = CLIP(**cfg).to(memory_format=torch.channels_last)
    if resume:
        model.load_state_dict(load_file(out / "weights.safetensors"))
    pool = training_data.open_pool(folder, rows, SIDE, "w+")
    done = np.memmap(folder / "done", np.int64, "w+", shape=(producers,))
    workers = [_start(folder, rows, producers, i) for i in range(producers)]
    try:
        _loop(minutes * 60, out, pool, done, model, rate)
    finally:
        for worker in workers:
            worker.terminate()


ABOUT = {"name": "drawn-scenes-rn", "label": "demo: drawn scenes only", "is_demo": True}
PREPROCESS = {
    "size": SIDE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic", "resize_mode": "squash", "fill_color": 0,
}  # fmt: skip


def _start(folder: Path, rows: int, producers: int, worker: int) -> multiprocessing.Process:
    process = multiprocessing.Process(target=_produce, args=(folder, rows, producers, worker), daemon=True)
    process.start()
    return process


def _produce(folder: Path, rows: int, producers: int, worker: int) -> None:
    pool = training_data.open_pool(folder, rows, SIDE, "r+")
    done = np.memmap(folder / "done", np.int64, "r+", shape=(producers,))
    share = rows // producers
    tokenizer = training_data.build_tokenizer()
    training_data.fill(pool, worker * share, (worker + 1) * share, 1000 + worker, tokenizer, done, worker)


def _loop(seconds: float, out: Path, pool: Pool, done: NDArray[np.int64], model: CLIP, rate: float) -> None:
    optimizer = torch.optim.AdamW(_groups(model), lr=rate, betas=(0.9, 0.98))
    rng = np.random.default_rng(0)
    while int(done.sum()) < WARM_START:
        time.sleep(0.5)
    start, step, saved, total = time.monotonic(), 0, 0.0, 0.0
    while (spent := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * _schedule(step, spent / seconds)
        loss = _step(model, optimizer, pool, _draw(rng, done, len(pool.pixels)), rng)
        step, total = step + 1, total + loss
        if step % 50 == 0:
            print(f"{spent:6.0f} s  step {step}  loss {total / 50:.3f}  scenes {int(done.sum())}", flush=True)
            total = 0.0
        if spent - saved > 180:
            saved = spent
            save(model, out)
    save(model, out)
    print(f"done: {step} steps, {step * BATCH} images", flush=True)


def _groups(model: CLIP) -> list[dict[str, Any]]:
    """Weight decay for matrices only: on norms, biases and the scale it does harm."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]


def _schedule(step: int, progress: float) -> float:
    return min(1.0, step / 150) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def _draw(rng: np.random.Generator, done: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """BATCH rows among the filled ones; every producer fills its own stretch of the pool."""
    share = rows // len(done)
    filled = done.copy()
    worker = rng.choice(len(done), size=BATCH, p=filled / filled.sum())
    return worker * share + (rng.random(BATCH) * filled[worker]).astype(np.int64)


def _step(
    model: CLIP, optimizer: torch.optim.Optimizer, pool: Pool, rows: NDArray[np.int64], rng: np.random.Generator
) -> float:
    images = torch.from_numpy(pool.pixels[rows]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    # (BATCH, 1 + HARD) sentences of each row: one true, HARD false ones.
    columns = np.concatenate(
        [rng.integers(0, POSITIVES, (BATCH, 1)), POSITIVES + rng.random((BATCH, NEGATIVES)).argsort(1)[:, :HARD]],
        axis=1,
    )
    tokens = pool.tokens[rows[:, None], columns].reshape(-1, training_data.CONTEXT)
    said = pool.said[rows[:, None], columns].reshape(-1, training_data.CLAIM_CODE)
    labels, weights = _targets(pool.facts[rows], said)
    length = int((tokens != 0).sum(1).max())  # attention is causal: cutting the padding changes nothing
    # Plain fp32: at these widths bf16 autocast was measured slower on CPUs that have it.
    image = model.encode_image(images.contiguous(memory_format=torch.channels_last), normalize=True)
    text = _encode_text(model, torch.from_numpy(tokens[:, :length].astype(np.int64)))
    logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum") / BATCH
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def _targets(facts: NDArray[np.int8], said: NDArray[np.int8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and weights (scenes, claims). A scene's own sentences are known; undecidable others weigh nothing."""
    holds, unsure = training_data.truth(facts, said)
    labels, weights = holds.astype(np.float32), np.where(unsure, 0.0, 1.0).astype(np.float32)
    own = np.arange(len(said)).reshape(len(facts), 1 + HARD)
    at = np.arange(len(facts))[:, None]
    labels[at, own] = [1.0] + [0.0] * HARD
    weights[at, own] = OWN_WEIGHT
    return torch.from_numpy(labels), torch.from_numpy(weights)


def _encode_text(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """CLIP.encode_text over the used positions only: (n, length) -> (n, 256), normalised."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)] @ model.text_projection
    return torch.nn.functional.normalize(x, dim=-1)


def save(model: CLIP, out: Path) -> None:
    """Write weights.safetensors in fp16, whole or not at all."""
    # fp16 keeps batch-norm counters as they are; they are integers.
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, out / "weights.tmp")
    (out / "weights.tmp").chmod(0o644)
    (out / "weights.tmp").replace(out / "weights.safetensors")


if __name__ == "__main__":
    main()
