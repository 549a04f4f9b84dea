"""One app's connection to one cmerwatch server: what the app's threads call."""

import atexit
import functools
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from os import getpid
from time import time as now
from typing import Any, Unpack

from cmerwatch.sdk import config, events, media, scope
from cmerwatch.sdk.config import Options
from cmerwatch.sdk.counts import Counts, Stats
from cmerwatch.sdk.events import Fields, Invalid
from cmerwatch.sdk.pending import Item, Late, Pending
from cmerwatch.sdk.scope import Capture
from cmerwatch.sdk.sender import Sender

EVENT_OVERHEAD_BYTES = 1000  # the dict, the item and the small strings of one waiting event


class Client:
    """No method raises into the app, and none but `flush` and `shutdown` waits for anything."""

    def __init__(self, api_key: str | None = None, server_url: str | None = None, **options: Unpack[Options]) -> None:
        self._config = config.resolve(api_key, server_url, options)
        self.enabled = self._config.transport is not None
        self._thread: threading.Thread | None
        self._samples = self._config.sample_rate != 1.0
        self._defaults = _defaults(self._config)
        self._start_afresh()
        _live.add(self)

    def record(self, **given: Unpack[Fields]) -> str:
        """Queues one event and answers its id at once; all of it is read, hashed and sent by another thread, so
        leave the picture and the lists as they are from here on. The id comes back even when the event was dropped."""
        event_id = ""
        try:
            event_id = given["event_id"] = str(given.get("event_id") or events.new_id())
            if self.enabled:
                self.take(functools.partial(self._given, given, scope.current()), _weigh(given))
        except Exception as error:
            self.swallow(error)
        return event_id or events.new_id()

    def take(self, fields: Late, size: int, start_thread: bool = True) -> None:
        """One event. `fields` is called on the sending thread; until then it keeps `size` bytes of memory alive. It
        gives the dimensions too: a context of then is another's.

        start_thread=False queues only, for callers that must not wait for a thread to start."""
        if not self.enabled:
            return
        if self._pid != getpid():
            self._after_fork()
        item = Item(EVENT_OVERHEAD_BYTES + size, fields, now())
        if self._samples and not self._sampled(item):
            return
        refusal = self._pending.put(item)
        if refusal:
            self._counts.drop(refusal)
        elif start_thread and not self._served:
            self._thread_runs()

    def capture(self, **given: Unpack[Fields]) -> Capture:
        """A `with` block that records one event when it ends well; set `output` on what it yields."""
        return Capture(self, given)

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits up to `timeout` seconds; True when everything recorded before the call is settled."""
        try:
            self._own_process()
            if not self._pending.load[0]:
                done = True
            elif threading.current_thread() is self._thread or not (self._served or self._thread_runs()):
                done = False  # before_send waiting for itself would wait for ever
            else:
                done = self._pending.flush(timeout)
        except Exception as error:
            self.swallow(error)
            return False
        if self._config.debug and self._sender is not None and self._sender.crash is not None:
            crash, self._sender.crash = self._sender.crash, None
            raise crash
        return done

    def shutdown(self, timeout: float | None = None) -> bool:
        """Takes no more events and returns within `timeout` seconds, whatever the server does."""
        done = False
        try:
            self._own_process()
            self._pending.close()
            done = self.flush(self._config.shutdown_timeout if timeout is None else timeout)
            self._pending.abandon("shutdown")
            _live.discard(self)
        except Exception as error:
            self.swallow(error)
        return done

    def stats(self) -> Stats:
        self._own_process()
        return self._counts.snapshot(*self._pending.load)

    def retire(self) -> None:
        """Takes no more events; what waits is still sent, and nobody waits for it before the exit."""
        self._pending.close()

    def drop(self, reason: str) -> None:
        """Counts an event that never became one."""
        if self.enabled:
            self._own_process()
            self._counts.drop(reason)

    def _given(self, given: Fields, around: dict[str, Any]) -> dict[str, Any]:
        """What `record` was given inside of the context `around`."""
        own = {name: value for name, value in given.items() if value is not None}
        if not own.keys() <= events.NAMES:
            unknown = ", ".join(sorted(own.keys() - events.NAMES))
            self._counts.warn(unknown, "cmerwatch: record() has no field named %s; it is ignored", unknown)
        return {**around, **own}

    def _complete(self, item: Item) -> dict[str, Any]:
        """All that is known of an event. Raises Invalid."""
        own = {name: value for name, value in item.late().items() if value is not None}
        merged = {**self._defaults, "occurred_at": item.at, "event_id": events.new_id(), **own}
        events.glance(merged)
        return merged

    def _sampled(self, item: Item) -> bool:
        """At once: what is not wanted must not push out what is."""
        try:
            fields = self._complete(item)
        except Invalid as error:
            self._counts.drop("invalid", detail=str(error))
            return False
        item.late = lambda: fields
        if self._wanted(fields):
            return True
        self._counts.drop("sampled_out")
        return False

    def _wanted(self, merged: dict[str, Any]) -> bool:
        """Decided by the request, so that retries and a second hook on the same call decide alike."""
        if "sample_rate" in merged:  # the app sampled already and says at which rate
            return True
        rate: Any = self._config.sample_rate
        if callable(rate):
            try:
                rate = min(max(float(rate(merged)), 0.0), 1.0)
            except Exception as error:
                self._counts.warn("rate", "cmerwatch: sample_rate raised %s; the event is kept", type(error).__name__)
                rate = 1.0
        merged["sample_rate"] = rate
        if rate >= 1.0:
            return True
        name = str(merged.get("request_id") or merged["event_id"])
        digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < float(rate) * 2**64

    def _thread_runs(self) -> bool:
        """Starts the thread with the first event, never before: a master that forks workers stays without one."""
        if self._thread is not None and self._thread.is_alive():
            return True
        with self._starting:
            if self._thread is not None and self._thread.is_alive():
                return True
            if self._sender is None or sys.is_finalizing():
                return False
            self._thread = threading.Thread(target=self._serve, args=(self._sender,), name="cmerwatch", daemon=True)
            self._served = True
            try:
                self._thread.start()
            except RuntimeError as error:  # Python starts no threads while it shuts down, nor over the ulimit
                self._counts.warn("thread", "cmerwatch: the sending thread could not start: %s", error)
                self._thread, self._served = None, False
                return False
            return True

    def _serve(self, sender: Sender) -> None:
        try:
            sender.run()
        finally:
            self._served = False

    def _own_process(self) -> None:
        # Forks that skip Python's hooks (uWSGI) are seen here.
        if self._pid != getpid():
            self._after_fork()

    def _after_fork(self) -> None:
        """In the child: the parent sends what it queued; locks and sockets it held are left to it."""
        if self._config.transport is not None:
            self._config.transport.forked()
        self._start_afresh()

    def _start_afresh(self) -> None:
        settings = self._config
        self._pid = getpid()
        self._starting = threading.RLock()
        self._thread = None
        self._served = False  # asking a thread whether it is alive takes longer than all else there is to put
        self._counts = Counts()
        self._pending = Pending(settings.queue_max_bytes, settings.queue_max_events, self._counts)
        self._sender: Sender | None = None
        if settings.transport is not None:
            self._sender = Sender(
                settings.transport,
                self._pending,
                self._counts,
                self._complete,
                settings.before_send,
                settings.flush_interval,
            )

    def swallow(self, error: Exception) -> None:
        """A bug of ours must not become the app's: it is counted, and raised only in debugging."""
        if self._config.debug:
            raise error
        self._counts.drop("internal", detail=type(error).__name__)


