"""Rows of files through the very Runtime that checks traffic: the same decoding, claims, embeddings and scores."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cmerwatch import errors, images
from cmerwatch.settings import Settings
from cmerwatch.shapes import CheckResult, Claimed, Slice
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.runtime import Prepared, Runtime, open_pool

BATCH = 64  # rows; their picture files are held in memory while two batches are under way
_PROJECT = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One output with the files of its pictures."""

    images: tuple[Path, ...]
    output: str
    prompt: str = ""
    prompt_type: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the Runtime made of a sample, or `refused`: why it could never have become an event.

    `images`: sha256 of each picture's bytes.
    """

    images: tuple[str, ...]
    result: CheckResult | None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    looked: list[Looked | uuid.UUID]  # by sample; an id where an event was made
    prepared: Prepared


class Files:
    """The picture files of the batches under way, as the store a Runtime asks."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def put(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        self._held[sha256] = data

    def get(self, project_id: uuid.UUID, sha256: str) -> bytes:
        if sha256 not in self._held:
            raise errors.NotFound(f"No image {sha256} is held.")
        return self._held[sha256]

    def exists(self, project_id: uuid.UUID, sha256: str) -> bool:
        return sha256 in self._held

    def put_display(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        """Nobody looks."""

    def get_display(self, project_id: uuid.UUID, sha256: str) -> bytes | None:
        return None

    def keep_only(self, wanted: set[str]) -> None:
        self._held = {sha256: data for sha256, data in self._held.items() if sha256 in wanted}


class Looking:
    """A checker with its decode processes; `look` may be called again and again, `close` ends it.

    `calibrating`: without the checker's reference, so that results carry samples for a new one.
    """

    def __init__(self, checker: Checker, settings: Settings, *, calibrating: bool = False) -> None:
        self.checker = checker
        self._settings = settings
        self._files = Files()
        self._last: set[str] = set()
        self._runtime = Runtime(checker, self._files, open_pool(settings, checker))
        if calibrating:
            self._runtime.reference = None
        self._ahead = ThreadPoolExecutor(1, "prepare")

    def __enter__(self) -> Looking:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self._ahead.shutdown(wait=True, cancel_futures=True)
        self._runtime.close()

    def look(self, samples: Sequence[Sample]) -> Iterator[Looked]:
        """One answer per sample, in order; the next batch is decoded while one is embedded."""
        waiting = None
        for start in range(0, len(samples), BATCH):
            ready, waiting = waiting, self._ahead.submit(self._prepare, samples[start : start + BATCH])
            if ready is not None:
                yield from self._finish(ready.result())
        if waiting is not None:
            yield from self._finish(waiting.result())

    def _prepare(self, samples: Sequence[Sample]) -> _Batch:
        looked: list[Looked | uuid.UUID] = []
        events: list[Claimed] = []
        for sample in samples:
            try:
                events.append(self._event(sample))
                looked.append(events[-1].event_id)
            except errors.Invalid as error:
                looked.append(Looked((), None, error.message))
            except errors.TooLarge as error:
                looked.append(Looked((), None, error.message))
        prepared = self._runtime.prepare(events)
        # The batch before this one may still be tried again.
        shown = {sha256 for event in events for sha256 in event.images}
        self._files.keep_only(shown | self._last)
        self._last = shown
        return _Batch(looked, prepared)

    def _event(self, sample: Sample) -> Claimed:
        """The event that this sample would be. Raises what the server answers to one that it does not take."""
        if len(sample.output) > self._settings.max_text_chars:
            raise errors.TooLarge(f"the output has more than {self._settings.max_text_chars} characters")
        shown = tuple(self._stored(path) for path in sample.images)
        return Claimed(
            event_id=uuid.uuid4(), project_id=_PROJECT, slice=Slice(prompt_type=sample.prompt_type),
            bucket=dt.datetime.now(dt.UTC), attempts=1, is_late=False, confidence=None,
            images=shown, prompt=sample.prompt, output=sample.output,
        )  # fmt: skip

    def _stored(self, path: Path) -> str:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise errors.ImageRefused(f"{path} cannot be read ({error.strerror})") from error
        if len(data) > self._settings.max_image_bytes:
            raise errors.TooLarge(f"{path} has more than {self._settings.max_image_bytes} bytes")
        limits = images.Limits(self._settings.max_image_side, self._settings.max_image_pixels)
        try:
            images.inspect(data, limits)
        except errors.ImageRefused as error:
            raise errors.ImageRefused(f"{path}: {error.message}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        self._files.put(_PROJECT, sha256, data)
        return sha256

    def _finish(self, batch: _Batch) -> Iterator[Looked]:
        results = {result.event.event_id: result for result in self._checked(batch.prepared)}
        for looked in batch.looked:
            yield looked if isinstance(looked, Looked) else _looked(results[looked])

    def _checked(self, prepared: Prepared) -> list[CheckResult]:
        """Every event with a result. What fails is tried once more alone, as the worker does, then quarantined."""
        checked = self._runtime.check(prepared)
        results = list(checked.results)
        for event in prepared.events:
            if event.event_id in checked.failed:
                again = self._runtime.check(self._runtime.prepare([event]))
                why = tuple(again.failed.values())
                results += again.results or [CheckResult(event, "quarantined", reasons=why)]
        return results


def _looked(result: CheckResult) -> Looked:
    return Looked(result.event.images, result)
