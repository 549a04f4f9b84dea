"""A few decode processes kept warm, each under a wall clock, replaced when they die or have served long enough."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmerwatch_worker.decode import ANSWER, REQUEST, Limits
from cmerwatch_worker.preprocess import Preprocess

WALL_SECONDS = 5.0
BACKGROUND_WALL_SECONDS = 60.0
BACKGROUND_NICE = 10  # a tenth of a core while others want it, a whole one otherwise
START_SECONDS = 30.0  # the first answer also waits for the imports, on a machine that may be starting ten others
# Pillow's C heap only grows, so processes are replaced; to start one costs as much as two hundred images.
IMAGES_PER_PROCESS = 10_000
PIPE_BYTES = 1 << 18  # a megabyte each would meet the limit a user has for all pipes, at thirty decoders
F_SETPIPE_SZ = 1031  # known to Linux alone, and so to its fcntl module
COMMAND = (sys.executable, "-P", "-m", "cmerwatch_worker.decode")


@dataclass(frozen=True, slots=True)
class Job:
    """An image, and whether what people are shown is wanted of it instead of what a checker sees."""

    data: bytes
    wants_display: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels` (size, size, 3) uint8; notes: `animated`, `blank_image`."""

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A WebP to show."""

    display: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Pillow or our limits said no: final, the same next time."""

    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process died or overran its time on this image: to be tried again, alone."""

    reason: str


Outcome = Decoded | Copied | Refused | Crashed


class Pool:
    """`processes` children; `decode` answers in the order asked. `command` is the child's program.

    `background`: children that start when they are first needed, leave the processor to everyone else and have more
    time by the clock for it.
    """

    def __init__(
        self,
        config: Preprocess,
        limits: Limits,
        processes: int,
        command: Sequence[str] = COMMAND,
        *,
        background: bool = False,
    ) -> None:
        self._size = config.size
        nice = BACKGROUND_NICE if background else 0
        given = json.dumps({"preprocess": asdict(config), "limits": asdict(limits), "nice": nice})
        wall = BACKGROUND_WALL_SECONDS if background else WALL_SECONDS
        self._children: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._all = [_Child([*command, given], wall, starts=not background) for _ in range(processes)]
        for child in self._all:
            self._children.put(child)
        self._threads = ThreadPoolExecutor(processes, "decode")

    def decode(self, jobs: Iterable[Job], progress: Callable[[], None] = lambda: None) -> list[Outcome]:
        """One outcome per job, in their order; `progress` is called after each. Raises what `jobs` raises.

        A job is taken when a process is free for it, so that no more images are held than are being decoded.
        """
        waiting = enumerate(jobs)
        taking = threading.Lock()
        found: dict[int, Outcome] = {}

        def work() -> None:
            while True:
                with taking:
                    number, job = next(waiting, (0, None))
                if job is None:
                    return
                found[number] = self._one(job)
                progress()

        for thread in [self._threads.submit(work) for _ in self._all]:
            thread.result()
        return [found[number] for number in range(len(found))]

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self._all:
            child.stop()

    def _one(self, job: Job) -> Outcome:
        child = self._children.get()
        try:
            head, body = child.ask(job)
        except (OSError, TimeoutError, ValueError) as error:
            child.stop()
            return Crashed("decode_timeout" if isinstance(error, TimeoutError) else "decode_crash")
        finally:
            self._children.put(child)
        if "refused" in head:
            return Refused(str(head["refused"]))
        if job.wants_display:
            return Copied(body)
        shaped = np.frombuffer(body, np.uint8).reshape(self._size, self._size, 3)
        return Decoded(shaped, tuple(head["notes"]))


class _Child:
    """One decode process and its pipes; used by one thread at a time."""

    def __init__(self, argv: list[str], wall_seconds: float, *, starts: bool) -> None:
        self._argv = argv
        self._wall_seconds = wall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._served = 0
        if starts:
            self._start()  # at once, so that the first event of an idle worker does not wait for imports

    def ask(self, job: Job) -> tuple[dict[str, Any], bytes]:
        """Raises TimeoutError, or OSError when the process died."""
        if self._process is None or self._served >= IMAGES_PER_PROCESS:
            # Also how a process that died on the image before comes back.
            self.stop()
            self._start()
        deadline = time.monotonic() + (self._wall_seconds if self._served else START_SECONDS)
        self._served += 1
        sink, source = self._pipes()
        _send(sink, [REQUEST.pack(len(job.data), job.wants_display), job.data], deadline)
        # An answer mostly comes in one piece; there is never more than one on its way.
        answer = _receive(source, bytearray(), ANSWER.size, deadline)
        of_head, of_body = ANSWER.unpack_from(answer)
        _receive(source, answer, end := ANSWER.size + of_head + of_body, deadline)
        if len(answer) > end:
            raise ValueError("the decode process answered more than it was asked")
        head = json.loads(answer[ANSWER.size : ANSWER.size + of_head])
        return head, bytes(memoryview(answer)[ANSWER.size + of_head :])

    def stop(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _pipes(self) -> tuple[int, int]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin.fileno(), self._process.stdout.fileno()

    def _start(self) -> None:
        # The child inherits no secrets: only what it needs to find its own code. One BLAS thread, since each
        # reserves address space that RLIMIT_AS counts. Two blocks of at most 16 MB stay Pillow's between images: to
        # get them anew for each takes a tenth of the time of a small one.
        environment = {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OPENBLAS_NUM_THREADS": "1",
            "PILLOW_BLOCKS_MAX": "2",
        }
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a message about hostile bytes may quote them
            env=environment,
            bufsize=0,
        )
        for pipe in self._pipes():
            with contextlib.suppress(OSError):  # an image in one write and one read, where the system grants it
                fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._pipes()[0], False)
        self._served = 0


def _send(descriptor: int, parts: Sequence[bytes], deadline: float) -> None:
    views = [memoryview(part) for part in parts]
    while views:
        try:
            sent = os.writev(descriptor, views)
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT, deadline)
            continue
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views:
            views[0] = views[0][sent:]


def _receive(descriptor: int, received: bytearray, length: int, deadline: float) -> bytearray:
    """`received`, grown to `length` at least."""
    while len(received) < length:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, PIPE_BYTES)
        if not part:
            raise BrokenPipeError("the decode process ended")
        received += part
    return received


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
        raise TimeoutError
