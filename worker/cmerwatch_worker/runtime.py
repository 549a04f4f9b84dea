"""What checks a batch of claimed events: images from the store, decoded, embedded, compared with their claims."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from cmerwatch import blobs, errors
from cmerwatch.settings import Settings
from cmerwatch.shapes import CheckResult, Claimed
from cmerwatch_worker import calibrating, claims, contrast, scoring, statements
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.decode import Limits
from cmerwatch_worker.decode_pool import Crashed, Decoded, Job, Outcome, Pool, Refused
from cmerwatch_worker.scoring import Array

log = logging.getLogger(__name__)
T = TypeVar("T")

IMAGE_CHUNK = 64  # images or texts per call of the checker: enough to fill it, little enough to show progress
TEXT_CHUNK = 64
REMEMBERED = 4096  # embeddings of images seen lately, and as many of texts, at 512 numbers each 8 MB
EXIT_STICKY = 75  # EX_TEMPFAIL: after some CUDA errors no call in this process works again


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the checker sees it: its embedding, or why there is none."""

    embedding: Array | None = None
    notes: tuple[str, ...] = ()
    refused: str | None = None
    model_error: str | None = None
    failed: str | None = None  # not final: the event is tried again
    away: str | None = None  # nobody's fault: the event waits until the store is back


@dataclass(frozen=True, slots=True)
class Away:
    """The store could not be asked for this image."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """An output taken apart: its claims, and what its prompt takes for granted."""

    split: claims.Split
    presupposed: str | None
    edits: list[list[list[str]]]  # of each claim, word by word; [] where contrast sets are off

    @property
    def texts(self) -> list[str]:
        said = [claim.said for claim in self.split.claims]
        return said if self.presupposed is None else [*said, self.presupposed]

    @property
    def edited(self) -> list[str]:
        return [text for claim in self.edits for slot in claim for text in slot]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch whose images are decoded and whose outputs, in the same order as the events, are taken apart.

    By sha256: pictures remembered from before, and what decoding said.
    """

    events: list[Claimed]
    known: dict[str, Picture]
    outcomes: dict[str, Outcome | Away]
    readings: list[Reading]


