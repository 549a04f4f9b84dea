"""What became of every event, and the few log lines about it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("cmerwatch")

WARN_EVERY_SECONDS = 60.0
# Left out on purpose, by the app's own choice or because nothing was said: counted, but nothing to warn about.
WANTED = frozenset({"sampled_out", "before_send", "no_output", "unparsed"})


@dataclass(frozen=True)
class Stats:
    """`sent` counts events the server stored for the first time, `duplicates` those it already had,
    `rejected` those it refused for good, `dropped` those that never got an answer, by reason.
    `last_error` never quotes a prompt, an output or a key."""

    sent: int
    duplicates: int
    rejected: int
    dropped: dict[str, int]
    queued_events: int
    queued_bytes: int
    last_error: str | None


class Counts:
    def __init__(self) -> None:
        # Reentrant: the garbage collector may run app code that records while this lock is held.
        self._lock = threading.RLock()
        self._totals = {"sent": 0, "duplicates": 0, "rejected": 0}
        self._dropped: dict[str, int] = {}
        self._last_error: str | None = None
        self._warned: dict[str, float] = {}

    def add(self, outcome: str) -> None:
        """outcome: sent or duplicates."""
        with self._lock:
            self._totals[outcome] += 1

    def reject(self, error: str, sentence: Callable[[], str]) -> None:
        """sentence: the server's own words, asked for only where a line is logged, since it reads the whole event."""
        with self._lock:
            self._totals["rejected"] += 1
            self._last_error = error
            news = self._is_news("rejected")
        if news:
            log.warning("cmerwatch: the server rejected an event: %s", ": ".join(filter(None, [error, sentence()])))

    def drop(self, reason: str, events: int = 1, detail: str = "") -> None:
        """detail: what was wrong, naming the field; never its value."""
        if not events:
            return
        # An event that the app built wrongly is a bug to see at once; a full queue is not news twice a minute.
        topic = f"{reason}: {detail}" if detail else reason
        with self._lock:
            self._dropped[reason] = total = self._dropped.get(reason, 0) + events
            if detail:
                self._last_error = topic
            news = reason not in WANTED and self._is_news(topic)
        if news:
            log.warning("cmerwatch: dropped %d event(s) so far (%s)", total, topic)

    def failed(self, error: str) -> None:
        with self._lock:
            self._last_error = error

    def warn(self, topic: str, message: str, *args: object) -> None:
        """Logs at most one line a minute for each topic."""
        with self._lock:
            news = self._is_news(topic)
        if news:
            log.warning(message, *args)

    def _is_news(self, topic: str) -> bool:
        now = time.monotonic()
        if now - self._warned.get(topic, -WARN_EVERY_SECONDS) < WARN_EVERY_SECONDS:
            return False
        if len(self._warned) > 256:
            self._warned.clear()
        self._warned[topic] = now
        return True

    def snapshot(self, queued_events: int, queued_bytes: int) -> Stats:
        with self._lock:
            return Stats(
                **self._totals,
                dropped=dict(self._dropped),
                queued_events=queued_events,
                queued_bytes=queued_bytes,
                last_error=self._last_error,
            )
