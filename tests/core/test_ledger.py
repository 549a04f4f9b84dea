"""The ledger: every accepted event is somewhere, hour by hour, and books that disagree show it."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import checks, errors, ledger, models
from tests import factories

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def now() -> dt.datetime:
    """The start of this hour."""
    return dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)


def lay(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    """2 scored, 1 of each other outcome, 1 quarantined, 1 waiting."""
    factories.ingest_many(session, project.id, 2, received_at=now)
    factories.check_all(session)
    for outcome in ("unscorable", "invalid_image", "model_error"):
        factories.ingest(session, project.id, now)
        factories.check_all(session, outcome=outcome)
    poison = factories.ingest(session, project.id, now)
    session.execute(sa.text("UPDATE work SET attempts = 4 WHERE event_id = :id"), {"id": poison})
    assert factories.claim(session)[1] == []
    factories.ingest(session, project.id, now)


def test_every_event_is_in_one_column(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now)
    [row] = ledger.hours(session, project.id, now, now + HOUR)
    assert row == ledger.LedgerRow(now, 7, 2, 1, 1, 1, 1, 1)
    assert row.difference == 0
    assert ledger.totals([row, row])["accepted"] == 14


def test_a_leased_event_is_still_waiting(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    factories.ingest(session, project.id, now)
    factories.claim(session)
    [row] = ledger.hours(session, project.id, now, now + HOUR)
    assert (row.waiting, row.difference) == (1, 0)


def test_replay_moves_an_event_back_to_waiting(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now)
    checks.replay(session, project.id)
    [row] = ledger.hours(session, project.id, now, now + HOUR)
    assert (row.quarantined, row.waiting, row.difference) == (0, 2, 0)


@pytest.mark.parametrize(
    "damage, difference",
    [("DELETE FROM work WHERE state <> 9", 1), ("UPDATE rollups_1h SET scored = scored + 1 WHERE scored > 0", -1)],
    ids=["lost", "counted twice"],
)
def test_books_that_disagree_show_it(
    session: orm.Session, project: models.Project, now: dt.datetime, damage: str, difference: int
) -> None:
    lay(session, project, now)
    session.execute(sa.text(damage))
    [row] = ledger.hours(session, project.id, now, now + HOUR)
    assert row.difference == difference


def test_an_hour_is_utc_whatever_zone_it_is_asked_in(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    factories.ingest_many(session, project.id, 3, received_at=now + dt.timedelta(minutes=45))
    factories.check_all(session)
    india = dt.timezone(dt.timedelta(hours=5, minutes=30))
    start = (now + dt.timedelta(minutes=40)).astimezone(india)  # 10 past a full hour there
    rows = ledger.hours(session, project.id, start, start + dt.timedelta(minutes=1))
    assert [(row.hour, row.accepted, row.difference) for row in rows] == [(now, 3, 0)]


def test_each_hour_has_its_row_and_the_end_is_left_out(
    session: orm.Session, project: models.Project, stranger: models.Project, now: dt.datetime
) -> None:
    for hours in (0, -1, -3):
        factories.ingest(session, project.id, now + hours * HOUR)
    factories.ingest(session, stranger.id, now)
    rows = ledger.hours(session, project.id, now - 3 * HOUR, now)
    assert [(row.hour, row.accepted) for row in rows] == [(now - 3 * HOUR, 1), (now - HOUR, 1)]
    assert ledger.hours(session, project.id, now + HOUR, now + 2 * HOUR) == []


def test_an_hour_begins_and_ends_to_the_microsecond(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    tick = dt.timedelta(microseconds=1)
    for at in (now - HOUR - tick, now - HOUR, now - tick, now):
        factories.ingest(session, project.id, at)
    rows = ledger.hours(session, project.id, now - HOUR, now)
    assert [(row.hour, row.accepted, row.waiting) for row in rows] == [(now - HOUR, 2, 2)]


def test_a_year_of_hours_is_one_question(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    factories.ingest(session, project.id, now)
    [row] = ledger.hours(session, project.id, now - 400 * 24 * HOUR, now + HOUR)
    assert (row.hour, row.accepted, row.difference) == (now, 1, 0)


def test_no_time_at_all_has_no_hours(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    factories.ingest(session, project.id, now)
    assert ledger.hours(session, project.id, now, now) == []


def test_a_count_that_takes_too_long_names_the_window_and_leaves_the_session_usable(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    factories.ingest(session, project.id, now)
    factories.slow_events(session)
    with pytest.raises(errors.Invalid, match="Ask for a shorter time"):
        ledger.hours(session, project.id, now, now + HOUR)
    assert session.scalar(sa.text("SELECT 1")) == 1
