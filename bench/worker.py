"""The worker end to end against its checker's own batched forward on the same decoded tensors and the same texts.

    python bench/worker.py [--checker demo|ViT-B-32] [--events N] [--side PX] [--threads N]
                               the ratio, and where the CPU goes
    python bench/worker.py --draft     how far embeddings move because large JPEGs are decoded at a fraction
    python bench/worker.py --text      what cutting the text tower to the longest claim brings

Real Postgres, real image files, real decoders; every event has a picture of its own. ViT-B-32 has random weights: they
are as fast as trained ones. The forward is timed in the same process, right after, on what the worker gave the checker,
in the same calls. Ratio 1 means that decoding, reading and writing cost the checker no time.

Where decoders and the checker share the same cores the CPU decides: the last figure is the forward's share of all CPU
seconds but those of the display copies, the best ratio that a machine with all cores busy could show. One thread
(--threads 1) leaves the other cores to decoding, as an accelerator does, and does not spin while it waits for others on
a busy machine. Display copies are made on idle cores; how long after the last check the last one is there is printed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import os
import random
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from cmerwatch import access, blobs, db, embedded, events, migrate, partitions, policies, settings  # noqa: E402
from cmerwatch.shapes import Slice  # noqa: E402
from cmerwatch_worker import bundle, checkers, decode, preprocess, reference  # noqa: E402
from cmerwatch_worker.checkers import onnx  # noqa: E402
from cmerwatch_worker.checkers.base import logits, unit  # noqa: E402
from cmerwatch_worker.decode_pool import BACKGROUND_NICE  # noqa: E402
from cmerwatch_worker.runtime import Runtime, open_pool  # noqa: E402
from cmerwatch_worker.tasks import Checking  # noqa: E402
from cmerwatch_worker.watchdog import Progress  # noqa: E402
from toy_vlm import captions, scenes  # noqa: E402

TARGET = 0.9
EVENTS = {"demo": 4000, "ViT-B-32": 400}
SIDE = 640  # longer side of a picture in pixels: what an app sends, not what a checker sees


class Recorded:
    """A checker that remembers each call's input and how long it took."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker
        self.calls: list[tuple[str, Any]] = []
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checker, name)

    def embed_images(self, pixels: Any) -> Any:
        return self._timed("embed_images", pixels)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        return self._timed("embed_texts", texts)

    def _timed(self, name: str, given: Any) -> Any:
        self.calls.append((name, given))
        started = time.perf_counter()
        try:
            return getattr(self._checker, name)(given)
        finally:
            self.seconds += time.perf_counter() - started


