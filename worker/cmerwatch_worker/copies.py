"""The display copies people look at: made after an image's check, beside the checking, never in its way."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable

import sqlalchemy as sa

from cmerwatch import blobs, db, errors
from cmerwatch.settings import Settings
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.decode import Limits
from cmerwatch_worker.decode_pool import Copied, Job, Pool

log = logging.getLogger(__name__)

Wanted = tuple[uuid.UUID, str]  # project and sha256

MAX_WAITING = 100_000  # at some 200 bytes each; more are found again among the events
REMEMBERED = 16_384
PAGE = 256
RETRY_SECONDS = 30.0

_EVENTS = sa.text("SELECT id, project_id, images FROM events WHERE id > :after ORDER BY id LIMIT :page")


class Copies:
    """One thread and one decode process of low priority. What is asked for first in line is made first.

    Nothing is lost with this process: `look_back` goes through the events since some id and makes what is missing.
    """

    def __init__(self, store: blobs.BlobStore, pool: Pool) -> None:
        self._store, self._pool = store, pool
        self._waiting: deque[Wanted] = deque()
        self._behind: uuid.UUID | None = None  # events after this one may have pictures without a copy
        self._made: OrderedDict[Wanted, None] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._is_busy = False
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._thread.start()

    def want(self, event_id: uuid.UUID, pictures: Iterable[Wanted], *, first: bool = False) -> None:
        """`first`: somebody is about to look at it."""
        with self._changed:
            for wanted in pictures:
                if wanted in self._made:
                    continue
                if first:
                    self._waiting.appendleft(wanted)
                elif len(self._waiting) < MAX_WAITING:
                    self._waiting.append(wanted)
                else:
                    before = uuid.UUID(int=event_id.int - 1)
                    self._behind = before if self._behind is None else min(self._behind, before)
            self._changed.notify_all()

    def look_back(self, since: uuid.UUID) -> None:
        """Make what is missing of the events after this id, when nothing else waits."""
        with self._changed:
            self._behind = since if self._behind is None else min(self._behind, since)
            self._changed.notify_all()

    def wait_made(self, seconds: float) -> bool:
        """Whether nothing is left to make; waits that long for it."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, seconds)

    def close(self) -> None:
        """What still waits is made by whoever starts next."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.close()

    def _is_idle(self) -> bool:
        return not self._waiting and self._behind is None and not self._is_busy

    def _run(self) -> None:
        while (todo := self._next()) is not None:
            try:
                if isinstance(todo, uuid.UUID):
                    self._find_more(todo)
                else:
                    self._make(todo)
            except Exception as error:
                # The store or the database is away, or the disk is full: not a picture's fault, and no reason to spin.
                log.warning("display copies have to wait: %s", type(error).__name__)
                self._put_back(todo)

    def _next(self) -> Wanted | uuid.UUID | None:
        """What to do now, waiting for it; None at the end."""
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing or not self._is_idle())
            if self._closing:
                return None
            self._is_busy = True
            if self._waiting:
                return self._waiting.popleft()
            behind, self._behind = self._behind, None
            return behind

    def _put_back(self, todo: Wanted | uuid.UUID) -> None:
        if isinstance(todo, uuid.UUID):
            self.look_back(todo)
        else:
            with self._changed:
                self._waiting.append(todo)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _find_more(self, after: uuid.UUID) -> None:
        with db.SessionLocal() as session:
            rows = session.execute(_EVENTS, {"after": after, "page": PAGE}).all()
        for row in rows:
            self.want(row.id, [(row.project_id, sha256) for sha256 in row.images])
        if len(rows) == PAGE:
            self.look_back(rows[-1].id)

    def _make(self, wanted: Wanted) -> None:
        """Raises what the store raises, except for an image that is gone."""
        project_id, sha256 = wanted
        if wanted in self._made:
            return
        if self._store.get_display(project_id, sha256) is None:
            try:
                data = self._store.get(project_id, sha256)
            except errors.NotFound:
                return
            (outcome,) = self._pool.decode([Job(data, wants_display=True)])
            if not isinstance(outcome, Copied):
                return  # its check says what is wrong with it
            self._store.put_display(project_id, sha256, outcome.display)
        with self._changed:
            self._made[wanted] = None
            while len(self._made) > REMEMBERED:
                self._made.popitem(last=False)


def open_copies(settings: Settings, checker: Checker, store: blobs.BlobStore) -> Copies:
    limits = Limits(settings.max_image_pixels, settings.max_image_side)
    return Copies(store, Pool(checker.preprocess, limits, 1, background=True))
