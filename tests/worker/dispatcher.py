"""A process that does nothing but send messages, and begins again each time it is killed, as under a supervisor.

`python -m tests.worker.dispatcher PID_FILE LEASE_SECONDS`; SIGTERM ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from cmerwatch import db, settings
from cmerwatch_worker import dispatch

dispatch.POLL_SECONDS = 0.1


def send_until_told(lease_seconds: float) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    engine = db.configure(settings.current().database_url, pool_size=2)
    dispatch.Dispatcher(settings.current(), lease_seconds).run(stopping)
    engine.dispose()


def main() -> None:
    """Forks before any thread or connection exists, so that a new sender takes milliseconds and not imports."""
    pid_file, lease_seconds = Path(sys.argv[1]), float(sys.argv[2])
    child = 0
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if child:
            os.kill(child, signal.SIGTERM)

    while not ending:
        child = os.fork()
        if child == 0:
            send_until_told(lease_seconds)
            os._exit(0)
        signal.signal(signal.SIGTERM, end)
        pid_file.write_text(str(child))
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
