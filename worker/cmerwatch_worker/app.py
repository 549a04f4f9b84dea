"""One worker process: a Celery consumer that hints wake, a poll that needs no hints, a clock and a watchdog."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import celery
import sqlalchemy as sa
from celery import signals
from celery.exceptions import SecurityWarning
from celery.worker import state as consumer_state

from cmerwatch import blobs, db, errors, ids, migrate, policies, queue
from cmerwatch import settings as settings_module
from cmerwatch.settings import Settings
from cmerwatch_worker import alerting, checkers, clock, contrast, dispatch, fetching, judge, redeciding, tasks, watchdog
from cmerwatch_worker.checkers.base import Checker
from cmerwatch_worker.runtime import Runtime, open_pool
from cmerwatch_worker.tasks import Checking

log = logging.getLogger(__name__)

DATABASE_SECONDS = 60.0  # a database that starts beside us may take this long
RESTART_SECONDS = 1.0
CONNECTIONS = 11  # drain, prepare, complete, leases, poll, copies, calibrate, dispatch, fetch, alerts, redecide
LOOK_BACK = dt.timedelta(days=1)  # for pictures that a worker before this one had no time to make a copy of
CALIBRATE_SECONDS = 5.0  # between looks for a reference that can be frozen, and at what still waits for one
# A batch makes tens of thousands of objects that die by counting; looking for cycles among them every 700 took a
# fourteenth of the time without a model (bench/pipeline.py).
COLLECT_AFTER = 50_000


def main() -> int:
    """Run until SIGTERM or SIGINT; 2 when the start was refused, with the reason in one line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    gc.set_threshold(COLLECT_AFTER)
    try:
        settings = settings_module.current()
        checker = load_checker(settings)
        engine = open_database(settings)
    except errors.CmerwatchError as error:
        print(f"cmerwatch worker: {error.message}", file=sys.stderr)  # noqa: T201 - for the person who started it
        return 2
    queue.configure(settings)  # a fetched picture makes an event ready, for whichever worker is free
    with running(settings, checker, engine) as checking:
        consume(settings, checking)
    queue.close()
    return 0


def load_checker(settings: Settings) -> Checker:
    """Raises StartRefused: an unknown or broken checker, or the demo checker in production."""
    checker = checkers.load(settings.checker)
    if checker.is_demo and settings.environment == "production":
        raise errors.StartRefused(
            f"CMERWATCH_CHECKER={settings.checker} is a demo checker ({checker.label}) and "
            "CMERWATCH_ENVIRONMENT=production refuses it. Set CMERWATCH_CHECKER, for example to "
            "openclip:ViT-B-32-256:datacomp_s34b_b86k."
        )
    return contrast.Contrasting(checker) if settings.contrast else checker


def open_database(settings: Settings) -> sa.Engine:
    """Wait for the database; raises Unavailable when it stays away, StartRefused when it is not migrated."""
    deadline = time.monotonic() + DATABASE_SECONDS
    while True:
        try:
            migrate.check(settings.database_url)
            return db.configure(settings.database_url, pool_size=CONNECTIONS)
        except errors.Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextlib.contextmanager
def running(settings: Settings, checker: Checker, engine: sa.Engine) -> Iterator[Checking]:
    """The stage with its threads; at the end the batch in hand is finished and everything else given back."""
    progress = watchdog.Progress()
    store = blobs.FolderStore(settings.blob_dir)
    second = judge.open_judge(settings, store)
    runtime = Runtime(checker, store, open_pool(settings, checker), progress.touch)
    checking = Checking(runtime, settings, progress)
    fetcher = fetching.Fetcher(settings, store)
    checking.on_hint = fetcher.wake
    stopping = threading.Event()
    stop_at_signals(checking)
    threads = [
        threading.Thread(target=tasks.poll_until, args=(stopping, settings.poll_seconds, checking.poll), name="poll"),
        threading.Thread(target=dispatch.Dispatcher(settings).run, args=(stopping,), name="dispatch"),
        threading.Thread(target=fetcher.run, args=(stopping,), name="fetch"),
        threading.Thread(
            target=tasks.poll_until, args=(stopping, CALIBRATE_SECONDS, checking.calibrate), name="calibrate"
        ),
        threading.Thread(
            target=watchdog.watch, args=(progress, settings.watchdog_seconds, stopping), name="watchdog", daemon=True
        ),
        threading.Thread(target=clock.run, args=(engine, stopping), name="clock", daemon=True),
        threading.Thread(target=alerting.run, args=(stopping,), name="alerts", daemon=True),
        threading.Thread(target=redeciding.run, args=(settings, stopping), name="redecide", daemon=True),
    ]
    if second is not None:
        threads.append(threading.Thread(target=judge.run, args=(second, stopping), name="judge", daemon=True))
    for thread in threads:
        thread.start()
    checking.copies.look_back(ids.first(dt.datetime.now(dt.UTC) - LOOK_BACK))
    log.info("checking with %s (%s)", checker.id, checker.label)
    warn_of_misfits(checking.checker_id)
    try:
        yield checking
    finally:
        checking.stop()
        stopping.set()
        fetcher.wake()
        for thread in threads[:4]:
            thread.join()
        checking.close()
        engine.dispose()


def warn_of_misfits(checker_id: int) -> None:
    """Outputs that this checker scores and the policy in force cannot decide are for a person to mend, and soon."""
    with db.SessionLocal() as session:
        for slug, why in policies.misfits(session, checker_id).items():
            log.warning("outputs of project %s stay undecided: %s (Settings, Policies)", slug, why)


def stop_at_signals(checking: Checking) -> None:
    """Before the first batch is polled: Celery's own handlers come only once its consumer is built.

    A SIGTERM in between ended the process at once and left its batch to the leases. The consumer, built or not yet,
    reads the flag at its next turn.
    """

    def stop(*_: object) -> None:
        checking.stop()
        consumer_state.should_stop = 0

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def consume(settings: Settings, checking: Checking) -> None:
    """Wait for hints in this thread until a signal ends it.

    A broker that is away is waited for. A message that no client can parse breaks the whole consumer (kombu reads
    it before any of our code), so it is built again; polling goes on all the while.
    """
    signals.worker_shutting_down.connect(lambda **_: checking.stop(), weak=False)
    # It warns of root because of pickle, which is not accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    while not checking.is_stopping:
        worker = make_app(settings, checking).Worker(
            pool="solo",  # a GPU survives no fork
            concurrency=1,
            queues=list(queue.STAGES),
            hostname=f"cmerwatch-{os.getpid()}@{socket.gethostname()}",
            loglevel="WARNING",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        worker.start()
        checking.wait_stopping(RESTART_SECONDS)


def make_app(settings: Settings, checking: Checking) -> celery.Celery:
    """The consumer's Celery app: one task, and its argument is only the name of a stage."""
    app = celery.Celery("cmerwatch-worker", set_as_current=False)
    app.conf.update(queue.celery_config(settings) | {"broker_connection_max_retries": None})
    marks = queue.marks(settings)

    @app.task(name=queue.DRAIN, ignore_result=True)  # type: ignore[untyped-decorator]
    def drain(stage: str) -> None:
        """A hint: something may be ready."""
        with contextlib.suppress(Exception):  # the mark only spares hints; it goes by itself after a second
            marks.clear(stage)
        checking.on_hint()
        try:
            checking.drain()
        except Exception as error:
            log.warning("a drain met an obstacle; polling tries again: %s", tasks.where(error))

    return app
