"""Requests that come while others of their project are being stored are then stored together, in one transaction.

A transaction for sixteen events costs little more than for one, so each request costs less the busier the server is.
One that comes alone is stored alone and at once. Nobody is answered before the commit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import orm
from starlette.datastructures import State

from cmerwatch import blobs, db, errors, events, queue
from cmerwatch_web.api import arrivals, bodies

AT_ONCE = 5  # transactions of one project: while some wait for the disk, others are prepared
MOST_REQUESTS = 16  # in one transaction: what keeps it from its commit then fails no more than these
MOST_BYTES = 8 << 20  # likewise; one larger request goes alone

# Fewer than the connections of the pool, which would otherwise be what they wait for.
_transactions = concurrent.futures.ThreadPoolExecutor(16, "cmerwatch-intake")
_writes = concurrent.futures.ThreadPoolExecutor(16, "cmerwatch-blobs")

Result = events.Ingested | errors.CmerwatchError
Outcome = list[Result] | Exception  # of a whole request: its events' results in order, or why it has none


@dataclass(slots=True)
class _Request:
    sent: bodies.Sent
    results: asyncio.Future[list[Result]]


@dataclass(slots=True)
class _Line:
    """The requests of one project that wait, and its transactions under way."""

    waiting: deque[_Request] = field(default_factory=deque)
    running: set[asyncio.Task[None]] = field(default_factory=set)


class Intake:
    """One for each app, used from its event loop alone; reading and storing are done in threads."""

    def __init__(self, state: State) -> None:
        self._state = state  # the app's own: `settings` and `blobs`
        self._lines: dict[uuid.UUID, _Line] = {}

    async def take(self, project_id: uuid.UUID, sent: bodies.Sent) -> list[Result]:
        """What became of each event of this request, in order, once all of it is durable.

        Raises Invalid for a request that makes no sense as a whole, or whatever kept the transaction from its commit.
        """
        request = _Request(sent, asyncio.get_running_loop().create_future())
        line = self._lines.setdefault(project_id, _Line())
        line.waiting.append(request)
        if len(line.running) < AT_ONCE:
            task = asyncio.create_task(self._work_off(project_id, line))
            line.running.add(task)
        return await request.results

    async def _work_off(self, project_id: uuid.UUID, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        while line.waiting:
            taken = _take_next(line.waiting)
            sent = [request.sent for request in taken]
            outcomes: list[Outcome]
            try:
                outcomes = await loop.run_in_executor(_transactions, self._keep, project_id, sent)
            except Exception as error:
                outcomes = [error] * len(taken)
            for request, outcome in zip(taken, outcomes, strict=True):
                _tell(request.results, outcome)
        # At once, and not when the task has ended: whoever joined the line in between would wait for nobody.
        running = asyncio.current_task()
        line.running = {task for task in line.running if task is not running}

    def _keep(self, project_id: uuid.UUID, sent: Sequence[bodies.Sent]) -> list[Outcome]:
        """Raises what keeps all of them from being stored."""
        read = [self._read(one) for one in sent]
        sound = [one for one in read if isinstance(one, arrivals.Arrivals)]
        results = iter(self._commit(project_id, sound) if sound else [])
        return [next(results) if isinstance(one, arrivals.Arrivals) else one for one in read]

    def _read(self, sent: bodies.Sent) -> arrivals.Arrivals | Exception:
        try:
            return arrivals.read(sent, self._state.settings)
        except Exception as error:  # unforeseen ones too: they are this request's alone
            return error

    def _commit(self, project_id: uuid.UUID, arrived: Sequence[arrivals.Arrivals]) -> Sequence[Outcome]:
        try:
            with db.transaction() as session:
                return store(session, self._state.blobs, project_id, arrived, events.ingest_together)
        except sa.exc.DataError:
            # One event holds what the database cannot: each request on its own, and it harms none of its neighbours.
            return [self._commit_alone(project_id, one) for one in arrived]

    def _commit_alone(self, project_id: uuid.UUID, arrived: arrivals.Arrivals) -> Outcome:
        try:
            with db.transaction() as session:
                return store(session, self._state.blobs, project_id, [arrived], events.ingest_many)[0]
        except Exception as error:  # what keeps this one from its commit says nothing of those already committed
            return error


def _take_next(waiting: deque[_Request]) -> list[_Request]:
    taken = [waiting.popleft()]
    size = len(taken[0].sent.body)
    while waiting and len(taken) < MOST_REQUESTS and size + len(waiting[0].sent.body) <= MOST_BYTES:
        size += len(waiting[0].sent.body)
        taken.append(waiting.popleft())
    return taken


def _tell(results: asyncio.Future[list[Result]], outcome: Outcome) -> None:
    if results.cancelled():  # who asked is gone
        return
    if isinstance(outcome, Exception):
        results.set_exception(outcome)
    else:
        results.set_result(outcome)


def store(
    session: orm.Session,
    folder: blobs.BlobStore,
    project_id: uuid.UUID,
    arrived: Sequence[arrivals.Arrivals],
    ingest: Callable[..., list[Result]],
) -> list[list[Result]]:
    """What became of each event of each request, in order.

    Rows first, then the bytes of accepted events, then the caller's commit: a refused event leaves nothing behind, and
    a row is seen by nobody before its bytes are on disk.
    """
    rows = [row for request in arrived for row in request.rows]
    coming = {sha256: picture for request in arrived for sha256, picture in request.pictures.items()}
    valid = [row.event for row in rows if row.event is not None]
    outcomes = iter(ingest(session, project_id, valid, coming=list(coming.values())) if valid else [])
    results = [_result(row, outcomes) for row in rows]
    accepted = [row.event for row, result in zip(rows, results, strict=True) if row.event and _is_accepted(result)]
    wanted = {sha256 for event in accepted for sha256 in event.images}
    _put(folder, project_id, [picture for sha256, picture in coming.items() if sha256 in wanted])
    if accepted:
        db.after_commit(session, queue.hint, "check")
    in_order = iter(results)
    return [list(itertools.islice(in_order, len(request.rows))) for request in arrived]


def _result(row: arrivals.Arrival, outcomes: Iterator[Result]) -> Result:
    """Raises Unavailable, which no event is to blame for: nothing of its transaction may stand."""
    if row.error is not None:
        return row.error
    result = next(outcomes)
    if isinstance(result, errors.Unavailable):
        raise result
    if isinstance(result, errors.CmerwatchError) and row.path:  # a refusal by the core, with the name of its event
        return arrivals.at(result, row.path + str(result.details.get("field", "event")))
    return result


def _is_accepted(result: Result) -> bool:
    return isinstance(result, events.Ingested) and result.status == "accepted"


def _put(folder: blobs.BlobStore, project_id: uuid.UUID, pictures: Sequence[events.Picture]) -> None:
    """Side by side: what each waits for is its own fsync. Returns, or raises, when all have ended."""
    first, others = pictures[:1], pictures[1:]
    started = [_writes.submit(folder.put, project_id, picture.sha256, picture.data) for picture in others]
    try:
        for picture in first:  # here, so that one picture costs no other thread
            folder.put(project_id, picture.sha256, picture.data)
    finally:
        concurrent.futures.wait(started)
    for write in started:
        write.result()
