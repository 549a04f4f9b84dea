"""Fetches pictures that events name by address: claim, commit, download with no transaction open, record.

Pool threads download and store bytes and touch no database; one thread claims and records. A fetcher that dies between
the two leaves its lease to run out, and the picture is fetched again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import orm

from cmerwatch import blobs, db, errors, events, fetches, image_urls, images, queue
from cmerwatch.image_urls import Got, Later, Lost
from cmerwatch.settings import Settings
from cmerwatch_worker.tasks import Away, where

log = logging.getLogger(__name__)
_Name = TypeVar("_Name", str, uuid.UUID)

POLL_SECONDS = 1.0  # also how late a hint that met a busy worker may be
FETCH_SECONDS = 15.0  # for all of one picture: every name, connection, redirect and byte of it
LEASE_SECONDS = 60.0  # well over FETCH_SECONDS, so that a live fetcher records before anyone else may fetch
STOP_SECONDS = 10.0  # how long a stop waits for a database that is away; what stays unrecorded is fetched again
STORE_SECONDS = 30.0  # until a picture is fetched again that the image store had no room for
FETCHERS = 32  # at most that many pictures of max_image_bytes are in memory
FOR_TRIED = 12  # of the fetchers: addresses that failed before leave some to new ones
PER_HOST = 20  # and one host that hangs leaves some to others
PER_PROJECT = 24  # and one project, however many hosts that hang it names, leaves some to the next
CLAIM = 4  # at once; host and project of each are known only then, so that these two may be passed by fewer than that
MOST_HELD = 256  # events that wait for a picture in the air, which other events named too


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture whose bytes are on durable storage."""

    picture: events.Picture


@dataclass(frozen=True, slots=True)
class Postponed:
    """The image store is full or away: no fault of the address."""


Landed = Stored | Lost | Later | Postponed


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of a fetch, for one of the events that wait for it."""

    claimed: fetches.Claimed
    token: uuid.UUID
    landed: Landed


@dataclass(slots=True)
class Flight:
    """A picture being fetched, for each event that named it since it took off."""

    host: str
    project_id: uuid.UUID
    is_again: bool
    passengers: list[tuple[fetches.Claimed, uuid.UUID]] = field(default_factory=list)


class Fetcher:
    """`run` is for a thread of its own."""

    def __init__(self, settings: Settings, store: blobs.BlobStore, lease_seconds: float = LEASE_SECONDS) -> None:
        self._settings, self._store, self._lease = settings, store, lease_seconds
        self._rules = image_urls.Rules(settings.picture_hosts, settings.allowed_targets)
        self._threads = ThreadPoolExecutor(FETCHERS, "fetch")
        self._flying: dict[Future[Landed], Flight] = {}
        self._by_address: dict[tuple[uuid.UUID, str], Future[Landed]] = {}
        self._stirred = threading.Event()

    def wake(self) -> None:
        """Look for new addresses at once. For any thread."""
        self._stirred.set()

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping` and nothing is in the air. A database that is away is tried again, after `stopping` for
        STOP_SECONDS."""
        give_up_at = math.inf
        while (not stopping.is_set() or self._flying) and time.monotonic() < give_up_at:
            self._stirred.clear()
            try:
                if self.tick(may_claim=not stopping.is_set()):
                    continue
            except Exception as error:  # a thread that ended here would end all fetching
                log.warning("fetching met an obstacle and goes on: %s", where(error))
                if stopping.is_set():
                    give_up_at = min(give_up_at, time.monotonic() + STOP_SECONDS)
                stopping.wait(POLL_SECONDS)
            self._stirred.wait(POLL_SECONDS)
        self.close()

    def tick(self, *, may_claim: bool = True) -> int:
        """Record what has landed, then take off again; returns how many addresses were claimed."""
        if landed := [future for future in self._flying if future.done()]:
            self._land(landed)
        return self._take_off() if may_claim else 0

    def close(self) -> None:
        """Waits for what is in the air, without recording it."""
        self._threads.shutdown()

    def _take_off(self) -> int:
        """New addresses first: signed ones do not live long."""
        began = 0
        while claimed := self._claim(FETCHERS - len(self._flying), again=False):
            began += claimed
        while claimed := self._claim(self._free_for_tried(), again=True):
            began += claimed
        return began

    def _free_for_tried(self) -> int:
        tried = sum(flight.is_again for flight in self._flying.values())
        return min(FETCHERS - len(self._flying), FOR_TRIED - tried)

    def _claim(self, free: int, *, again: bool) -> int:
        held = sum(len(flight.passengers) for flight in self._flying.values())
        if free <= 0 or held >= MOST_HELD:
            return 0
        busy = _at_least(PER_HOST, (flight.host for flight in self._flying.values()))
        full = _at_least(PER_PROJECT, (flight.project_id for flight in self._flying.values()))
        deadline = time.monotonic() + FETCH_SECONDS  # from before the claim: a stalled fetcher must not be late
        token = uuid.uuid4()
        with db.transaction() as session:
            claimed = fetches.claim(session, min(free, CLAIM), self._lease, token, again=again, busy=busy, full=full)
        for one in claimed:
            self._board(one, token, deadline, again)
        return len(claimed)

    def _board(self, one: fetches.Claimed, token: uuid.UUID, deadline: float, is_again: bool) -> None:
        """Onto the flight that is under way to this address, else onto a new one."""
        address = (one.project_id, one.url)
        future = self._by_address.get(address)
        if future is None:
            future = self._threads.submit(self._fetch, one, deadline)
            self._by_address[address] = future
            self._flying[future] = Flight(one.host, one.project_id, is_again)
            future.add_done_callback(lambda _: self.wake())
        self._flying[future].passengers.append((one, token))

    def _fetch(self, one: fetches.Claimed, deadline: float) -> Landed:
        """One try. Whatever goes wrong is an outcome: an address must never end its fetcher."""
        try:
            return self._download(one, deadline)
        except errors.Unavailable as error:
            log.error("a fetched picture could not be stored and will be fetched again: %s", where(error))
            return Postponed()
        except Exception as error:
            log.error("a picture could not be fetched: %s", where(error))
            return Later(image_urls.UNREACHABLE)

    def _download(self, one: fetches.Claimed, deadline: float) -> Landed:
        if one.is_spent:
            return Lost(image_urls.UNREACHABLE)
        limits = images.Limits(self._settings.max_image_side, self._settings.max_image_pixels)
        found = image_urls.download(one.url, self._rules, self._settings.max_image_bytes, deadline)
        if not isinstance(found, Got):
            return found
        try:
            picture = events.look(found.data, None, limits)
        except errors.ImageRefused as error:
            return Lost(image_urls.TOO_LARGE if "limit" in error.details else image_urls.NOT_AN_IMAGE)
        self._store.put(one.project_id, picture.sha256, picture.data)
        return Stored(picture)

    def _land(self, futures: Sequence[Future[Landed]]) -> None:
        """Record what came. After a failure each event is recorded on its own, so that one harms no other."""
        came = [Arrival(*who, future.result()) for future in futures for who in self._flying[future].passengers]
        try:
            _record(came)
        except Away:
            raise  # it is recorded once the database is back
        except Exception as error:
            log.warning("%d fetches could not be recorded at once: %s", len(came), where(error))
            for one in came:
                _record_alone(one)
        for future in futures:
            for who, _ in self._flying.pop(future).passengers:
                self._by_address.pop((who.project_id, who.url), None)


