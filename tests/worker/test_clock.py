"""The clock's hourly work, on a real database, with its own thread."""

from __future__ import annotations

import datetime as dt
import threading

import sqlalchemy as sa

from cmerwatch import access, db, models, policies, rollups
from cmerwatch_worker import clock
from tests import factories, stack


def test_the_clock_purges_what_is_over_at_its_start_and_beats(committed: str) -> None:
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    with db.transaction() as session:
        project_id = access.create_project(session, "acme").id
        user_id = access.create_user(session, project_id, "ann", "Ann", "admin").id
        for _ in range(3):
            access.open_console_session(session, user_id)
        session.execute(sa.update(models.ConsoleSession).values(expires_at=long_ago))
        access.open_console_session(session, user_id)
    stopping, engine = threading.Event(), sa.create_engine(committed.replace("postgresql://", "postgresql+psycopg://"))
    thread = threading.Thread(target=clock.run, args=(engine, stopping))
    thread.start()
    try:
        stack.wait_until(lambda: left() == 1)
        stack.wait_until(lambda: beats() == 1)
    finally:
        stopping.set()
        thread.join(30)
        engine.dispose()


def test_the_clock_sums_again_what_an_older_release_added(committed: str) -> None:
    with db.transaction() as session:
        project = access.create_project(session, "acme")
        policies.ensure_default(session, project.id)
        factories.ingest_many(session, project.id, 3)
        factories.check_all(session)
        for table in (models.Margin5m, models.Margin1h, models.Margin1d, models.Rollup1d):
            session.execute(sa.delete(table))
        assert rollups.differences(session, project.id) != []
    clock.mend()
    with db.transaction() as session:
        assert rollups.differences(session, project.id) == []


def left() -> int:
    with db.transaction() as session:
        return session.query(models.ConsoleSession).count()


def beats() -> int:
    with db.transaction() as session:
        return session.query(models.Heartbeat).filter_by(name=clock.NAME).count()
