"""What happens by the clock whether or not events come. Every worker runs it: each task is safe to race and repeat."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from cmerwatch import audits, db, fetches, invitations, models, partitions, people, rollups

log = logging.getLogger(__name__)

NAME = "clock"
BEAT_SECONDS = 15.0  # /readyz and /metrics tell how long ago the last one was
HOUR_SECONDS = 3600.0


def run(engine: sa.Engine, stopping: threading.Event) -> None:
    """Tick until `stopping`; for a thread of its own. A database that is away is tried again at the next beat."""
    hour_due = time.monotonic()
    while True:
        try:
            if time.monotonic() >= hour_due:
                make_partitions(engine)
                purge()
                mend()
                hour_due = time.monotonic() + HOUR_SECONDS
            beat()
        except sa.exc.SQLAlchemyError as error:
            log.warning("the clock missed a beat: %s", type(error).__name__)
        if stopping.wait(BEAT_SECONDS):
            return


def make_partitions(engine: sa.Engine) -> None:
    """Day partitions for the days to come; /readyz counts how many are left."""
    if made := partitions.ensure_ahead(engine):
        log.info("made %d day partitions ahead", made)


def purge() -> None:
    """Sessions and sign-in links that are over: nobody needs their hashes.

    Not `ingest_keys`: an event is found by its sender's id through them for as long as it is kept.
    """
    with db.transaction() as session:
        if gone := people.purge(session) + invitations.purge(session):
            log.info("purged %d sessions, invitations and sign-in links that were over", gone)
        if old := audits.purge(session):
            log.info("purged %d old counts of refused sign-ins", old)
        if alone := fetches.purge(session):
            log.info("purged %d addresses of pictures whose events are gone", alone)


def mend() -> None:
    """Margins of days to which a worker of an older release has added."""
    with db.transaction() as session:
        if days := rollups.mend(session):
            log.info("summed %d days again, to which a worker of an older release had added", days)


def beat() -> None:
    """Note, in the database's time, that a clock runs."""
    with db.transaction() as session:
        upsert = pg.insert(models.Heartbeat).values(name=NAME, at=sa.func.now())
        session.execute(upsert.on_conflict_do_update(index_elements=["name"], set_={"at": sa.func.now()}))
