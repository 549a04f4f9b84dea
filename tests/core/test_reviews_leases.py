"""Who holds what: one live holder per item, leases that end by themselves, and an order in which nothing starves."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import access, db, errors, models, reviews
from cmerwatch import people as accounts
from tests import factories
from tests.core import review_people as people

SIX_MINUTES = dt.timedelta(minutes=6)


@pytest.fixture
def ada(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "ada")


@pytest.fixture
def bob(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "bob")


@pytest.fixture
def lea(session: orm.Session, project: models.Project) -> access.Principal:
    return people.reviewer(session, project.id, "lea", "lead")


def next_id(session: orm.Session, who: access.Principal, **wanted: str) -> uuid.UUID | None:
    found = reviews.next_item(session, who, **wanted)  # type: ignore[arg-type]
    return found and found.item.id


def test_each_next_leases_another_item_to_the_same_person_too(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    items = people.queue(session, project.id, 3)
    assert [next_id(session, who) for who in (ada, bob, ada, bob)] == [*(item.id for item in items), None]


def test_a_lease_lasts_five_minutes_of_the_databases_clock(
    session: orm.Session, project: models.Project, ada: access.Principal
) -> None:
    people.queue(session, project.id, 1)
    found = reviews.next_item(session, ada)
    assert found is not None
    assert found.lease.expires_at == session.scalars(sa.select(sa.func.now())).one() + dt.timedelta(minutes=5)
    assert (found.item.state, found.item.leased_by) == ("leased", ada.user_id)


def test_ten_at_most_are_held(session: orm.Session, project: models.Project, ada: access.Principal) -> None:
    people.queue(session, project.id, 12)
    taken = [reviews.next_item(session, ada) for _ in range(10)]
    with pytest.raises(errors.Conflict, match="hold 10 items"):
        reviews.next_item(session, ada)
    first = taken[0]
    assert first is not None
    reviews.give_back(session, ada, first.item.id, first.lease.token)
    assert next_id(session, ada) == first.item.id


def test_leases_that_ended_are_not_counted_as_held(
    session: orm.Session, project: models.Project, ada: access.Principal
) -> None:
    people.queue(session, project.id, 11)
    for _ in range(10):
        reviews.next_item(session, ada)
    people.pass_time(session, SIX_MINUTES)
    assert reviews.held(session, ada) == []
    assert reviews.next_item(session, ada) is not None


def test_an_abandoned_lease_frees_the_item_and_is_nobodys_fault(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    (item,) = people.queue(session, project.id, 1)
    for _ in range(60):  # elsewhere an item left behind too often vanished
        assert next_id(session, ada) == item.id
        people.pass_time(session, SIX_MINUTES)
    assert next_id(session, bob) == item.id
    assert (item.skips, item.state) == (0, "leased")
    assert reviews.history(session, project.id, item.event_id) == []


def test_a_heartbeat_keeps_the_item(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    people.queue(session, project.id, 1)
    found = reviews.next_item(session, ada)
    assert found is not None
    for _ in range(3):
        people.pass_time(session, dt.timedelta(minutes=4))
        renewed = reviews.heartbeat(session, ada, found.item.id, found.lease.token)
        assert renewed == reviews.Lease(found.lease.token, found.lease.expires_at)
        assert next_id(session, bob) is None
    people.pass_time(session, SIX_MINUTES)
    with pytest.raises(errors.LeaseLost, match="Your lease on this item ended"):
        reviews.heartbeat(session, ada, found.item.id, found.lease.token)


def test_a_page_that_is_loaded_again_finds_what_is_held(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    people.queue(session, project.id, 3)
    taken = [reviews.next_item(session, who) for who in (ada, bob, ada)]
    mine = reviews.held(session, ada)
    assert {one.lease.token for one in mine} == {one.lease.token for one in (taken[0], taken[2]) if one}


def test_an_item_given_back_is_free_at_once(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    people.queue(session, project.id, 1)
    found = reviews.next_item(session, ada)
    assert found is not None
    reviews.give_back(session, ada, found.item.id, found.lease.token)
    assert next_id(session, bob) == found.item.id
    with pytest.raises(errors.LeaseLost, match="bob holds this item"):
        reviews.give_back(session, ada, found.item.id, found.lease.token)


def test_a_named_item_is_held_unless_another_holds_it(
    session: orm.Session, project: models.Project, ada: access.Principal, bob: access.Principal
) -> None:
    _, item = people.queue(session, project.id, 2)
    mine = reviews.hold(session, ada, item.id)
    again = reviews.hold(session, ada, item.id)
    assert again.lease.token == mine.lease.token, "a second tab must not take the lease from the first"
    with pytest.raises(errors.LeaseLost, match="ada holds this item") as refused:
        reviews.hold(session, bob, item.id)
    until = mine.lease.expires_at.isoformat()
    assert refused.value.details == {"holder": "ada", "until": until, "state": "leased", "at": None}


def test_a_lease_that_ended_is_taken_again_under_a_new_token(
    session: orm.Session, project: models.Project, ada: access.Principal
) -> None:
    (item,) = people.queue(session, project.id, 1)
    old = reviews.hold(session, ada, item.id).lease.token
    people.pass_time(session, SIX_MINUTES)
    new = reviews.hold(session, ada, item.id).lease.token
    with pytest.raises(errors.LeaseLost, match="newer lease"):
        reviews.heartbeat(session, ada, item.id, old)
    reviews.submit(session, ada, item.id, new, reviews.Answer("correct"))


@pytest.mark.parametrize("who", ["eve", "ada"])
@pytest.mark.parametrize("call", ["hold", "heartbeat", "give_back", "submit", "skip", "escalate", "undo"])
def test_another_projects_item_does_not_exist(
    session: orm.Session, project: models.Project, stranger: models.Project, call: str, who: str
) -> None:
    """Nor for the very person who holds it, when they act in their other project."""
    (item,) = people.queue(session, project.id, 1)
    ada = people.reviewer(session, project.id, "ada")
    token = reviews.hold(session, ada, item.id).lease.token
    if who == "ada":
        accounts.add(session, stranger.id, "ada", "Ada", "admin")
        eve = people.signed_in(session, stranger.id, session.get_one(models.User, ada.user_id))
    else:
        eve = people.reviewer(session, stranger.id, "eve", "admin")
    more = {"submit": (token, reviews.Answer("correct")), "skip": (token, "no"), "escalate": (token, "no")}
    arguments = more.get(call, () if call in ("hold", "undo") else (token,))
    for wanted in (item.id, uuid.uuid4()):
        with pytest.raises(errors.NotFound, match="no review item"):
            getattr(reviews, call)(session, eve, wanted, *arguments)
    assert next_id(session, eve) is None


def test_leads_alone_may_ask_for_a_kind_or_for_what_was_escalated(
    session: orm.Session, project: models.Project, ada: access.Principal, lea: access.Principal
) -> None:
    people.queue(session, project.id, 1)
    for wanted in ({"state": "escalated"}, {"kinds": ("audit",)}):
        with pytest.raises(errors.Forbidden):
            reviews.next_item(session, ada, **wanted)  # type: ignore[arg-type]
        assert reviews.next_item(session, lea, **wanted) is None  # type: ignore[arg-type]
    assert reviews.next_item(session, lea, kinds=("flagged",)) is not None
    for unknown, field in (({"state": "done"}, "state"), ({"kinds": ("all",)}, "kinds")):
        with pytest.raises(errors.Invalid) as refused:
            reviews.next_item(session, lea, **unknown)  # type: ignore[arg-type]
        assert refused.value.details["field"] == field


def test_a_key_that_acts_as_nobody_holds_nothing(session: orm.Session, project: models.Project) -> None:
    nobody = access.Principal(project.id, project.slug, "key:1", frozenset({"review"}))
    with pytest.raises(errors.Forbidden, match="acts as no person"):
        reviews.next_item(session, nobody)


@hypothesis.settings(max_examples=25, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(made=st.lists(st.tuples(st.integers(0, 3 * 86_400), st.floats(0, 1)), min_size=2, max_size=8))
def test_nothing_starves_whoever_waited_a_day_longer_comes_first(
    session: orm.Session, made: list[tuple[int, float]]
) -> None:
    """Between two items age counts a day at most against priority, so no stream of urgent ones holds an old one up."""
    with session.begin_nested() as example:
        project_id = factories.project(session)
        who = people.reviewer(session, project_id, f"r-{uuid.uuid4()}")
        about = dict(zip(_routed(session, project_id, made), made, strict=True))
        order = []
        while (found := reviews.next_item(session, who)) is not None:
            order.append(about[found.item.event_id])
            reviews.submit(session, who, found.item.id, found.lease.token, reviews.Answer("correct"))
        assert len(order) == len(made), "every item was given out"
        for position, (age, priority) in enumerate(order):
            for later_age, later_priority in order[position + 1 :]:
                assert later_age - age <= 86_400 * (priority - later_priority) + 1
        example.rollback()


def _routed(session: orm.Session, project_id: uuid.UUID, made: list[tuple[int, float]]) -> list[uuid.UUID]:
    """Flagged items of these ages (seconds) and priorities through the real route; returns their events."""
    ids = []
    for age, priority in made:
        one = factories.decided(score=0.0, confidence=0.9, event_id=uuid.uuid4(), project_id=project_id)
        object.__setattr__(one.result.event, "confidence", priority)  # decided as flagged, whatever comes now
        reviews.route(session, [one], 0.0)
        session.execute(
            sa.text(
                "UPDATE review_items SET rank = rank - :age, created_at = created_at - make_interval(secs => :age) "
                "WHERE event_id = :event"
            ),
            {"age": age, "event": one.result.event.event_id},
        )
        ids.append(one.result.event.event_id)
    return ids


def test_people_who_press_next_together_never_share_an_item(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        n = len(people.queue(session, project_id, 40))
        crew = [people.reviewer(session, project_id, f"r{i}") for i in range(8)]
    start = threading.Barrier(len(crew))

    def work(who: access.Principal) -> list[uuid.UUID]:
        start.wait()
        taken = []
        for _ in range(5):
            with db.transaction() as session:
                found = reviews.next_item(session, who)
            taken += [found.item.id] if found else []
        return taken

    with ThreadPoolExecutor(len(crew)) as pool:
        taken = Counter(item for ids in pool.map(work, crew) for item in ids)
    assert set(taken.values()) == {1}
    assert len(taken) == n


def test_one_person_in_many_tabs_still_holds_ten_at_most(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        people.queue(session, project_id, 30)
        ada = people.reviewer(session, project_id, "ada")
    start = threading.Barrier(8)

    def press(_: int) -> int:
        start.wait()
        taken = 0
        for _ in range(3):
            try:
                with db.transaction() as session:
                    taken += reviews.next_item(session, ada) is not None
            except errors.Conflict:
                pass
        return taken

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(press, range(8))) == reviews.MAX_HELD
