"""The order of an event's checking, and the one place that knows it:

claim, commit, decode, embed, score; then in one transaction complete, count and route; commit.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import checks, db, errors, judgements, policies, references, reviews, rollups, withheld
from cmerwatch.settings import Settings
from cmerwatch.shapes import CheckResult, Claimed, Decided, Decision
from cmerwatch_worker import copies, reference
from cmerwatch_worker.calibrating import Calibration
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.leases import Leases
from cmerwatch_worker.runtime import Checked, Embedded, Prepared, Runtime
from cmerwatch_worker.watchdog import Progress

log = logging.getLogger(__name__)

BUDGET_SECONDS = 20.0  # the solo pool does the broker's housekeeping only between tasks
# Nothing hides the decoding of a drain's first batch, so it is small; each after it is twice as large.
FIRST_BATCH = 32
COMPLETE_TRIES = 3
POSTPONE_SECONDS = 30.0  # until images are asked for again of a store that is away

Away = (sa.exc.OperationalError, sa.exc.InterfaceError)
OVER_LIMITS = "54"  # SQLSTATE class: values too large for a key; the driver calls that operational too


class OverLimits(Exception):
    """The database is there and cannot hold what one of these events needs: waiting for it would never end."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events held under one lease token, with their decoded images."""

    token: uuid.UUID
    prepared: Prepared

    @property
    def ids(self) -> list[uuid.UUID]:
        return [event.event_id for event in self.prepared.events]

    @property
    def is_retry(self) -> bool:
        return any(event.attempts > 1 for event in self.prepared.events)


