"""The queue by day, for whoever leads it."""

from __future__ import annotations

import datetime as dt
import uuid

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import ids, models, review_figures, reviews
from tests.core import review_people as people


def test_days_count_what_stands_and_take_the_median_of_the_verdicts(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    ada, bob = (people.reviewer(session, project.id, login) for login in ("ada", "bob"))
    items = people.queue(session, project.id, 5)
    people.queue(session, stranger.id, 2)
    for item, minutes in zip(items[:3], (1, 2, 30), strict=True):
        held = reviews.hold(session, ada, item.id)
        item.leased_at = sa.func.clock_timestamp() - dt.timedelta(minutes=minutes)
        session.flush()
        reviews.submit(session, ada, item.id, held.lease.token, reviews.Answer("cannot_tell"))
    skipped = reviews.hold(session, bob, items[3].id)
    reviews.skip(session, bob, items[3].id, skipped.lease.token, "too dark")
    taken_back = reviews.hold(session, bob, items[4].id)
    reviews.submit(session, bob, items[4].id, taken_back.lease.token, reviews.Answer("correct"))
    reviews.undo(session, bob, items[4].id)
    today, *before = review_figures.days(session, project.id)
    assert (today.day, today.came, today.verdicts, today.skips, today.escalations, today.blind, today.reviewers) == (
        dt.datetime.now(dt.UTC).date(), 5, 3, 1, 0, 0, 2
    )  # fmt: skip
    assert today.seconds is not None
    assert 120 <= today.seconds < 180, "the median, not the mean"
    assert len(before) == review_figures.DAYS - 1
    assert all((day.came, day.verdicts, day.seconds) == (0, 0, None) for day in before)


def test_a_day_belongs_to_utc_and_days_before_the_window_are_not_read(
    session: orm.Session, project: models.Project
) -> None:
    item = people.queue(session, project.id, 1)[0]
    ada = people.reviewer(session, project.id, "ada")
    midnight = dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    for at in (midnight - dt.timedelta(seconds=1), midnight - dt.timedelta(days=review_figures.DAYS)):
        session.add(
            models.Review(
                id=uuid.UUID(int=ids.first(at).int + 1),
                project_id=project.id,
                item_id=item.id,
                event_id=item.event_id,
                reviewer_id=ada.user_id,
                action="escalate",
                lease_token=uuid.uuid4(),
                created_at=at,
            )
        )
    session.flush()
    assert [day.escalations for day in review_figures.days(session, project.id)] == [0, 1] + [0] * 12
