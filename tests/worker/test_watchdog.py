"""A worker that hangs leaves; one that is idle or moving stays."""

from __future__ import annotations

import itertools
import threading

import pytest

from cmerwatch_worker import watchdog


class Clock:
    """Monotonic seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watchdog.time, "monotonic", made)
    return made


def _ends(progress: watchdog.Progress, looks: int = 3) -> list[int]:
    """What the watchdog did within so many looks."""
    ended: list[int] = []
    counter = itertools.count(1)

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return next(counter) > looks

    watchdog.watch(progress, 60, Stopping(), ended.append)
    return ended


def test_a_drain_without_progress_past_the_limit_ends_the_process(clock: Clock) -> None:
    progress = watchdog.Progress()
    progress.touch()
    clock.now += 61
    assert _ends(progress) == [70]


def test_progress_within_the_limit_keeps_it_alive(clock: Clock) -> None:
    progress = watchdog.Progress()
    progress.touch()
    clock.now += 59
    assert _ends(progress) == []


def test_an_idle_worker_is_no_hanging_one(clock: Clock) -> None:
    progress = watchdog.Progress()
    assert _ends(progress) == []
    progress.touch()
    progress.rest()
    clock.now += 10_000
    assert _ends(progress) == []