def _defaults(settings: config.Config) -> dict[str, Any]:
    """What an event has that does not say otherwise."""
    found: dict[str, Any] = {} if settings.environment is None else {"environment": settings.environment}
    return found if settings.sample_rate != 1.0 else {**found, "sample_rate": 1.0}


def _weigh(given: Fields) -> int:
    """Bytes of memory what `record` was given keeps alive while it waits; O(1) in all of them."""
    size = sys.getsizeof(given.get("output")) + sys.getsizeof(given.get("prompt")) + media.weigh(given.get("image"))
    images = given.get("images")
    if isinstance(images, (list, tuple)):
        size += sum(map(media.weigh, images))
    if given.get("logprobs") is not None:
        size += 32 * _length(given["logprobs"])  # a float and its slot in the list
    if given.get("tokens") is not None:
        size += 64 * _length(given["tokens"])  # a short string and its slot
    return size


def _length(values: Any) -> int:
    return len(values) if hasattr(values, "__len__") else 0


_live: set[Client] = set()
last_words: list[Callable[[], None]] = []  # called at the exit, while events are still taken; they do not raise


def _at_exit() -> None:
    """All clients together get the time of the one that allows most."""
    for speak in last_words:
        speak()
    clients = list(_live)
    if not clients:
        return
    deadline = time.monotonic() + max(client._config.shutdown_timeout for client in clients)
    for client in clients:
        client.shutdown(max(0.0, deadline - time.monotonic()))


def _in_child() -> None:
    for client in list(_live):
        client._after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
