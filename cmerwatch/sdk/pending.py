"""The queue between the app's threads and the sending thread: bounded by bytes, oldest dropped first."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cmerwatch.sdk.counts import Counts
from cmerwatch.sdk.events import Prepared

Late = Callable[[], Mapping[str, Any]]

# How often the sending thread looks while it collects a batch. Waking it for each event would cost the app's thread
# a system call, and a fight for the GIL just as its own work goes on.
LOOK_SECONDS = 0.05
# What is over the limit is dropped by the sending thread when it looks. The app's thread drops only what is over by
# more, which is when that one is busy.
MOST_EXCESS_BYTES = 8 << 20
MOST_EXCESS_EVENTS = 100
NEVER = float("inf")


class Item:
    """One event on its way. `size` is the memory it keeps alive, in bytes; `late` gives what the app said of it; `at`
    is when it was taken, in seconds since the epoch."""

    __slots__ = ("at", "failures", "late", "prepared", "resent", "seq", "size")

    def __init__(self, size: int, late: Late, at: float) -> None:
        self.at = at
        self.seq = 0
        self.late = late
        self.size = size
        self.prepared: Prepared | None = None
        self.failures = 0
        self.resent = False


class Pending:
    """Every event stays in `_open` from submit until it is settled; `_waiting` is those not being sent now."""

    def __init__(self, max_bytes: int, max_events: int, counts: Counts) -> None:
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._most_bytes = max_bytes + min(max_bytes, MOST_EXCESS_BYTES)
        self._most_events = max_events + min(max_events, MOST_EXCESS_EVENTS)
        self._counts = counts
        # Reentrant: a finaliser or signal handler that records must not deadlock on its own thread.
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)  # the sending thread waits for it
        self._settled = threading.Condition(self._lock)  # flushes wait for it
        self._wake_above = NEVER  # the bytes above which an event wakes the sending thread; that one sets it
        self._open: dict[int, Item] = {}
        self._waiting: deque[Item] = deque()
        self._bytes = 0
        self._last_seq = 0
        self._flush_mark = 0
        self._flushes = 0
        self._flushing = 0  # how many wait for their end
        self.closed = False
        self._abandoned = ""  # the reason, once nothing more will be tried

    def put(self, item: Item) -> str:
        """Why the event was not taken, or nothing."""
        victims: list[Item] = []
        with self._lock:
            if self.closed:
                return self._abandoned or "shutdown"
            if item.size > self._max_bytes:
                return "too_large"
            self._last_seq += 1
            item.seq = self._last_seq
            self._open[item.seq] = item
            self._waiting.append(item)
            self._bytes += item.size
            if self._bytes > self._most_bytes or len(self._open) > self._most_events:
                # Several at once: one by one each would meet cold memory, and cost as much as to queue an event.
                victims = self._make_room(self._most_bytes * 31 // 32, self._most_events * 31 // 32)
            if self._bytes > self._wake_above:
                self._wake_above = NEVER
                self._news.notify()
        if victims:
            self._counts.drop("queue_full", len(victims))
        return ""

    def take(self, timeout: float | None) -> Item | None:
        """The oldest waiting event. None after `timeout` seconds, when closed and empty, or, with a timeout,
        when a flush wants what has been taken so far sent now."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._trim()
        with self._lock:
            while not self._waiting:
                left = None if deadline is None else deadline - time.monotonic()
                if self.closed or (left is not None and (left <= 0 or self._flush_wanted())):
                    return None
                # Idle, it wants the next event; collecting, only a queue that fills faster than it looks.
                self._wake_above = 0 if left is None else self._max_bytes // 4
                self._news.wait(None if left is None else min(left, LOOK_SECONDS))
                self._wake_above = NEVER
            return self._waiting.popleft()

    def put_back(self, items: Iterable[Item], last: bool = False) -> None:
        """Unsent events return to the head of the queue, where they are the first to be dropped; with `last`
        to its end, so that one that fails again and again does not stand before the others."""
        with self._lock:
            if last:
                self._waiting.extend(items)
            else:
                self._waiting.extendleft(reversed(list(items)))
            victims = self._clear() if self._abandoned else self._make_room(self._max_bytes, self._max_events)
        self._counts.drop(self._abandoned or "queue_full", len(victims))

    def resize(self, item: Item, size: int) -> None:
        """Once read, a path or an encoded picture weighs something else than when it was queued."""
        with self._lock:
            if item.seq in self._open:
                self._bytes += size - item.size
                item.size = size
        self._trim()

    def holds(self, item: Item) -> bool:
        return item.seq in self._open

    def settle(self, item: Item) -> None:
        with self._lock:
            self._forget(item)
            self._settled.notify_all()

    def rest(self, seconds: float, until_flush: bool) -> None:
        """Wait before the next try. Being abandoned always ends it, a flush only when `until_flush`."""
        deadline = time.monotonic() + seconds
        with self._lock:
            flushes = self._flushes
        while (left := deadline - time.monotonic()) > 0:
            self._trim()
            with self._lock:
                if self._abandoned or (until_flush and self._flushes != flushes):
                    return
                self._news.wait(min(left, LOOK_SECONDS))

    def flush(self, timeout: float) -> bool:
        """True when everything submitted before this call is settled."""
        with self._lock:
            mark = self._last_seq
            self._flush_mark = max(self._flush_mark, mark)
            self._flushes += 1
            self._news.notify_all()
            self._flushing += 1
            try:
                return self._settled.wait_for(lambda: self._oldest() > mark, timeout)
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """Accept nothing more; what waits may still be sent."""
        with self._lock:
            self.closed = True
            self._news.notify_all()

    def abandon(self, reason: str) -> None:
        """Drop what waits, and later whatever is being sent now and fails."""
        with self._lock:
            self.closed = True
            self._abandoned = reason
            self._counts.drop(reason, len(self._clear()))  # before a waiting flush wakes and looks at the counts
            self._news.notify_all()
            self._settled.notify_all()

    @property
    def load(self) -> tuple[int, int]:
        """(events, bytes) not settled yet."""
        self._trim()
        with self._lock:
            return len(self._open), self._bytes

    def _clear(self) -> list[Item]:
        victims = list(self._waiting)
        self._waiting.clear()
        for item in victims:
            self._forget(item)
        self._settled.notify_all()
        return victims

    def _trim(self) -> None:
        with self._lock:
            victims = self._make_room(self._max_bytes, self._max_events)
        self._counts.drop("queue_full", len(victims))

    def _make_room(self, most_bytes: int, most_events: int) -> list[Item]:
        victims = []
        while self._waiting and (self._bytes > most_bytes or len(self._open) > most_events):
            victims.append(self._waiting.popleft())
            self._forget(victims[-1])
        if victims and self._flushing:
            self._settled.notify_all()
        return victims  # freed by the caller after the lock: unmapping megabytes takes a while

    def _forget(self, item: Item) -> None:
        if self._open.pop(item.seq, None) is not None:
            self._bytes -= item.size

    def _oldest(self) -> int:
        return next(iter(self._open), self._last_seq + 1)

    def _flush_wanted(self) -> bool:
        return self._oldest() <= self._flush_mark
