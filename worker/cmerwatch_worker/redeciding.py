"""The thread that decides history again, a step at a time, whenever somebody asked for it."""

from __future__ import annotations

import logging
import threading

import sqlalchemy as sa

from cmerwatch import db, redecide

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
BREATH_SECONDS = 0.05  # between steps, so that checking comes first on a small machine


def run(stopping: threading.Event) -> None:
    """Until `stopping`; safe in any number of processes. A database that is away is tried again at the next poll."""
    while not stopping.is_set():
        try:
            has_more = step()
        except sa.exc.SQLAlchemyError as error:
            log.warning("deciding history again missed a step: %s", type(error).__name__)
            has_more = False
        stopping.wait(BREATH_SECONDS if has_more else POLL_SECONDS)


def step() -> bool:
    with db.transaction() as session:
        return redecide.step(session)
