"""Slows down whoever guesses passwords: past a few tries each one makes the next wait twice as long.

Kept in this process's memory. Behind a proxy every address is the proxy's, so the wait is then the login's; a one-time
link opens the console all the same.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

FREE_TRIES = 5  # a person who mistypes waits for nothing
LONGEST_SECONDS = 300.0
FORGOTTEN_SECONDS = 900.0
MOST_REMEMBERED = 10_000  # pairs; each was paid for with a slow hash


class Throttle:
    """Tries by login and address: how many, and when the last one began."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._tries: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, login: str, address: str) -> float:
        """Seconds to wait; 0 lets the try begin, and counts it before its end is known, so that guesses made
        side by side gain nothing."""
        with self._lock:
            now = self._now()
            count, last = self._tries.pop((login, address), (0, now))
            if now - last > FORGOTTEN_SECONDS:
                count = 0
            wait = 0.0 if count < FREE_TRIES else min(2.0 ** (count - FREE_TRIES), LONGEST_SECONDS) - (now - last)
            self._tries[login, address] = (count, last) if wait > 0 else (count + 1, now)
            if len(self._tries) > MOST_REMEMBERED:
                self._tries.popitem(last=False)
            return max(0.0, wait)

    def succeed(self, login: str, address: str) -> None:
        """The right password: the tries before it were its owner's."""
        with self._lock:
            self._tries.pop((login, address), None)