class Checking:
    """The check stage of one worker process. One drain runs at a time, whoever asked for it."""

    def __init__(self, runtime: Runtime, settings: Settings, progress: Progress) -> None:
        self._runtime, self._settings, self._progress = runtime, settings, progress
        self._draining = threading.Lock()
        self._leases = Leases(settings.lease_seconds)
        self._ahead = ThreadPoolExecutor(1, "prepare")
        self._behind = ThreadPoolExecutor(1, "complete")
        self.copies = copies.open_copies(settings, runtime.checker, runtime.store)
        self._stopping = threading.Event()
        self.on_hint: Callable[[], None] = lambda: None  # what else a hint may be about: pictures to fetch
        self.checker_id = register(runtime.checker)
        self._calibration = Calibration(runtime.checker, self.checker_id, settings)

    def drain(self, budget_seconds: float = BUDGET_SECONDS, *, wait: bool = True) -> int:
        """Check until nothing is ready or the budget is spent; returns how many events were completed.

        With `wait=False` a drain already under way is left to it, and 0 is the answer.
        """
        if not self._draining.acquire(blocking=wait):
            return 0
        try:
            self._progress.touch()
            return self._drain(time.monotonic() + budget_seconds)
        finally:
            self._progress.rest()
            self._draining.release()

    def poll(self) -> int:
        """Drain if anything is ready; what finds work when hints are lost."""
        with db.SessionLocal() as session:
            is_ready = checks.has_ready(session)
        return self.drain(wait=False) if is_ready else 0

    def calibrate(self) -> int:
        """Bring a reference into force as soon as there is one, and decide some of what waited for it."""
        done = self._calibration.step(self._stopping.is_set)
        self._runtime.reference = self._calibration.reference
        return done

    def stop(self) -> None:
        """Let the batch in hand finish and begin no other. Safe in a signal handler."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def wait_stopping(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def close(self) -> None:
        """After stop(): waits for the drain under way, then ends threads and decode processes."""
        self._stopping.set()
        with self._draining:
            self._ahead.shutdown()
            self._behind.shutdown()
            self._leases.close()
            self.copies.close()
            self._runtime.close()

    def _drain(self, deadline: float) -> int:
        """While one batch is embedded the next is claimed and decoded, and the one before is completed."""
        done = 0
        behind: deque[Future[int]] = deque()
        size = FIRST_BATCH
        batch = self._claim(size)
        try:
            while batch is not None:
                size = min(2 * size, self._settings.batch_size)
                ahead = self._claim_ahead(batch, size, deadline)
                try:
                    behind.append(self._finish(batch))
                    done += _settle(behind, 1)
                except BaseException:
                    self._abandon(ahead)
                    raise
                batch = self._taken(ahead)
                if batch is None:
                    # Retries are only ever claimed here, with nothing else in hand.
                    done += _settle(behind, 0)
                    size = FIRST_BATCH
                    batch = self._claim(size) if self._goes_on(deadline) else None
        finally:
            wait_for(behind)
        return done

    def _goes_on(self, deadline: float) -> bool:
        return not self._stopping.is_set() and time.monotonic() < deadline

    def _claim_ahead(self, batch: Batch, size: int, deadline: float) -> Future[Batch | None] | None:
        """A retried batch is checked with nothing else in hand: what kills this process is then surely in it."""
        if batch.is_retry or not self._goes_on(deadline):
            return None
        return self._ahead.submit(self._claim, size, fresh_only=True)

    def _abandon(self, ahead: Future[Batch | None] | None) -> None:
        """Give back what was prepared meanwhile; its own error, if any, is of no interest now."""
        if ahead is not None and ahead.exception() is None and (batch := ahead.result()) is not None:
            self._give_back(batch.token)

    def _taken(self, ahead: Future[Batch | None] | None) -> Batch | None:
        """The batch prepared meanwhile, given back if we were asked to stop."""
        batch = ahead.result() if ahead is not None else None
        if batch is not None and self._stopping.is_set():
            self._give_back(batch.token)
            return None
        return batch

    def _claim(self, size: int, *, fresh_only: bool = False) -> Batch | None:
        """Claim up to `size` events, commit, load and decode. `fresh_only` gives a batch of retries back untouched."""
        token, events = uuid.uuid4(), list[Claimed]()
        self._leases.hold(token)
        try:
            with db.transaction() as session:
                n = min(size, self._settings.batch_size)
                events = checks.claim(session, n, self._settings.lease_seconds, token)
            self._progress.touch()
            if not events:
                self._leases.drop(token)
                return None
            if fresh_only and events[0].attempts > 1:
                self._give_back(token)
                return None
            return Batch(token, self._runtime.prepare(events))
        except Away:
            self._give_back(token)
            raise
        except Exception as error:
            self._leases.drop(token)
            self._fail(token, [event.event_id for event in events], error)
            return None

    def _finish(self, batch: Batch) -> Future[int]:
        """Embed; another thread scores and completes, so that the checker waits for neither Python nor the database."""
        embedded: Embedded | Exception
        try:
            embedded = self._runtime.embed(batch.prepared)
        except Exception as error:
            embedded = error
        self._progress.touch()
        return self._behind.submit(self._end, batch, embedded)

    def _end(self, batch: Batch, embedded: Embedded | Exception) -> int:
        """Score and complete, or give back. Whatever happens the lease is not renewed after this."""
        try:
            if isinstance(embedded, Exception):
                raise embedded
            return self._complete(batch.token, self._runtime.score(embedded))
        except Away:
            self._give_back(batch.token)
            raise
        except Exception as error:
            self._fail(batch.token, batch.ids, error)
            return 0
        finally:
            self._leases.drop(batch.token)
            self._progress.touch()

    def _fail(self, token: uuid.UUID, event_ids: Sequence[uuid.UUID], error: Exception) -> None:
        """A fault of ours that one of these events brings out: the attempt counts, so it ends up alone."""
        log.error("a batch of %d failed: %s", len(event_ids), where(error))
        with db.transaction() as session:
            checks.fail(session, token, event_ids, where(error))

    def _complete(self, token: uuid.UUID, checked: Checked) -> int:
        """One transaction. Repeated after a deadlock or a lost connection: the guard makes a repeat harmless."""
        for attempt in range(1, COMPLETE_TRIES + 1):
            try:
                with db.transaction() as session:
                    decided = complete(
                        session,
                        token,
                        self.checker_id,
                        checked.results,
                        self._settings.audit_rate,
                        self._runtime.checker.logit_bias is not None,
                    )
                    if self._settings.judge_url:
                        judgements.route(session, decided, self._settings.judge_below)
                    for event_id, why in checked.failed.items():
                        checks.fail(session, token, [event_id], why)
                    for event_id, why in checked.postponed.items():
                        checks.postpone(session, token, [event_id], POSTPONE_SECONDS, why)
                self._want_copies(decided)
                return len(decided)
            except Away as error:
                if (getattr(error.orig, "sqlstate", None) or "").startswith(OVER_LIMITS):
                    raise OverLimits from None
                if attempt == COMPLETE_TRIES:
                    raise
        raise AssertionError("unreachable")

    def _want_copies(self, decided: Sequence[Decided]) -> None:
        """What was flagged is looked at first."""
        for one in decided:
            event = one.result.event
            if one.result.outcome != "invalid_image":
                pictures = [(event.project_id, sha256) for sha256 in event.images]
                self.copies.want(event.event_id, pictures, first=one.decision.flagged)

    def _give_back(self, token: uuid.UUID) -> None:
        self._leases.drop(token)
        try:
            with db.transaction() as session:
                checks.release(session, token)
        except Exception as error:
            log.warning("a lease was not given back and will run out: %s", type(error).__name__)


def _settle(behind: deque[Future[int]], keep: int) -> int:
    """Wait until no more than `keep` completions are under way; how many events the others completed."""
    done = 0
    while len(behind) > keep:
        done += behind.popleft().result()
    return done


def complete(
    session: orm.Session,
    token: uuid.UUID,
    checker_id: int,
    results: Sequence[CheckResult],
    audit_rate: float,
    has_bias: bool = False,
) -> list[Decided]:
    """Decide, complete, count, route: all of it or nothing. The caller commits. `has_bias`: the checker's logit has."""
    in_force = policies_of(session, {result.event.project_id for result in results})
    pairs: list[tuple[CheckResult, Decision]] = [
        (result, in_force[result.event.project_id].decide(result, result.score is not None, has_bias))
        for result in results
    ]
    decided = checks.complete(session, token, checker_id, pairs)
    rollups.add(session, decided)
    withheld.keep(session, decided)
    reviews.route(session, decided, audit_rate)
    references.collect(session, checker_id, [one.result.sample for one in decided if one.result.sample is not None])
    return decided


