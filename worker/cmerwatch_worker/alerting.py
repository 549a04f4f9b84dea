"""The evaluation thread: alert rules judged by the clock, whether or not events, the broker or the checker come by."""

from __future__ import annotations

import logging
import threading
import uuid

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from cmerwatch import alerts, db, models

log = logging.getLogger(__name__)

NAME = "alerts"
TICK_SECONDS = 15.0  # buckets close every 300 s; a silence that ends, or a late worker, should not wait for that


def run(stopping: threading.Event) -> None:
    """Tick until `stopping`; for a thread of its own. A database that is away is tried again at the next tick."""
    while True:
        try:
            tick()
        except sa.exc.SQLAlchemyError as error:
            log.warning("the alert rules missed a tick: %s", type(error).__name__)
        if stopping.wait(TICK_SECONDS):
            return


def tick() -> None:
    """Evaluate every project that has rules, then note that alerts are being watched.

    Safe in any number of processes. What goes wrong with one project is logged and stops no other; then no heartbeat
    is written, because somebody's alerts are not watched.
    """
    with db.transaction() as session:
        projects = alerts.projects_to_evaluate(session)
    failed = False
    for project_id in projects:
        try:
            while evaluate(project_id).has_more:
                pass
        except Exception as error:
            failed = True
            log.exception("the alert rules of project %s were not evaluated: %s", project_id, type(error).__name__)
    if not failed:
        beat()


def evaluate(project_id: uuid.UUID) -> alerts.Evaluated:
    with db.transaction() as session:
        return alerts.evaluate(session, project_id)


def beat() -> None:
    with db.transaction() as session:
        upsert = pg.insert(models.Heartbeat).values(name=NAME, at=sa.func.now())
        session.execute(upsert.on_conflict_do_update(index_elements=["name"], set_={"at": sa.func.now()}))
