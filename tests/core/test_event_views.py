"""Reading events back: whole, or in thin pages that stay put while events arrive."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, event_views, ids, models, policies
from cmerwatch.event_views import EventFilter
from tests import factories


def found(session: orm.Session, project: models.Project, **wanted: object) -> list[uuid.UUID]:
    page = event_views.find(session, project.id, EventFilter(**wanted))  # type: ignore[arg-type]
    return [row.id for row in page.rows]


# One event


def test_a_waiting_event_has_no_check_yet(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id, output="A cat.", endpoint="/a")
    view = event_views.get(session, project.id, event_id)
    assert (view.event.id, view.event.endpoint, view.body.output, view.state) == (event_id, "/a", "A cat.", "waiting")
    assert (view.check, view.checker, view.decision, view.review) == (None, None, None, None)
    assert view.work is not None
    factories.claim(session)
    assert event_views.get(session, project.id, event_id).state == "waiting", "leased is waiting still"


def test_a_checked_event_shows_check_decision_checker_and_review(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    factories.check_all(session, 0.01)
    view = event_views.get(session, project.id, event_id)
    assert view.state == "checked"
    assert view.check is not None
    assert view.decision is not None
    assert view.checker is not None
    assert view.review is not None
    assert (view.check.score, view.decision.flagged) == (0.01, True)
    assert (view.checker.name, view.review.kind) == ("clip:test:0:1", "flagged")
    assert view.work is None


def test_a_quarantined_event_says_so(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    session.execute(sa.text("UPDATE work SET attempts = 4, last_error = 'it broke'"))
    factories.claim(session)
    session.expire_all()
    view = event_views.get(session, project.id, event_id)
    assert view.state == "quarantined"
    assert view.work is not None
    assert view.work.last_error == "it broke"


def test_another_projects_event_is_as_absent_as_one_that_never_was(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    theirs = factories.ingest(session, stranger.id)
    for event_id in (theirs, uuid.uuid4(), ids.uuid7()):
        with pytest.raises(errors.NotFound, match=f"There is no event {event_id} in this project"):
            event_views.get(session, project.id, event_id)


def test_of_two_checkers_the_newer_is_shown_with_its_own_decision(
    session: orm.Session, project: models.Project
) -> None:
    """The newer one still calibrates: showing the older one's verdict beside its score would be a lie."""
    event_id = factories.ingest(session, project.id)
    older = factories.checker(session, "clip:a")
    factories.check_all(session, 0.01, checker_id=older)
    newer = factories.checker(session, "clip:b")
    session.add(
        models.Check(
            event_id=event_id,
            checker_id=newer,
            project_id=project.id,
            outcome="scored",
            similarity=0.4,
            claims=[],
            reasons=[],
        )
    )
    session.flush()
    view = event_views.get(session, project.id, event_id)
    assert view.check is not None
    assert (view.check.checker_id, view.decision) == (newer, None)
    [row] = event_views.find(session, project.id, EventFilter()).rows
    assert (row.similarity, row.flagged) == (0.4, None)


def test_the_newest_decision_about_a_check_is_shown(session: orm.Session, project: models.Project) -> None:
    event_id = factories.ingest(session, project.id)
    [one] = factories.check_all(session, 0.1)
    session.add(
        models.DecisionRow(
            event_id=event_id, checker_id=one.checker_id, policy_version=2, project_id=project.id, flagged=True,
            low_similarity=True, conf_threshold=0.8, sim_threshold=0.2,
        )
    )  # fmt: skip
    session.flush()
    view = event_views.get(session, project.id, event_id)
    assert view.decision is not None
    assert (view.decision.policy_version, view.decision.flagged) == (2, True)
    assert found(session, project, flagged=True) == [event_id]


# Pages


def test_pages_are_newest_first_and_meet_without_gap_or_overlap(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    made = factories.ingest_many(session, project.id, 7)
    factories.ingest(session, stranger.id)
    pages, cursor = [], None
    while True:
        page = event_views.find(session, project.id, EventFilter(), cursor, limit=3)
        pages.append([row.id for row in page.rows])
        if cursor is None:
            factories.ingest(session, project.id, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert pages == [made[:3:-1], made[3:0:-1], made[:1]]


def test_an_exactly_full_page_is_the_last(session: orm.Session, project: models.Project) -> None:
    factories.ingest_many(session, project.id, 3)
    assert event_views.find(session, project.id, EventFilter(), limit=3).next_cursor is None


def test_no_events_make_an_empty_page(session: orm.Session, project: models.Project) -> None:
    assert event_views.find(session, project.id, EventFilter()) == event_views.Page([], None)


def test_a_foreign_cursor_is_refused(session: orm.Session, project: models.Project) -> None:
    with pytest.raises(errors.Invalid, match="cursor"):
        event_views.find(session, project.id, EventFilter(), "' OR 1=1 --")


def test_a_page_is_thin(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id, output="o" * 5000, prompt="p" * 5000, customer="c")
    [row] = event_views.find(session, project.id, EventFilter()).rows
    assert (len(row.output), len(row.prompt)) == (300, 300)
    assert (row.dimensions["customer"], row.confidence, row.state, row.flagged) == ("c", 0.9, "waiting", None)


def test_each_filter_keeps_what_it_names(session: orm.Session, project: models.Project) -> None:
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    old = factories.ingest(session, project.id, hour_ago, endpoint="/a")
    low = factories.ingest(session, project.id, endpoint="/b", customer="c", event_id="mine")
    factories.check_all(session, lambda event: 0.01 if event.event_id == low else 0.9)
    blank = factories.ingest(session, project.id, endpoint="/b")
    factories.check_all(session, outcome="unscorable")
    waits = factories.ingest(session, project.id, endpoint="/b")
    middle = hour_ago + dt.timedelta(minutes=30)
    assert found(session, project, dimensions={"endpoint": "/a"}) == [old]
    assert found(session, project, dimensions={"endpoint": "/b", "customer": "c"}) == [low]
    assert set(found(session, project, dimensions={"customer": ""})) == {old, blank, waits}
    assert found(session, project, event_key="mine") == [low]
    assert found(session, project, event_key="nobody's") == []
    assert found(session, project, flagged=True) == [low]
    assert set(found(session, project, flagged=False)) == {old, blank, waits}
    assert found(session, project, outcome="unscorable") == [blank]
    assert found(session, project, state="waiting") == [waits]
    assert set(found(session, project, state="checked")) == {old, low, blank}
    assert found(session, project, state="quarantined") == []
    assert found(session, project, end=middle) == [old]
    assert set(found(session, project, start=middle)) == {low, blank, waits}
    assert found(session, project, start=hour_ago, end=middle) == [old]


def test_an_event_key_of_another_project_finds_nothing(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    factories.ingest(session, stranger.id, event_id="theirs")
    assert found(session, project, event_key="theirs") == []


def test_filter_values_are_text_and_never_sql(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id)
    assert found(session, project, dimensions={"endpoint": "' OR ''='"}, event_key="'; DROP TABLE events; --") == []


def test_the_policy_in_force_decides_what_a_page_calls_flagged(session: orm.Session, project: models.Project) -> None:
    policies.create(session, project.id, [{"sim_threshold": 0.5}], "user:ada")
    event_id = factories.ingest(session, project.id)
    factories.check_all(session, 0.4)
    assert found(session, project, flagged=True) == [event_id]
