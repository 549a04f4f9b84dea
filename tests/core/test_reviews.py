"""Routing: everything flagged, everything low of unknown confidence, and a fair draw of the rest."""

from __future__ import annotations

import math
import uuid
from collections import Counter

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import models, reviews
from tests import factories


def items(session: orm.Session) -> list[models.ReviewItem]:
    return list(session.scalars(sa.select(models.ReviewItem)))


@pytest.mark.parametrize(
    "confidence, score, kind",
    [
        (0.9, 0.01, "flagged"),
        (None, 0.01, "low_similarity_unconfirmed"),
        (0.5, 0.01, None),
        (0.9, 0.5, None),
        (None, 0.5, None),
    ],
)
def test_what_is_routed_without_an_audit(
    session: orm.Session, project: models.Project, confidence: float | None, score: float, kind: str | None
) -> None:
    event_id = factories.ingest(session, project.id, confidence=confidence)
    factories.check_all(session, score, reasons=("wrong_image",))
    assert [item.kind for item in items(session)] == ([] if kind is None else [kind])
    for item in items(session):
        assert (item.event_id, item.project_id, item.inclusion_probability) == (event_id, project.id, 1.0)
        assert (item.state, item.reasons) == ("open", ["wrong_image"])


def test_a_full_audit_takes_every_unflagged_event(session: orm.Session, project: models.Project) -> None:
    for confidence in (0.9, 0.5, None):
        factories.ingest(session, project.id, confidence=confidence)
    factories.check_all(session, 0.5, audit_rate=1.0)
    assert {(item.kind, item.inclusion_probability) for item in items(session)} == {("audit", 1.0)}
    assert len(items(session)) == 3


@pytest.mark.parametrize("outcome", ["unscorable", "invalid_image", "model_error"])
def test_what_was_not_scored_is_not_routed(session: orm.Session, project: models.Project, outcome: str) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session, outcome=outcome, audit_rate=1.0)
    assert items(session) == []


def test_what_is_undecided_is_not_routed(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session, 0.01, is_calibrated=False, audit_rate=1.0)
    assert items(session) == []


def test_routing_again_makes_no_second_item(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id)
    done = factories.check_all(session, 0.01)
    assert reviews.route(session, done, 0.0) == 0
    assert len(items(session)) == 1


def test_an_audit_item_carries_the_rate_it_was_drawn_with(session: orm.Session, project: models.Project) -> None:
    made = factories.ingest_many(session, project.id, 60)
    factories.check_all(session, 0.5, audit_rate=0.25)
    drawn = {item.event_id for item in items(session)}
    assert drawn == {event_id for event_id in made if reviews.draw(event_id) < 0.25}
    assert {item.inclusion_probability for item in items(session)} == {0.25}


def test_the_draw_is_uniform_and_belongs_to_the_event() -> None:
    ids = [uuid.uuid4() for _ in range(20_000)]
    draws = [reviews.draw(event_id) for event_id in ids]
    assert draws == [reviews.draw(event_id) for event_id in ids]
    assert all(0 <= value < 1 for value in draws)
    tenths = Counter(int(value * 10) for value in draws)
    chi_square = sum((tenths[tenth] - 2000) ** 2 / 2000 for tenth in range(10))
    assert chi_square < 40, "9 degrees of freedom: above 40 once in 100 000 runs"


def test_a_higher_rate_draws_the_same_events_and_more() -> None:
    ids = [uuid.uuid4() for _ in range(500)]
    few, many = ({i for i in ids if reviews.draw(i) < rate} for rate in (0.1, 0.4))
    assert few < many


def test_the_surest_and_least_supported_come_first(session: orm.Session, project: models.Project) -> None:
    for confidence in (0.85, 0.99, None):
        factories.ingest(session, project.id, confidence=confidence)
    factories.check_all(session, lambda event: 0.04 if event.confidence == 0.85 else 0.0)
    order = sorted(items(session), key=lambda item: -item.priority)
    found = [session.get_one(models.Event, item.event_id).geo_p for item in order]
    assert found == [0.99, 0.85, None]
    assert all(0 <= item.priority <= 1 and math.isfinite(item.priority) for item in order)


def test_audit_items_stand_in_no_order_of_suspicion(session: orm.Session, project: models.Project) -> None:
    """Were the suspicious ones looked at first, an audit that is not finished would be no random sample."""
    factories.ingest_many(session, project.id, 4)
    scores = iter([0.06, 0.3, 0.6, 1.0])
    factories.check_all(session, lambda event: next(scores), audit_rate=1.0)
    assert {item.priority for item in items(session)} == {reviews.AUDIT_PRIORITY}
