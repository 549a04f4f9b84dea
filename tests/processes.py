"""Real web and worker processes for tests: free ports, loopback only, ended by the test that started them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

from cmerwatch.embedded import free_port
from tests.stack import wait_until


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python ARGUMENTS` with the test's environment plus `environment`; ended politely, then for certain."""
    child = subprocess.Popen([sys.executable, *arguments], env=os.environ | environment, stdin=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def web(database_url: str, redis_url: str = "") -> Iterator[str]:
    """A web process on this database; yields its URL once it answers."""
    port = free_port()
    command = ("-m", "uvicorn", "--factory", "cmerwatch_web.app:create_app")
    options = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")
    with running(*command, *options, CMERWATCH_DATABASE_URL=database_url, CMERWATCH_REDIS_URL=redis_url) as child:
        wait_until(lambda: child.poll() is not None or _answers(f"http://127.0.0.1:{port}/healthz"), 60)
        assert child.poll() is None, "the web process ended at its start"
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def worker(database_url: str, redis_url: str = "", **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process on this database."""
    environment = {"CMERWATCH_DATABASE_URL": database_url, "CMERWATCH_REDIS_URL": redis_url}
    with running("-m", "cmerwatch_worker", **environment, **settings) as child:
        yield child


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
