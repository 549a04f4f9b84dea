"""The thread that decides again: history whenever somebody asked for it, and what an unfit policy left undecided."""

from __future__ import annotations

import logging
import threading

import sqlalchemy as sa

from cmerwatch import db, judgements, redecide, reviews, withheld
from cmerwatch.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # two looks into tables that are mostly empty; somebody watches the page for it to begin
BREATH_SECONDS = 0.05  # between steps, so that checking comes first on a small machine
BATCH = 256  # withheld checks per transaction: the rollup rows it locks are free again within a fraction of a second


def run(settings: Settings, stopping: threading.Event) -> None:
    """Until `stopping`; safe in any number of processes. A database that is away is tried again at the next poll."""
    while not stopping.is_set():
        try:
            has_more = step(settings)
        except sa.exc.SQLAlchemyError as error:
            log.warning("deciding again missed a step: %s", type(error).__name__)
            has_more = False
        stopping.wait(BREATH_SECONDS if has_more else POLL_SECONDS)


def step(settings: Settings) -> bool:
    """Some of what is withheld, some of history; False when there is nothing to go on with now."""
    has_withheld = decide_withheld(settings) > 0
    with db.transaction() as session:
        return redecide.step(session) or has_withheld


def decide_withheld(settings: Settings) -> int:
    """What a version fits that came into force since: decided, counted and routed exactly once. Returns how many."""
    with db.transaction() as session:
        made = withheld.step(session, BATCH)
        reviews.route(session, made.decided, settings.audit_rate)
        if settings.judge_url:
            judgements.route(session, made.decided, settings.judge_below)
    return made.taken
