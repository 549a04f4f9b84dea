"""Wakes workers: payload-free hints over Celery. Losing every one of them costs latency, never an event.

The only place in the core that knows Celery. A hint is "drain this stage"; what is to be done stands in Postgres,
and workers also look there by themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import celery
import redis

from cmerwatch.settings import Settings

log = logging.getLogger(__name__)

STAGES = ("check",)
DRAIN = "cmerwatch.drain"  # the task, called with the stage's name; each stage has a queue of that name

MARK_SECONDS = 1.0  # a stage is hinted at most this often, unless a drain begins earlier and takes the mark away
BREAKER_SECONDS = 5.0  # after a failure hints rest this long; polling finds the work meanwhile
MOST_WAITING = 50  # hints nobody fetched: more say nothing new
TIMEOUT_SECONDS = 1.0


def celery_config(settings: Settings) -> dict[str, Any]:
    """What producer and worker must agree on; both build their Celery app from it."""
    return {
        "broker_url": settings.redis_url or "filesystem://localhost",
        "broker_transport_options": _transport(settings),
        "broker_connection_retry_on_startup": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        "task_acks_late": False,  # a hint needs no redelivery
        "task_default_queue": STAGES[0],
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "enable_utc": True,
    }


def _transport(settings: Settings) -> dict[str, Any]:
    if settings.redis_url:
        return {
            "visibility_timeout": 600,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 25,
        }
    folder = settings.data_dir.absolute() / "broker"
    for name in ("messages", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
    }


class Marks(Protocol):
    """Who hinted lately, agreed among all producers."""

    def take(self, stage: str) -> bool:
        """True if nobody hinted this stage within MARK_SECONDS; the caller then has."""

    def clear(self, stage: str) -> None: ...

    def waiting(self, stage: str) -> int:
        """How many hints lie unfetched."""


class RedisMarks:
    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, retry=None
        )

    def take(self, stage: str) -> bool:
        return bool(self._client.set(f"hint:{stage}", "1", nx=True, px=int(MARK_SECONDS * 1000)))

    def clear(self, stage: str) -> None:
        self._client.delete(f"hint:{stage}")

    def waiting(self, stage: str) -> int:
        return int(self._client.llen(stage))


class FolderMarks:
    """The same without Redis: a file's age. Two producers racing send one hint too many, which is harmless."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, stage: str) -> bool:
        path = self._folder / f"hint-{stage}"
        with contextlib.suppress(FileNotFoundError):
            if abs(time.time() - path.stat().st_mtime) < MARK_SECONDS:
                return False
        path.touch()
        return True

    def clear(self, stage: str) -> None:
        (self._folder / f"hint-{stage}").unlink(missing_ok=True)

    def waiting(self, stage: str) -> int:
        return sum(name.endswith(f".{stage}.msg") for name in os.listdir(self._folder / "messages"))


def marks(settings: Settings) -> Marks:
    if settings.redis_url:
        return RedisMarks(settings.redis_url)
    return FolderMarks(settings.data_dir.absolute() / "broker")


class Producer:
    """Sends hints from one background thread, so that a broker that is down or hangs never holds a request."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery.Celery("cmerwatch-producer", set_as_current=False)
        self._app.conf.update(celery_config(settings) | _impatient(settings))
        self._marks = marks(settings)
        self._changed = threading.Condition()
        self._pending: set[str] = set()  # bounded: stages are few, and a stage stands here once
        self._is_closing = False
        self._rest_until = 0.0
        self._thread: threading.Thread | None = None

    def hint(self, stage: str) -> None:
        """Ask for `stage` to be drained soon. Returns at once and never raises for the broker's sake."""
        if stage not in STAGES:
            raise ValueError(f"{stage!r} is no stage; known: {', '.join(STAGES)}")
        with self._changed:
            self._pending.add(stage)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cmerwatch-hints", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5)
        self._app.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._is_closing)
                if self._is_closing:
                    return
                stage = self._pending.pop()
            self._send(stage)

    def _send(self, stage: str) -> None:
        if time.monotonic() < self._rest_until:
            return
        try:
            if self._may_hint(stage):
                self._app.send_task(DRAIN, args=[stage], queue=stage, retry=False, ignore_result=True)
        except Exception as error:
            # Whatever the broker's client raises, the event is committed and polling finds it.
            self._rest_until = time.monotonic() + BREAKER_SECONDS
            log.warning("hints rest for %g s: %s", BREAKER_SECONDS, type(error).__name__)

    def _may_hint(self, stage: str) -> bool:
        """Whether this stage is ours to hint now, waiting out another's mark.

        That mark may be older than the commit we speak for, and its drain over. One still there after a whole
        lifetime was taken later than our commit, so its drain will see our work.
        """
        end = time.monotonic() + MARK_SECONDS * 1.05
        while not self._marks.take(stage):
            if time.monotonic() > end or self._is_closing:
                return False
            time.sleep(0.02)  # a drain that begins takes the mark away long before its lifetime ends
        return self._marks.waiting(stage) < MOST_WAITING


def _impatient(settings: Settings) -> dict[str, Any]:
    """A worker may wait for its broker; a producer would rather lose the hint."""
    if not settings.redis_url:
        return {}
    seconds = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    once = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    return {"broker_transport_options": _transport(settings) | seconds | once, "broker_pool_limit": 1}


_producer: Producer | None = None


def configure(settings: Settings) -> None:
    """Called once by each edge that accepts events, at its start."""
    global _producer
    close()
    _producer = Producer(settings)


def close() -> None:
    global _producer
    if _producer is not None:
        _producer.close()
        _producer = None


def hint(stage: str) -> None:
    """Wake a worker for `stage`, best effort, after the commit (`db.after_commit`). Silent if not configured."""
    if _producer is not None:
        _producer.hint(stage)
