"""The evaluation thread: it ticks without a broker, beats, and one project's trouble is not another's."""

from __future__ import annotations

import datetime as dt
import threading
import uuid

import pytest

from cmerwatch import alerts, db, models
from cmerwatch_worker import alerting
from tests import factories, stack
from tests.core import watched


def firing_project() -> uuid.UUID:
    with db.transaction() as session:
        project_id = factories.project(session)
        watched.channel(session, project_id)
        watched.rule(session, project_id)
        at = alerts.last_closed(dt.datetime.now(dt.UTC)) - watched.MINUTES_10
        watched.lay(session, project_id, at, 100, flagged=60)
        return project_id


def told(project_id: uuid.UUID) -> list[str]:
    with db.transaction() as session:
        return watched.kinds(session, project_id)


def beats() -> int:
    with db.transaction() as session:
        return session.query(models.Heartbeat).filter_by(name=alerting.NAME).count()


def test_the_thread_fires_with_nothing_but_the_database_and_beats(committed: str) -> None:
    project_id = firing_project()
    stopping = threading.Event()
    thread = threading.Thread(target=alerting.run, args=(stopping,))
    thread.start()
    try:
        stack.wait_until(lambda: told(project_id) == ["firing"])
        stack.wait_until(lambda: beats() == 1)
    finally:
        stopping.set()
        thread.join(30)
    assert not thread.is_alive()


def test_a_project_that_fails_stops_no_other_and_withholds_the_beat(
    committed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat would say that everybody's alerts are watched."""
    broken, sound = firing_project(), firing_project()
    real = alerts.evaluate

    def evaluate(session: object, project_id: uuid.UUID) -> alerts.Evaluated:
        if project_id == broken:
            raise RuntimeError("a rule that nobody can evaluate")
        return real(session, project_id)  # type: ignore[arg-type]

    monkeypatch.setattr(alerts, "evaluate", evaluate)
    alerting.tick()
    assert (told(broken), told(sound), beats()) == ([], ["firing"], 0)
    monkeypatch.setattr(alerts, "evaluate", real)
    alerting.tick()
    assert (told(broken), told(sound), beats()) == (["firing"], ["firing"], 1)


def test_missed_hours_are_caught_up_within_one_tick(committed: str) -> None:
    project_id = firing_project()
    alerting.tick()
    with db.transaction() as session:
        long_ago = alerts.last_closed(dt.datetime.now(dt.UTC)) - dt.timedelta(hours=20)
        session.query(models.AlertState).update({"evaluated_bucket": long_ago})
    alerting.tick()
    with db.transaction() as session:
        [state] = session.query(models.AlertState).filter_by(project_id=project_id)
        assert state.evaluated_bucket >= long_ago + dt.timedelta(hours=20)
