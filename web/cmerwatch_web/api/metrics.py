"""Counts of this process in Prometheus' text format; nothing but numbers, so that it may be read without a key."""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterable, Mapping

TEXT = "text/plain; version=0.0.4; charset=utf-8"
STATUSES = ("accepted", "duplicate", "rejected")
_BOUNDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

_lock = threading.Lock()
_events = dict.fromkeys(STATUSES, 0)
_latency = [0] * (len(_BOUNDS) + 1)
_latency_sum = 0.0


def count(statuses: Iterable[str], seconds: float | None = None) -> None:
    """Note the answer to one request: the status of each of its events, and the time it took if it was stored."""
    global _latency_sum
    with _lock:
        for status in statuses:
            _events[status] += 1
        if seconds is not None:
            _latency[bisect.bisect_left(_BOUNDS, seconds)] += 1
            _latency_sum += seconds


def text(gauges: Mapping[str, tuple[str, float]]) -> str:
    """The whole answer; `gauges` maps a name to (help, value)."""
    with _lock:
        events, latency, latency_sum = dict(_events), list(_latency), _latency_sum
    lines = [
        "# HELP cmerwatch_events_total Events received, by what became of them.",
        "# TYPE cmerwatch_events_total counter",
    ]
    lines += [f'cmerwatch_events_total{{status="{status}"}} {value}' for status, value in events.items()]
    lines += _histogram(latency, latency_sum)
    for name, (help_text, value) in gauges.items():
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {_number(value)}"]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Prometheus writes NaN with capitals."""
    return "NaN" if math.isnan(value) else f"{value:g}"


def _histogram(latency: list[int], latency_sum: float) -> list[str]:
    name = "cmerwatch_ingest_seconds"
    lines = [f"# HELP {name} From the first byte of a request's body to its commit.", f"# TYPE {name} histogram"]
    total = 0
    for bound, value in zip((*_BOUNDS, "+Inf"), latency, strict=True):
        total += value
        lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
    return [*lines, f"{name}_sum {latency_sum:.6f}", f"{name}_count {total}"]
