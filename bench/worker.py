"""The worker end to end against its checker's own batched forward on the same decoded tensors and the same texts.

    python bench/worker.py [--checker demo|ViT-B-32] [--events N] [--side PX ...] [--threads N]
                               the ratio, and where the CPU goes; at 640 px, and beside it at 320
    python bench/worker.py --draft     how far embeddings move because large JPEGs are decoded at a fraction
    python bench/worker.py --text      what cutting the text tower to the longest claim brings

Real Postgres, real image files, real decoders; every event has a picture of its own. ViT-B-32 has random weights: they
are as fast as trained ones. The worker and the bare forward take turns, ROUNDS times, in one process: after each round
the forward is timed on exactly what the worker gave the checker in it, in the same calls, so that whatever else the
machine does hits both. Ratio 1 means that decoding, reading and writing cost the checker no time. A text said before
costs neither side anything.

Where decoders and the checker share the same cores the CPU decides: the last figure is the forward's share of all CPU
seconds but those of the display copies, the best ratio that a machine with all cores busy could show. One thread
(--threads 1) leaves the other cores to decoding, as an accelerator does, and does not spin while it waits for others on
a busy machine. Display copies are made on idle cores and waited for before the forward is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import os
import random
import resource
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]

from cmerwatch import access, blobs, db, embedded, events, intervals, migrate, partitions, policies, settings  # noqa: E402
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
SIDES = (640, 320)  # longer side of a picture in pixels: what an app sends, and what the demo's own app does
ROUNDS = 4
SCENES = 1000  # of --draft, per size


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


def seed(store: blobs.BlobStore, n: int, side: int | None, rng: random.Random) -> uuid.UUID:
    """n events, each with a JPEG of its own and one or two sentences."""
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


def cpu_seconds(postgres: embedded.Postgres) -> Counter[str]:
    """CPU used so far by the thread that embeds with its helpers, by the threads of this process beside it, by its
    decoders (those that ended too), by the maker of copies, by Postgres."""
    database = psutil.Process(postgres.pid)
    database_pids = {database.pid, *(child.pid for child in database.children(recursive=True))}
    used = Counter[str](postgres=_used(database_pids))
    beside = {thread.native_id for thread in threading.enumerate()} - {threading.main_thread().native_id}
    for thread in psutil.Process().threads():
        used["beside" if thread.id in beside else "embed"] += thread.user_time + thread.system_time
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


@dataclasses.dataclass
class Round:
    """Wall seconds of the worker, of the bare forward and of the forward inside the worker; CPU seconds by part."""

    worker: float
    bare: float
    inside: float
    cpu: Counter[str]


def measure(name: str, n: int, side: int | None, threads: int, postgres: embedded.Postgres) -> float:
    configuration = settings.current()
    store = blobs.FolderStore(configuration.blob_dir)
    plain = load(name, threads)
    checker = Recorded(plain)
    runtime = Runtime(checker, store, open_pool(configuration, checker))  # type: ignore[arg-type]
    checking = Checking(runtime, configuration, Progress())
    rng = random.Random(7)
    seed(store, 64, side, rng)
    checking.drain(600)  # warm: decoders, kernels, plans
    checking.copies.wait_made(600)
    before = os.getloadavg()[0]
    rounds = [play(checking, checker, plain, store, n // ROUNDS, side, rng, postgres) for _ in range(ROUNDS)]
    checking.close()
    print(
        f"{name}, {n} events, pictures of {side or 'their own size'} px, {threads or 'its own choice of'} checker "
        f"threads, {os.cpu_count()} cores, load {before:.1f} to {os.getloadavg()[0]:.1f}"
    )
    report(n, rounds)
    return sum(one.bare for one in rounds) / sum(one.worker for one in rounds)


def play(
    checking: Checking,
    checker: Recorded,
    plain: Any,
    store: blobs.BlobStore,
    n: int,
    side: int | None,
    rng: random.Random,
    postgres: embedded.Postgres,
) -> Round:
    """The worker on n new events, then the bare forward on what it gave the checker."""
    seed(store, n, side, rng)
    checker.calls.clear()
    checker.seconds = 0.0
    before, started = cpu_seconds(postgres), time.perf_counter()
    done = checking.drain(3600)
    seconds, after = time.perf_counter() - started, cpu_seconds(postgres)
    if done != n:
        raise SystemExit(f"{done} of {n} events were checked")
    after.subtract(before)
    checking.copies.wait_made(3600)
    cpu_before = time.process_time()
    bare = forward_seconds(plain, checker.calls)
    after["forward"] = time.process_time() - cpu_before
    return Round(seconds, bare, checker.seconds, after)


def report(n: int, rounds: Sequence[Round]) -> None:
    worker, bare, inside = (sum(getattr(one, part) for one in rounds) for part in ("worker", "bare", "inside"))
    each = [one.bare / one.worker for one in rounds]
    print(
        f"  worker {n / worker:.1f}/s, bare forward {n / bare:.1f}/s, ratio {bare / worker:.2f} "
        f"(rounds {min(each):.2f} to {max(each):.2f}); in the worker the forward took {inside / worker:.0%} of the time"
    )
    cpu = sum((one.cpu for one in rounds), Counter[str]())
    told = ", ".join(f"{part} {1000 * seconds / n:.2f}" for part, seconds in cpu.most_common() if seconds > 0)
    share = cpu["forward"] / sum(cpu[part] for part in ("embed", "beside", "decoders", "postgres"))
    print(f"  CPU ms per event: {told}; the forward's share without copies {share:.2f}")


def draft_moves() -> None:
    """The demo checker's word on scenes of three sizes: exact decoding against decoding at a fraction."""
    checker, limits, rng = checkers.load("demo"), decode.Limits(25_000_000, 16_384), random.Random(7)
    assert checker.reference is not None
    for side in (320, 640, 1024):
        drawn = [scenes.sample(rng) for _ in range(SCENES)]
        files = [jpeg(scenes.render(scene, side), rng) for scene in drawn]
        texts = checker.embed_texts([captions.answer(scene, "identify") for scene in drawn])
        exact = _seen(checker, files, limits, None)
        own = (exact * texts).sum(1)
        us = reference.percentile(checker.reference, "identify", logits(checker, own))
        for margin in (3, 2, 1):
            rows = _seen(checker, files, limits, margin * checker.preprocess.size)
            moved = np.abs((rows * texts).sum(1) - own)
            there = reference.percentile(checker.reference, "identify", logits(checker, (rows * texts).sum(1)))
            is_used = " (used)" if margin == decode.DRAFT_MARGIN else ""
            print(
                f"{side} px, at least {margin} times the checker's size{is_used}: own claim's cosine moves by "
                f"{moved.mean():.5f} on average, {moved.max():.4f} at most; its percentile by "
                f"{np.abs(there - us).mean():.4f}, {np.abs(there - us).max():.3f} at most; "
                f"{int(((there < 0.05) != (us < 0.05)).sum())} of {SCENES} cross 0.05, "
                f"{int((there < 0.05).sum())} instead of {int((us < 0.05).sum())} are below it; "
                f"own against foreign claims, AUROC {_auroc(rows, texts):.4f} instead of {_auroc(exact, texts):.4f}"
            )


def _seen(checker: Any, files: Sequence[bytes], limits: decode.Limits, side: int | None) -> Any:
    """Embeddings of files decoded at no less than `side` px."""
    pixels = [preprocess.apply(decode.read(data, limits, side).image, checker.preprocess) for data in files]
    return checker.embed_images(np.stack(pixels))


def _auroc(rows: Any, texts: Any) -> float:
    found = intervals.auroc((rows * texts).sum(1).tolist(), (rows * np.roll(texts, 1, axis=0)).sum(1).tolist())
    assert found is not None
    return found.value


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
    parser.add_argument("--side", type=int, action="append", help="longer side in px; 0: as each scene was drawn")
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
            ratios = [
                measure(name, options.events or EVENTS[name], side or None, options.threads, postgres)
                for name in options.checker or EVENTS
                for side in options.side or SIDES
            ]
            engine.dispose()
        finally:
            postgres.stop()
    print(f"target: >= {TARGET}")
    return 0 if min(ratios) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
