"""The worker's thread that decides history again, on a real database."""

from __future__ import annotations

import threading
from collections.abc import Callable

import sqlalchemy as sa

from cmerwatch import db, models, policies, redecide
from cmerwatch.settings import Settings
from cmerwatch_worker import redeciding
from tests import factories, stack


def test_the_thread_goes_on_until_all_of_history_is_decided(
    committed: str, configured: Callable[..., Settings]
) -> None:
    settings = configured()
    with db.transaction() as session:
        project_id = factories.project(session)
        factories.ingest_many(session, project_id, 5)
        factories.check_all(session, 0.1)
        version = policies.create(session, project_id, [{"sim_threshold": 0.2}], "user:ada")
        session.execute(sa.update(models.PolicyVersion).values(created_at=sa.func.now() - 2 * redecide.SETTLED))
        redecide.start(session, project_id, version, "user:ada")
    stopping = threading.Event()
    thread = threading.Thread(target=redeciding.run, args=(settings, stopping))
    thread.start()
    try:
        stack.wait_until(is_finished)
    finally:
        stopping.set()
        thread.join(30)
    with db.transaction() as session:
        again = sa.select(sa.func.count()).select_from(models.DecisionRow)
        assert (
            session.scalar(again.where(models.DecisionRow.policy_version == version, models.DecisionRow.flagged)) == 5
        )


def is_finished() -> bool:
    with db.transaction() as session:
        return session.query(models.Redecision).filter(models.Redecision.finished_at.is_not(None)).count() == 1