def load(name: str, threads: int = 0) -> Any:
    """`threads` 0: as many as the runtime sees fit."""
    if name == "demo":
        return onnx.Onnx(bundle.DEMO, threads)
    import open_clip
    import torch

    if threads:
        torch.set_num_threads(threads)

    from cmerwatch_worker.checkers import openclip
    from cmerwatch_worker.checkers.base import Preprocess

    model = open_clip.create_model(name)
    cfg = open_clip.get_model_preprocess_cfg(model)
    seen = Preprocess(cfg["size"][0], tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"])
    config = open_clip.get_model_config(name)
    tokenizer = openclip._open_clip_tokenizer(config["text_cfg"])
    return openclip.OpenClip(model, tokenizer, seen, name, "random", config["embed_dim"])


def seed(store: blobs.BlobStore, n: int, side: int | None) -> uuid.UUID:
    """n events, each with a JPEG of its own and one or two sentences."""
    rng = random.Random(n)
    with db.transaction() as session:
        project = access.create_project(session, f"bench-{uuid.uuid4().hex[:8]}").id
        policies.ensure_default(session, project)
    for start in range(0, n, 64):
        with db.transaction() as session:
            for _ in range(min(64, n - start)):
                scene = scenes.sample(rng)
                data = jpeg(scenes.render(scene, side), rng)
                sha256 = events.store_image(session, store, project, data, hashlib.sha256(data).hexdigest())
                said = captions.answer(scene, "describe")
                event = events.NewEvent(
                    slice=Slice("/bench"), images=(sha256,), output=said, prompt="Describe the scene.", confidence=0.9
                )
                events.ingest(session, project, event)
    return project


def jpeg(image: Any, rng: random.Random) -> bytes:
    """With a little noise, so that no two pictures are one file and the decoder has work to do."""
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(-6, 7, (image.height, image.width, 3))
    from PIL import Image

    pixels = np.clip(np.asarray(image.convert("RGB"), np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cpu_seconds(postgres: embedded.Postgres) -> dict[str, float]:
    """CPU used so far by this process, by its decoders (those that ended too), by the maker of copies, by Postgres."""
    database = psutil.Process(postgres.pid)
    database_pids = {database.pid, *(child.pid for child in database.children(recursive=True))}
    used = {"worker": time.process_time(), "decoders": 0.0, "copies": 0.0, "postgres": _used(database_pids)}
    for child in psutil.Process().children(recursive=True):
        if child.pid not in database_pids:
            used["copies" if child.nice() == BACKGROUND_NICE else "decoders"] += _used([child.pid])
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used["decoders"] += ended.ru_utime + ended.ru_stime
    return used


def _used(pids: Iterable[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids if psutil.pid_exists(pid))


def forward_seconds(checker: Any, calls: Sequence[tuple[str, Any]]) -> float:
    started = time.perf_counter()
    for name, given in calls:
        getattr(checker, name)(given)
    return time.perf_counter() - started


def measure(name: str, n: int, side: int | None, threads: int, postgres: embedded.Postgres) -> float:
    configuration = settings.current()
    store = blobs.FolderStore(configuration.blob_dir)
    plain = load(name, threads)
    checker = Recorded(plain)
    runtime = Runtime(checker, store, open_pool(configuration, checker))  # type: ignore[arg-type]
    checking = Checking(runtime, configuration, Progress())
    seed(store, 64, side)
    checking.drain(600)  # warm: decoders, kernels, plans
    checking.copies.wait_made(600)
    checker.calls.clear()
    checker.seconds = 0.0
    seed(store, n, side)
    before, started = cpu_seconds(postgres), time.perf_counter()
    done = checking.drain(3600)
    seconds, after = time.perf_counter() - started, cpu_seconds(postgres)
    checking.copies.wait_made(3600)
    late = time.perf_counter() - started - seconds
    checking.close()
    if done != n:
        raise SystemExit(f"{done} of {n} events were checked")
    cpu_before = time.process_time()
    bare = forward_seconds(plain, checker.calls)
    forward = time.process_time() - cpu_before
    report(name, n, side, threads, seconds, bare, checker.seconds)
    report_cpu(n, {part: after[part] - before[part] for part in after}, forward, late)
    return bare / seconds


def report(name: str, n: int, side: int | None, threads: int, seconds: float, bare: float, inside: float) -> None:
    print(
        f"{name}, {n} events, pictures of {side or 'their own size'} px, "
        f"{threads or 'any'} checker threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
        f"  worker {n / seconds:.1f}/s, bare forward {n / bare:.1f}/s, ratio {bare / seconds:.2f}; "
        f"in the worker the forward took {inside / seconds:.0%} of the time"
    )


def report_cpu(n: int, used: dict[str, float], forward: float, late: float) -> None:
    others = {"worker without it": used["worker"] - forward, **{k: used[k] for k in ("decoders", "postgres", "copies")}}
    told = ", ".join(f"{part} {1000 * seconds / n:.2f}" for part, seconds in others.items())
    without_copies = used["worker"] + used["decoders"] + used["postgres"]
    print(
        f"  CPU ms per event: forward {1000 * forward / n:.2f}, {told}; the forward's share without copies "
        f"{forward / without_copies:.2f}; last display copy {late:.1f} s after the last check"
    )


def draft_moves() -> None:
    """Cosines of the demo checker, exact decoding against decoding at a fraction, on scenes of three sizes."""
    checker, limits, rng = checkers.load("demo"), decode.Limits(25_000_000, 16_384), random.Random(7)
    for side in (320, 640, 1024):
        drawn = [scenes.sample(rng) for _ in range(200)]
        files = [jpeg(scenes.render(scene, side), rng) for scene in drawn]
        texts = checker.embed_texts([captions.answer(scene, "identify") for scene in drawn])
        exact, drafted = (
            checker.embed_images(
                np.stack([preprocess.apply(decode.read(data, limits, at).image, checker.preprocess) for data in files])
            )
            for at in (None, decode.DRAFT_MARGIN * checker.preprocess.size)
        )
        cosines = [(images * texts).sum(1) for images in (exact, drafted)]
        moved = np.abs(cosines[1] - cosines[0])
        assert checker.reference is not None
        us = [reference.percentile(checker.reference, "identify", logits(checker, cosine)) for cosine in cosines]
        flips = int(((us[0] < 0.05) != (us[1] < 0.05)).sum())
        print(
            f"{side} px: own claim's cosine moves by {moved.mean():.5f} on average, {moved.max():.4f} at most; its "
            f"percentile by {np.abs(us[1] - us[0]).mean():.4f}, {np.abs(us[1] - us[0]).max():.3f} at most; "
            f"{flips} of 200 cross 0.05"
        )


def text_cut() -> None:
    """ViT-B-32's text tower on claims of drawn scenes: whole context against cut to the longest."""
    import torch

    from cmerwatch_worker.checkers import openclip, tokenizers

    checker, rng = load("ViT-B-32"), random.Random(7)
    texts = [captions.answer(scenes.sample(rng), "describe") for _ in range(64)]
    whole, cut = (torch.from_numpy(tokenizers.batch(checker.tokenizer, texts, width)) for width in (77, None))
    slow, rows = _encode(checker.model.encode_text, whole)
    fast, cut_rows = _encode(functools.partial(openclip.encode_text, checker.model), cut)
    print(
        f"ViT-B-32 text tower, 64 claims of at most {cut.shape[1]} tokens: {slow / fast:.1f}x less CPU than over 77, "
        f"largest difference {np.abs(rows - cut_rows).max():.1e}, load {os.getloadavg()[0]:.1f}"
    )


def _encode(encode: Any, tokens: Any) -> tuple[float, Any]:
    """CPU seconds of five calls, and the rows at unit length."""
    import torch

    torch.set_num_threads(1)  # threads that wait for one another on a busy machine spin, which counts as CPU
    with torch.inference_mode():
        encode(tokens)  # warm
        started = time.process_time()
        rows = [encode(tokens) for _ in range(5)][-1]
        return time.process_time() - started, unit(rows.numpy())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checker", choices=sorted(EVENTS), action="append")
    parser.add_argument("--events", type=int)
    parser.add_argument("--side", type=int, default=SIDE, help="longer side in px; 0: as each scene was drawn")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the checker, in the worker and alone; 0: its own choice"
    )
    parser.add_argument("--draft", action="store_true")
    parser.add_argument("--text", action="store_true")
    options = parser.parse_args()
    if options.draft or options.text:
        (draft_moves if options.draft else text_cut)()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"CMERWATCH_DATA_DIR": str(home / "data"), "CMERWATCH_SECRET_KEY": "bench " * 8}
        postgres = embedded.Postgres(home / "postgres", home / "password", home / "log")
        postgres.start()
        try:
            postgres.create_database("bench")
            os.environ["CMERWATCH_DATABASE_URL"] = postgres.url("bench")
            settings.current.cache_clear()
            migrate.upgrade(postgres.url("bench"))
            engine = db.configure(postgres.url("bench"))
            partitions.ensure_ahead(engine)
            side = options.side or None
            ratios = [
                measure(name, options.events or EVENTS[name], side, options.threads, postgres)
                for name in options.checker or EVENTS
            ]
            engine.dispose()
        finally:
            postgres.stop()
    print(f"target: >= {TARGET}")
    return 0 if min(ratios) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
