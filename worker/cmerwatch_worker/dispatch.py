"""Sends alerts' messages: claim, commit, send with no transaction open, record. It needs Postgres only, no hints.

Pool threads send and touch no database; one thread claims and records. A sender that dies between the two leaves its
lease to run out, and the message is sent again with the same id.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import threading
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from cmerwatch import db, deliveries, notify, outbound, sealing
from cmerwatch.deliveries import Claimed
from cmerwatch.settings import Settings
from cmerwatch_worker.tasks import Away, where

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SEND_SECONDS = 15.0  # for all of one message: resolving, connecting, TLS, answer
LEASE_SECONDS = 60.0  # well over SEND_SECONDS, so that a live sender records before anyone else may send
STOP_SECONDS = 10.0  # how long a stop waits for a database that is away; what stays unrecorded is sent again
SENDERS = 32
FOR_TROUBLED = 16  # of the senders: what failed last must leave some to what works


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one try; `status` is None where no answer came."""

    outcome: notify.Outcome
    status: int | None


@dataclass(frozen=True, slots=True)
class Flight:
    """A message being sent."""

    claimed: Claimed
    token: uuid.UUID
    is_troubled: bool


class Dispatcher:
    """`run` is for a thread of its own."""

    def __init__(self, settings: Settings, lease_seconds: float = LEASE_SECONDS) -> None:
        self._settings, self._lease = settings, lease_seconds
        self._senders = ThreadPoolExecutor(SENDERS, "send")
        self._flying: dict[Future[Sent], Flight] = {}

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping` and nothing is in the air. A database that is away is tried again, after `stopping` for
        STOP_SECONDS."""
        give_up_at = math.inf
        while (not stopping.is_set() or self._flying) and time.monotonic() < give_up_at:
            try:
                if self.tick(may_claim=not stopping.is_set()):
                    continue
            except Exception as error:  # a thread that ended here would end all messages
                log.warning("dispatching met an obstacle and goes on: %s", where(error))
                if stopping.is_set():  # nothing to wait on: the event is set, and what landed stays unrecorded
                    give_up_at = min(give_up_at, time.monotonic() + STOP_SECONDS)
                    time.sleep(POLL_SECONDS)
                stopping.wait(POLL_SECONDS)
            if self._flying:
                wait(self._flying, POLL_SECONDS, FIRST_COMPLETED)
            else:
                stopping.wait(POLL_SECONDS)
        self.close()

    def tick(self, *, may_claim: bool = True) -> int:
        """Record what has landed, then take off again; returns how many took off."""
        for future in [future for future in self._flying if future.done()]:
            try:
                self._record(self._flying[future], future.result())
            except Away:
                raise  # it is recorded once the database is back
            except Exception as error:
                log.error("an outcome could not be recorded, so its message will be sent again: %s", where(error))
            del self._flying[future]
        return self._take_off() if may_claim else 0

    def close(self) -> None:
        """Waits for what is in the air, without recording it."""
        self._senders.shutdown()

    def _take_off(self) -> int:
        """First for channels that work; those that failed last get a part of the senders, and wait for it."""
        busy = sum(flight.is_troubled for flight in self._flying.values())
        began = self._claim(SENDERS - len(self._flying), is_troubled=False)
        free = min(SENDERS - len(self._flying), FOR_TROUBLED - busy)
        return began + self._claim(free, is_troubled=True)

    def _claim(self, n: int, *, is_troubled: bool) -> int:
        if n <= 0:
            return 0
        deadline = time.monotonic() + SEND_SECONDS  # from before the claim: a stalled sender must not send late
        token = uuid.uuid4()
        with db.transaction() as session:
            claimed = deliveries.claim(session, n, self._lease, token, troubled=is_troubled)
        for message in claimed:
            future = self._senders.submit(send, message, self._settings, deadline)
            self._flying[future] = Flight(message, token, is_troubled)
        return len(claimed)

    def _record(self, flight: Flight, sent: Sent) -> None:
        with db.transaction() as session:
            kept = deliveries.record(session, flight.claimed, flight.token, sent.outcome, sent.status)
        if not kept:
            log.warning("a message's lease ran out while it was sent; it may arrive twice, with the same id")
        elif isinstance(sent.outcome, notify.Dead):
            log.error("a %s channel refused a message for good: %s", flight.claimed.kind, sent.outcome.reason)


def send(message: Claimed, settings: Settings, deadline: float) -> Sent:
    """One try. Whatever goes wrong is an outcome: a message must never end its sender."""
    try:
        return _send(message, settings, deadline)
    except outbound.Failed as error:
        return Sent(notify.Retry(error.message), None)
    except sealing.Unreadable as error:
        return Sent(notify.Dead(error.message, disables=True), None)
    except Exception as error:
        log.error("a %s message could not be made: %s", message.kind, where(error))
        return Sent(notify.Retry("cmerwatch could not make this message; the worker's log says where."), None)


def _send(message: Claimed, settings: Settings, deadline: float) -> Sent:
    kind = notify.KINDS[message.kind]
    config: notify.Config = json.loads(sealing.unseal(message.sealed_config, f"channel:{message.channel_id}"))
    said = notify.Message(str(message.id), message.notice, message.is_first)
    sent = _try(kind, said, config, settings, deadline)
    if isinstance(sent.outcome, notify.Plainer):
        sent = _try(kind, replace(said, is_plain=True), config, settings, deadline)
    if isinstance(sent.outcome, notify.Plainer):
        return Sent(notify.Dead(f"{sent.outcome.reason} Plain text was refused too."), sent.status)
    return sent


def _try(kind: notify.Kind, said: notify.Message, config: notify.Config, settings: Settings, deadline: float) -> Sent:
    request = kind.request(said, config, dt.datetime.now(dt.UTC))
    answer = outbound.send(
        request.method, request.url, request.headers, request.body, settings.allowed_targets, deadline
    )
    return Sent(kind.classify(answer.status, answer.headers, answer.body), answer.status)
