"""The whole product as child processes of one parent: started in order, watched, stopped in the opposite order."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from cmerwatch import errors
from cmerwatch.embedded.children import Child, Stopped

# A child that crashes at once is started again at most this often, so that a broken one does not eat the machine.
RESTART_SECONDS = 2.0


class Server(Protocol):
    """What the stack runs: a database, a broker, or a plain Child behind `Process`."""

    child: Child

    def start(self, deadline_seconds: float = ..., stopping: Callable[[], bool] = ...) -> None: ...

    def stop(self) -> None: ...


@dataclasses.dataclass
class Process:
    """A Child that is ready when `is_ready` says so."""

    child: Child
    is_ready: Callable[[], bool]

    def start(self, deadline_seconds: float = 60, stopping: Callable[[], bool] = lambda: False) -> None:
        self.child.start_ready(self.is_ready, deadline_seconds, stopping)

    def stop(self) -> None:
        self.child.stop()


class Stack:
    """Start servers in the order given; `stop` goes the other way: web, workers, broker, Postgres."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self.servers: list[Server] = []
        self._stopping = threading.Event()
        self._restarted: dict[str, float] = {}

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def start(self, server: Server) -> None:
        """Raises Stopped when asked to stop meanwhile, StartRefused when it does not come up."""
        if self.is_stopping:
            raise Stopped
        self.servers.append(server)
        server.start(stopping=self._stopping.is_set)

    def stop(self) -> None:
        while self.servers:
            self.servers.pop().stop()

    @contextlib.contextmanager
    def running(self) -> Iterator[Stack]:
        """SIGINT, SIGTERM or a closed terminal end the block quietly; whatever ends it, every child is stopped."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
            signals.append(signal.SIGHUP)
        previous = {number: signal.signal(number, lambda *_: self._stopping.set()) for number in signals}
        try:
            with contextlib.suppress(Stopped):
                yield self
        finally:
            self.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Start again what ends, as a worker's own watchdog counts on. Raises Stopped when asked to stop."""
        while not until():
            if self._stopping.wait(0.2):
                raise Stopped
            for server in self.servers:
                if not server.child.is_running:
                    self._restart(server)

    def _restart(self, server: Server) -> None:
        name = server.child.name
        if time.monotonic() - self._restarted.get(name, float("-inf")) < RESTART_SECONDS:
            return
        self._restarted[name] = time.monotonic()
        code = server.child.process.returncode if server.child.process else None
        self.say(f"{name} ended with {code}; starting it again (log: {server.child.log})")
        server.child.kill()  # what it left in its session
        try:
            if isinstance(server, Process):
                server.child.start()  # not waited for: what it needs may have ended too, and is looked at next
            else:
                server.start(stopping=self._stopping.is_set)
        except errors.StartRefused as error:
            self.say(error.message)  # tried again; the others go on meanwhile
