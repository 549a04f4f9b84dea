"""The real worker process with the tests' tiny checker registered as `colours:test`, and a way to die on purpose."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import celery

from cmerwatch_worker import app, checkers, runtime
from tests.worker.colours import Colours, frozen

checkers.CHECKERS["colours"] = lambda rest: Colours(frozen())


def die_over(poison: str) -> None:
    """SIGKILL ourselves when an output contains `poison`, as the kernel does to a process that eats its memory."""
    embed = runtime.Runtime.embed

    def fatal(self: runtime.Runtime, prepared: runtime.Prepared) -> runtime.Embedded:
        if any(poison in event.output for event in prepared.events):
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(self, prepared)

    runtime.Runtime.embed = fatal  # type: ignore[method-assign]


def end_while_the_consumer_is_built() -> None:
    """SIGTERM when polling has begun and Celery has not yet installed its handlers."""
    make_app = app.make_app

    def ended(*args: Any) -> celery.Celery:
        os.kill(os.getpid(), signal.SIGTERM)
        return make_app(*args)

    app.make_app = ended  # type: ignore[assignment]


if __name__ == "__main__":
    if os.environ.get("TEST_END_EARLY"):
        end_while_the_consumer_is_built()
    if poison := os.environ.get("TEST_POISON"):
        die_over(poison)
    sys.exit(app.main())