@dataclass(slots=True)
class Checked:
    """Results to complete, and events to give back with the reason: those that failed, and those that must wait."""

    results: list[CheckResult] = field(default_factory=list)
    failed: dict[uuid.UUID, str] = field(default_factory=dict)
    postponed: dict[uuid.UUID, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scorable:
    """An event with what is to be compared, its texts and its pictures."""

    event: Claimed
    reading: Reading
    seen: list[Picture]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch the checker is done with: what is settled already, what is to be scored, and the rows of every text."""

    checked: Checked
    scorable: list[Scorable]
    rows: dict[str, Array | Exception]


class Memory(Generic[T]):
    """What was made of the last pictures, by sha256, or texts. Their bytes are the same in every project, and so is
    what a checker sees.

    Read by the thread that prepares the next batch while this one is embedded.
    """

    def __init__(self, size: int = REMEMBERED) -> None:
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._size = size
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, made: T) -> None:
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)


class Runtime:
    """A checker with its decode pool and image store."""

    def __init__(
        self,
        checker: Checker,
        store: blobs.BlobStore,
        pool: Pool,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.checker, self.store, self.pool, self.progress = checker, store, pool, progress
        self.reference = checker.reference  # None while calibrating; replaced as a whole when it freezes
        self._strangers = calibrating.Strangers()
        self._memory = Memory[Picture]()
        self._texts = Memory[Array]()

    def close(self) -> None:
        self.pool.close()

    def prepare(self, events: Sequence[Claimed]) -> Prepared:
        """Load and decode every image of the batch that is not remembered, and take every output apart."""
        known: dict[str, Picture] = {}
        outcomes: dict[str, Outcome | Away] = {}
        new: dict[str, list[uuid.UUID]] = {}
        for sha256, projects in _projects_by_image(events).items():
            if (picture := self._memory.get(sha256)) is not None:
                known[sha256] = picture
            else:
                new[sha256] = projects
        loaded: list[str] = []
        # The pool takes jobs as they come: the first images are decoded while the last are loaded.
        decoded = self.pool.decode(self._jobs(new, loaded, outcomes), self.progress)
        outcomes.update(zip(loaded, decoded, strict=True))
        if away := [outcome for outcome in outcomes.values() if isinstance(outcome, Away)]:
            log.error("%d images wait for the store: %s", len(away), away[0].reason)
        return Prepared(list(events), known, outcomes, [self._read(event) for event in events])

    def _jobs(
        self, new: Mapping[str, Sequence[uuid.UUID]], loaded: list[str], outcomes: dict[str, Outcome | Away]
    ) -> Iterator[Job]:
        """A job for each image the store has, named in `loaded`; the others have their outcome already."""
        for sha256, projects in new.items():
            data = self._load(sha256, projects)
            if isinstance(data, bytes):
                loaded.append(sha256)
                yield Job(data)
            else:
                outcomes[sha256] = data

    def _load(self, sha256: str, projects: Iterable[uuid.UUID]) -> bytes | Crashed | Away:
        """An image that is gone is its event's trouble, a store that is away is nobody's."""
        away = None
        for project in projects:
            try:
                return self.store.get(project, sha256)
            except errors.NotFound:
                log.error("image %s of project %s is not in the store", sha256, project)
            except errors.Unavailable as error:
                away = Away(error.message)
        return away or Crashed(f"image_missing: {sha256} is not in the store")

    def check(self, prepared: Prepared) -> Checked:
        """A result or a reason to try again for every event of the batch."""
        return self.score(self.embed(prepared))

    def embed(self, prepared: Prepared) -> Embedded:
        """All of a check that needs the checker: another thread scores, while the next batch is embedded here."""
        pictures = self._pictures(prepared)
        checked = Checked()
        scorable: list[Scorable] = []
        for event, reading in zip(prepared.events, prepared.readings, strict=True):
            seen = [pictures[sha256] for sha256 in event.images]
            if away := next((p.away for p in seen if p.away), None):
                checked.postponed[event.event_id] = away
            elif why := next((p.failed for p in seen if p.failed), None):
                checked.failed[event.event_id] = why
            elif (settled := _settled_by_images(event, seen)) is not None:
                checked.results.append(settled)
            elif (reason := reading.split.reason) is not None:
                checked.results.append(CheckResult(event, "unscorable", reasons=(reason,)))
            else:
                scorable.append(Scorable(event, reading, seen))
        texts = dict.fromkeys(text for one in scorable for text in (*one.reading.texts, *one.reading.edited))
        return Embedded(checked, scorable, self._embed_texts(list(texts)))

    def _embed_texts(self, texts: Sequence[str]) -> dict[str, Array | Exception]:
        """The row of each; templates say the same again and again."""
        known = {text: self._texts.get(text) for text in texts}
        fresh = [text for text, row in known.items() if row is None]
        rows = dict(
            zip(fresh, scoring.embed_all(self.checker.embed_texts, fresh, TEXT_CHUNK, self.progress), strict=True)
        )
        for text, row in rows.items():
            if isinstance(row, np.ndarray):
                self._texts.put(text, row)
        return {text: rows[text] if row is None else row for text, row in known.items()}

    def score(self, embedded: Embedded) -> Checked:
        """Compare and judge. One thread does this, in the order of the batches."""
        checked, frozen = embedded.checked, self.reference  # one for the whole batch
        measured: list[CheckResult] = []
        for one in embedded.scorable:
            found = [embedded.rows[text] for text in (*one.reading.texts, *one.reading.edited)]
            error = next((row for row in found if isinstance(row, Exception)), None)
            if error is not None:
                self._refuse_text(one.event, error, checked)
            else:
                stacked = np.stack([row for row in found if isinstance(row, np.ndarray)])
                measured.append(self._measured(one, stacked, is_calibrating=frozen is None))
        checked.results += measured if frozen is None else scoring.judge_all(self.checker, frozen, measured)
        return checked

    def _pictures(self, prepared: Prepared) -> dict[str, Picture]:
        """Every image of the batch as a Picture, embedding what is new in few calls."""
        found = dict(prepared.known)
        fresh: dict[str, Decoded] = {}
        for sha256, outcome in prepared.outcomes.items():
            # Asked again: the batch before this one was embedded while this one was decoded.
            if (seen := self._memory.get(sha256)) is not None:
                found[sha256] = seen
            elif isinstance(outcome, Decoded):
                fresh[sha256] = outcome
            elif isinstance(outcome, Refused):
                found[sha256] = Picture(refused=outcome.reason)
            elif isinstance(outcome, Away):
                found[sha256] = Picture(away=outcome.reason)
            elif isinstance(outcome, Crashed):
                found[sha256] = Picture(failed=outcome.reason)
        rows = scoring.embed_all(self._embed_images, list(fresh.values()), IMAGE_CHUNK, self.progress)
        for (sha256, decoded), row in zip(fresh.items(), rows, strict=True):
            found[sha256] = _picture(decoded, row)
            if isinstance(row, np.ndarray):
                self._memory.put(sha256, found[sha256])
        return found

    def _embed_images(self, decoded: Sequence[Decoded]) -> Array:
        return self.checker.embed_images(np.stack([one.pixels for one in decoded]))

    def _read(self, event: Claimed) -> Reading:
        checker = self.checker
        split = claims.split(
            event.output, checker.context_length, checker.count_tokens, checker.can_read, prompt=event.prompt
        )
        return Reading(split, self._presupposed(event.prompt), self._edits(split.claims))

    def _presupposed(self, prompt: str) -> str | None:
        text = statements.presupposed(prompt)
        fits = text is not None and self.checker.count_tokens(text) <= self.checker.context_length
        return text if fits and self.checker.can_read(text or "") else None

    def _edits(self, pieces: Sequence[claims.Claim]) -> list[list[list[str]]]:
        checker = self.checker
        return [checker.edits(claim) for claim in pieces] if isinstance(checker, contrast.Contrasting) else []

    def _measured(self, one: Scorable, rows: Array, *, is_calibrating: bool) -> CheckResult:
        """`rows`: the embeddings of the texts, then of the edited ones."""
        images = np.stack([picture.embedding for picture in one.seen if picture.embedding is not None])
        notes = tuple(dict.fromkeys(note for picture in one.seen for note in picture.notes))
        split, pieces = one.reading.split, one.reading.split.claims
        n = len(one.reading.texts)
        texts, slots = rows[:n], _slots(one.reading.edits, rows[n:])
        result = scoring.measure(one.event, pieces, images, texts, (*notes, *_left_out(split)))
        if result.outcome != "scored":
            return result
        if isinstance(self.checker, contrast.Contrasting):
            result = scoring.with_contrast(self.checker, result, images, texts, slots)
        if not is_calibrating:
            return result
        # A blank picture says nothing of how well a text fits its own, nor does a text that denies.
        stated = np.array([not piece.negated for piece in pieces])
        if "blank_image" in notes or not stated.any():
            return result
        told = texts[: len(pieces)][stated]
        kept = [slots[i] for i in np.flatnonzero(stated)] if slots else []
        return replace(result, sample=self._strangers.sample(self.checker, one.event, images, told, kept))

    def _refuse_text(self, event: Claimed, error: Exception, checked: Checked) -> None:
        if _may_pass(error):
            checked.failed[event.event_id] = name_of(error)
        else:
            checked.results.append(CheckResult(event, "model_error", reasons=(name_of(error),)))


def _slots(edits: Sequence[Sequence[Sequence[str]]], rows: Array) -> list[list[Array]]:
    """The rows of all edited texts in the shape of `edits`: per claim, per word."""
    at, found = 0, []
    for claim in edits:
        ends = [at := at + len(slot) for slot in claim]
        found.append([rows[end - len(slot) : end] for end, slot in zip(ends, claim, strict=True)])
    return found


def _left_out(split: claims.Split) -> tuple[str, ...]:
    """Never silently: the cap's leftovers are counted beside the check."""
    return (f"{claims.NOT_CHECKED}:{split.left_out}",) if split.left_out else ()


def _projects_by_image(events: Sequence[Claimed]) -> dict[str, list[uuid.UUID]]:
    found: dict[str, dict[uuid.UUID, None]] = {}
    for event in events:
        for sha256 in event.images:
            found.setdefault(sha256, {})[event.project_id] = None
    return {sha256: list(projects) for sha256, projects in found.items()}


def _settled_by_images(event: Claimed, seen: Sequence[Picture]) -> CheckResult | None:
    """An event that names an image nobody can look at is not scored by its others: the claim may be about that one."""
    if event.refused:
        return CheckResult(event, "invalid_image", reasons=event.refused)
    if not seen:
        return CheckResult(event, "invalid_image", reasons=("no_image",))
    refused = tuple(dict.fromkeys(p.refused for p in seen if p.refused))
    if refused:
        return CheckResult(event, "invalid_image", reasons=refused)
    broken = tuple(dict.fromkeys(p.model_error for p in seen if p.model_error))
    return CheckResult(event, "model_error", reasons=broken) if broken else None


def _picture(outcome: Decoded, row: Array | Exception) -> Picture:
    if not isinstance(row, Exception):
        return Picture(embedding=row, notes=outcome.notes)
    return Picture(failed=name_of(row)) if _may_pass(row) else Picture(model_error=name_of(row))


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed. Errors that poison the process end it: leases expire, a fresh one goes on."""
    if "CUDA error" in str(error):
        log.critical("the device is lost to this process: %s", type(error).__name__)
        os._exit(EXIT_STICKY)
    return scoring.is_out_of_memory(error)


def name_of(error: Exception) -> str:
    """What may be stored of an exception: never its message, which may quote a text or a file."""
    return f"checker_error:{type(error).__name__}"


def open_pool(settings: Settings, checker: Checker) -> Pool:
    limits = Limits(settings.max_image_pixels, settings.max_image_side)
    # One core is the checker's; beyond 16 the threads that feed the decoders are in each other's way.
    processes = settings.decode_processes or min(max(2, (os.cpu_count() or 1) - 1), 16)
    return Pool(checker.preprocess, limits, processes)
