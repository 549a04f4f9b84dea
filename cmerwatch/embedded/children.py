"""Child processes in sessions of their own: started, waited for, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cmerwatch import errors

LAUNCH = Path(__file__).with_name("launch.py")


class Stopped(Exception):
    """The person asked to stop while something was still starting."""


@dataclasses.dataclass(frozen=True)
class Account:
    """The user a child runs as when the parent is root."""

    uid: int
    gid: int
    reach: bool = False  # keep the right to pass folders that are closed to it


@dataclasses.dataclass
class Child:
    """One process. Start it from the main thread: Linux ties its life to the thread that made it."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    account: Account | None = None
    process: subprocess.Popen[bytes] | None = None
    _log_start: int = 0

    @property
    def pid(self) -> int:
        if self.process is None:
            raise errors.StartRefused(f"{self.name} was not started.")
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with open_log(self.log) as output:
            self._log_start = os.fstat(output).st_size
            self.process = subprocess.Popen(
                launcher(self.argv, self.stop_signal, self.account),
                env=dict(self.env) if self.env is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops them in order
            )

    def wait_ready(
        self, is_ready: Callable[[], bool], deadline_seconds: float, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Return once `is_ready()`. Raises StartRefused with the log's end when it exits or the deadline passes."""
        end = time.monotonic() + deadline_seconds
        while not is_ready():
            if stopping():
                raise Stopped
            if not self.is_running:
                raise errors.StartRefused(f"{self.name} ended while starting: {self.output()}")
            if time.monotonic() > end:
                raise errors.StartRefused(
                    f"{self.name} was not ready after {deadline_seconds:.0f} seconds: {self.output()}"
                )
            time.sleep(0.02)

    def start_ready(
        self,
        is_ready: Callable[[], bool],
        deadline_seconds: float,
        stopping: Callable[[], bool] = lambda: False,
        *,
        retry: Callable[[str], bool] = lambda output: False,
    ) -> None:
        """start() and wait_ready(); begins again while `retry(what it wrote)` says that the failure will pass."""
        end = time.monotonic() + deadline_seconds
        while True:
            self.start()
            try:
                return self.wait_ready(is_ready, end - time.monotonic(), stopping)
            except errors.StartRefused:
                self.kill()
                if time.monotonic() > end or not retry(self.output()):
                    raise
                time.sleep(0.1)

    def output(self, lines: int = 12) -> str:
        """The end of what this run wrote to its log."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(self._log_start)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def stop(self) -> None:
        """Ask, wait for the grace time, then kill it and whatever it left in its session."""
        if self.process is None:
            return
        if self.is_running:
            self.process.send_signal(self.stop_signal)
            # A child stopped by SIGSTOP would never see the request.
            self.process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.grace_seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and its process group at once."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def launcher(argv: Sequence[str], death_signal: signal.Signals, account: Account | None = None) -> list[str]:
    command = [sys.executable, "-I", "-S", str(LAUNCH), "--parent", str(os.getpid())]
    command += ["--death-signal", str(int(death_signal))]
    if account is not None:
        command += ["--uid", str(account.uid), "--gid", str(account.gid)]
        command += ["--reach"] if account.reach else []
    return [*command, "--", *argv]


def account_for(folder: Path, programs: Path) -> Account | None:
    """None unless we are root, which Postgres refuses: then the folder's owner, else `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return None
    owner = folder.stat().st_uid if folder.exists() else 0
    try:
        entry = pwd.getpwuid(owner) if owner else _first_account("postgres", "nobody")
    except KeyError:
        raise errors.StartRefused(
            "Postgres does not run as root and this machine has neither a user `postgres` nor `nobody`. "
            "Start cmerwatch as an ordinary user."
        ) from None
    closed = [path for path in (*folder.absolute().parents, programs, *programs.parents) if not is_open(path)]
    return Account(entry.pw_uid, entry.pw_gid, reach=bool(closed))


def _first_account(*names: str) -> pwd.struct_passwd:
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise KeyError(names)


def is_open(folder: Path) -> bool:
    """Whether any user may pass this folder; one not made yet counts as open, since we make it so."""
    return not folder.exists() or bool(folder.stat().st_mode & 0o001)


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[int]:
    """A descriptor appending to a file only its owner reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# Below the ports that Linux and macOS lend to outgoing connections: one from among those may be lent to somebody
# between now and the moment, seconds later, when a child binds it.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise errors.StartRefused(f"No free port was found between {PORTS.start} and {PORTS.stop - 1}; name one.")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def command_of(pid: int) -> str:
    """The command line of a running process, '' when there is none."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        with contextlib.suppress(OSError):
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    listed = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip()