def _at_least(n: int, found: Iterable[_Name]) -> list[_Name]:
    return [one for one, count in Counter(found).items() if count >= n]


def _record_alone(one: Arrival) -> None:
    try:
        _record([one])
    except Away:
        raise
    except Exception as error:
        log.error("a fetch could not be recorded, so it will be made again: %s", where(error))


def _record(came: Sequence[Arrival]) -> None:
    """In one transaction; repeated after a lost connection, it changes nothing that is recorded already."""
    with db.transaction() as session:
        _note(session, came)
        for one in sorted(came, key=lambda one: (one.claimed.event_id, one.claimed.position)):
            if not _noted(session, one):
                log.info("a picture was fetched that nobody waits for any more, or under a lease that ran out")
        db.after_commit(session, queue.hint, "check")


def _note(session: orm.Session, came: Sequence[Arrival]) -> None:
    """Pictures before events, and both in order: as ingest takes them, so that nobody deadlocks."""
    found: dict[uuid.UUID, dict[str, events.Picture]] = {}
    for one in came:
        if isinstance(one.landed, Stored):
            found.setdefault(one.claimed.project_id, {})[one.landed.picture.sha256] = one.landed.picture
    for project_id, pictures in sorted(found.items()):
        events.note_images(session, project_id, [pictures[sha256] for sha256 in sorted(pictures)])


def _noted(session: orm.Session, one: Arrival) -> bool:
    match one.landed:
        case Stored(picture):
            return fetches.fetched(session, one.claimed, one.token, picture.sha256)
        case Lost(reason):
            return fetches.failed(session, one.claimed, one.token, reason)
        case Later(reason, seconds):
            return fetches.again(session, one.claimed, one.token, reason, seconds)
        case Postponed():
            return fetches.postpone(session, one.claimed, one.token, STORE_SECONDS)
