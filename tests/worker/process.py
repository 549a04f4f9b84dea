"""Worker processes of a test: started with the test's settings, ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cmerwatch import db
from tests import stack

ROOT = Path(__file__).parents[2]
READY = "checking with"


class Worker:
    """`python -m cmerwatch_worker`, or with `own_checker` the same with the tests' checker."""

    def __init__(self, log: Path, *, own_checker: bool = True, **environment: str) -> None:
        self._log = log
        paths = [str(ROOT), str(ROOT / "worker"), str(ROOT / "examples")]
        checker = {"CMERWATCH_CHECKER": "colours:test"} if own_checker else {}
        settings = {f"CMERWATCH_{name.upper()}": value for name, value in environment.items() if name.islower()}
        others = {name: value for name, value in environment.items() if name.isupper()}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("COV_")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker.run" if own_checker else "cmerwatch_worker"],
                env=inherited | {"PYTHONPATH": os.pathsep.join(paths)} | checker | settings | others,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.said
        return READY in self.said

    def wait_ready(self) -> None:
        stack.wait_until(self.is_ready, 60)

    def stop(self) -> int:
        """As a supervisor does; returns the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def worker(log: Path, *, own_checker: bool = True, **environment: str) -> Iterator[Worker]:
    started = Worker(log, own_checker=own_checker, **environment)
    try:
        yield started
    except BaseException:
        print(started.said)  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        if started.process.poll() is None:
            started.stop()


def database_url() -> str:
    """Of the database SessionLocal is bound to, with its password."""
    with db.SessionLocal() as session:
        engine = session.get_bind().engine
        return str(engine.url.render_as_string(hide_password=False))
