"""Ends a worker that hangs: a stuck GPU call or lock cannot be interrupted from inside, only left behind."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE; whoever started the worker starts it again, and leases expire by themselves


class Progress:
    """When work last moved; idle time is no hang."""

    def __init__(self) -> None:
        self._since: float | None = None

    def touch(self) -> None:
        """Something was finished, or is about to begin."""
        self._since = time.monotonic()

    def rest(self) -> None:
        """Nothing is being done."""
        self._since = None

    def silent_seconds(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


def watch(
    progress: Progress,
    limit_seconds: float,
    stopping: threading.Event,
    end: Callable[[int], object] = os._exit,
    look_seconds: float = 1.0,
) -> None:
    """Look until `stopping`; past the limit call `end(70)`. For a thread of its own."""
    while not stopping.wait(look_seconds):
        if progress.silent_seconds() > limit_seconds:
            log.critical("no progress for %.0f s: leaving, so that a fresh worker can go on", limit_seconds)
            end(EXIT_CODE)
            return
