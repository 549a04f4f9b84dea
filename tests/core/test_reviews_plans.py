"""How Postgres takes the next item: from the front of an index, however many wait, are held or were answered."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import models, review_leases, reviews
from tests.core import review_people as people

WAITING = 20_000

_CROWD = sa.text(
    """
    INSERT INTO review_items (id, project_id, event_id, checker_id, policy_version, kind, priority, rank, reasons,
        state, skips)
    SELECT gen_random_uuid(), :project, gen_random_uuid(), 1, 1, 'flagged', 0.5, i, '{}', :state, :skips
    FROM generate_series(1, :n) AS i
    """
)

_PAST_REVIEWS = sa.text(
    """
    INSERT INTO reviews (id, project_id, item_id, event_id, reviewer_id, action, reason)
    SELECT gen_random_uuid(), project_id, id, event_id, :me, 'skip', 'blurred' FROM review_items
    WHERE state = 'done' OR rank <= 300
    """
)


def explained(session: orm.Session, statement: str, **values: Any) -> dict[str, Any]:
    asked = sa.text(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS, FORMAT JSON) {statement}")
    plan: dict[str, Any] = session.execute(asked, values).scalar_one()[0]["Plan"]
    return plan


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in nodes(child))]


@pytest.fixture
def values(session: orm.Session, project: models.Project) -> dict[str, Any]:
    """A long queue of which the first 300 rest for `me`, and a long history."""
    me = people.reviewer(session, project.id, "ada").user_id
    for state, skips, n in (("done", 0, WAITING), ("open", 1, WAITING), ("escalated", 2, 500)):
        session.execute(_CROWD, {"project": project.id, "n": n, "state": state, "skips": skips})
    session.execute(_PAST_REVIEWS, {"me": me})
    session.execute(sa.text("ANALYZE review_items, reviews"))
    hour = review_leases.SKIP_REST
    return {"project": project.id, "me": me, "token": uuid.uuid4(), "lease": reviews.LEASE, "rest": hour}


@pytest.mark.parametrize(
    "state, index, most",
    [("open", "ix_review_items_next", 301), ("escalated", "ix_review_items_escalated", 301)],
)
def test_the_next_item_comes_from_the_front_of_its_index(
    session: orm.Session, values: dict[str, Any], state: str, index: str, most: int
) -> None:
    plan = explained(session, review_leases._NEXT[state, False].text, **values)
    found = nodes(plan)
    assert index in {node.get("Index Name") for node in found}
    scans = [node for node in found if "Seq Scan" in node["Node Type"] or "Sort" in node["Node Type"]]
    assert scans == []
    read = [
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in found if node.get("Index Name") == index
    ]
    assert max(read) <= most, "what rests for this reviewer, and one more"
    assert plan["Actual Rows"] == 1


def test_what_one_holds_is_found_without_a_look_at_the_queue(session: orm.Session, values: dict[str, Any]) -> None:
    held = "SELECT * FROM review_items WHERE project_id = :project AND leased_by = :me AND lease_until > now()"
    plan = explained(session, held, project=values["project"], me=values["me"])
    assert {node.get("Index Name") for node in nodes(plan)} - {None} == {"ix_review_items_held"}


def test_a_long_history_of_leases_does_not_lengthen_the_way(session: orm.Session, values: dict[str, Any]) -> None:
    """Leases that ended leave their names behind; the queue is read in the same order all the same."""
    session.execute(
        sa.text(
            "UPDATE review_items SET state = 'leased', leased_by = :me, lease_until = now() - :by WHERE rank > 500"
        ),
        {"me": values["me"], "by": dt.timedelta(hours=1)},
    )
    session.execute(sa.text("ANALYZE review_items"))
    plan = explained(session, review_leases._NEXT["open", False].text, **values)
    assert "ix_review_items_next" in {node.get("Index Name") for node in nodes(plan)}
    assert all("Seq Scan" not in node["Node Type"] for node in nodes(plan))


def test_whether_an_act_was_blind_is_read_from_its_own_item_alone(
    session: orm.Session, project: models.Project, values: dict[str, Any]
) -> None:
    session.execute(sa.update(models.Project).values(blind_since=sa.func.now() - dt.timedelta(hours=1)))
    last = sa.select(models.ReviewItem.id).where(models.ReviewItem.rank == WAITING, models.ReviewItem.state == "open")
    item = session.scalars(last).one()
    leased = {"leased_by": values["me"], "lease_token": values["token"], "state": "leased"}
    times = {"leased_at": sa.func.now(), "lease_until": sa.func.now() + reviews.LEASE}
    session.execute(sa.update(models.ReviewItem).where(models.ReviewItem.id == item).values(leased | times))
    said = reviews._NOTHING_SAID | {"id": uuid.uuid4(), "action": "escalate", "is_bound": True, "item": item}
    wanted = {name: values[name] for name in ("project", "me", "token")}
    plan = explained(session, reviews._ACTS["escalate"].text, **said, **wanted)
    of_reviews = [node for node in nodes(plan) if node.get("Relation Name") == "reviews" and "Alias" in node]
    looked = [node for node in of_reviews if node["Alias"] == "b"]
    assert looked
    assert {node["Node Type"] for node in looked} <= {"Index Scan", "Bitmap Heap Scan", "Index Only Scan"}
    assert session.scalars(sa.select(models.Review.is_blind).where(models.Review.id == said["id"])).one() is True