def policies_of(session: orm.Session, project_ids: set[uuid.UUID]) -> dict[uuid.UUID, policies.Policy]:
    found = policies.current(session, project_ids)
    for project_id in project_ids - found.keys():
        policies.ensure_default(session, project_id)
    return found if project_ids <= found.keys() else policies.current(session, project_ids)


def register(checker: Checker) -> int:
    """This checker's row, and the reference its bundle brings, kept whole beside it."""
    frozen = checker.reference
    with db.transaction() as session:
        checker_id = checks.register(
            session,
            name=checker.id,
            label=checker.label,
            is_demo=checker.is_demo,
            reference_version=frozen.version if frozen else None,
            logit_scale=checker.logit_scale,
            logit_bias=checker.logit_bias,
        )
        if frozen is not None:
            references.keep(session, checker_id, frozen.version, reference.to_json(frozen))
    return checker_id


def poll_until(stopping: threading.Event, seconds: float, look: Callable[[], object]) -> None:
    """Call `look` every `seconds` until `stopping`; what it raises is logged and does not end the polling."""
    while not stopping.wait(seconds):
        try:
            look()
        except Exception as error:
            log.warning("polling found an obstacle and goes on: %s", where(error))


def where(error: Exception) -> str:
    """An exception without its message, which may quote what users or models said."""
    if isinstance(error, errors.CmerwatchError):
        return f"{type(error).__name__}: {error.message}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
