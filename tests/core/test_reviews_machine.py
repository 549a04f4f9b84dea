"""Any order of taking, losing, answering, skipping, escalating and taking back: one live holder, one verdict that
counts, nothing lost, nothing rewritten."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

import hypothesis
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import access, db, errors, models, reviews
from tests import factories
from tests.core import review_people as people

WHO = st.sampled_from(["ada", "bob", "cyd", "lea"])
LEAD = "lea"
WHICH = st.integers(0, 5)


@dataclass(frozen=True)
class Holding:
    """What somebody believes to hold; perhaps long lost."""

    who: str
    item: uuid.UUID
    token: uuid.UUID


class QueueAtWork(stateful.RuleBasedStateMachine):
    """A model beside the database: who holds which item, where it stands, and what was said of it."""

    holdings = stateful.Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.session: orm.Session = db.SessionLocal()
        self.project_id = factories.project(self.session)
        self.people = {name: self._person(name) for name in ("ada", "bob", "cyd", LEAD)}
        self.items: list[uuid.UUID] = []
        self.holder: dict[uuid.UUID, Holding] = {}
        self.done: set[uuid.UUID] = set()
        self.log: dict[uuid.UUID, list[tuple[str, str]]] = {}  # the acts that count, oldest first
        self.written: dict[uuid.UUID, list[str]] = {}  # every row ever appended

    def _person(self, name: str) -> access.Principal:
        login = f"{name}-{uuid.uuid4()}"
        return people.reviewer(self.session, self.project_id, login, "lead" if name == LEAD else "reviewer")

    def teardown(self) -> None:
        self.session.close()

    @stateful.initialize(n=st.integers(1, 4))
    def begin(self, n: int) -> None:
        for _ in range(n):
            self.an_item_comes()

    @stateful.precondition(lambda self: len(self.items) < 6)
    @stateful.rule()
    def an_item_comes(self) -> None:
        one = factories.decided(0.01, event_id=uuid.uuid4(), project_id=self.project_id)
        assert reviews.route(self.session, [one], 0.0) == 1
        found = sa.select(models.ReviewItem.id).where(models.ReviewItem.event_id == one.result.event.event_id)
        item = self.session.scalars(found).one()
        self.items.append(item)
        self.log[item], self.written[item] = [], []

    @stateful.rule(target=holdings, who=WHO, escalated=st.booleans())
    def take_next(self, who: str, escalated: bool) -> Holding | stateful.MultipleResults[Holding]:
        if escalated and who != LEAD:
            return stateful.multiple()
        state = "escalated" if escalated else "open"
        found = reviews.next_item(self.session, self.people[who], state=state)
        free = [item for item in self.items if self._is_for(who, item, escalated)]
        if found is None:
            assert free == []
            return stateful.multiple()
        assert found.item.id in free
        return self._held_now(who, found)

    def _is_for(self, who: str, item: uuid.UUID, escalated: bool) -> bool:
        is_free = item not in self.holder and item not in self.done
        return is_free and self._is_escalated(item) == escalated and ("skip", who) not in self.log[item]

    def _is_escalated(self, item: uuid.UUID) -> bool:
        actions = [action for action, _ in self.log[item]]
        return "escalate" in actions or actions.count("skip") >= 2

    def _held_now(self, who: str, held: reviews.Held) -> Holding:
        self.holder[held.item.id] = Holding(who, held.item.id, held.lease.token)
        return self.holder[held.item.id]

    @stateful.rule(target=holdings, who=WHO, which=WHICH)
    def take_this_one(self, who: str, which: int) -> Holding | stateful.MultipleResults[Holding]:
        item = self.items[which % len(self.items)]
        holder = self.holder.get(item)
        others = holder is not None and holder.who != who
        is_barred = self._is_escalated(item) and who != LEAD and holder is None
        may = item not in self.done and not others and not is_barred
        try:
            found = reviews.hold(self.session, self.people[who], item)
        except errors.LeaseLost:
            assert not may
            return stateful.multiple()
        assert may
        assert holder is None or holder.token == found.lease.token
        return self._held_now(who, found)

    @stateful.rule()
    def time_passes(self) -> None:
        """Every lease runs out; whoever held one may still come back."""
        people.pass_time(self.session, dt.timedelta(minutes=6))
        self.holder.clear()

    @stateful.rule(holding=holdings)
    def heartbeat(self, holding: Holding) -> None:
        try:
            reviews.heartbeat(self.session, self.people[holding.who], holding.item, holding.token)
        except errors.LeaseLost:
            assert self.holder.get(holding.item) != holding
        else:
            assert self.holder.get(holding.item) == holding

    @stateful.rule(holding=holdings, action=st.sampled_from(["verdict", "skip", "escalate", "give_back"]))
    def act(self, holding: Holding, action: str) -> None:
        """In time or long after the lease was lost, once or again."""
        is_alive = self.holder.get(holding.item) == holding
        try:
            self._do(action, self.people[holding.who], holding)
        except errors.LeaseLost:
            assert not is_alive
            return
        assert is_alive
        del self.holder[holding.item]
        if action != "give_back":
            self.log[holding.item].append((action, holding.who))
            self.written[holding.item].append(action)
        if action == "verdict":
            self.done.add(holding.item)

    def _do(self, action: str, who: access.Principal, holding: Holding) -> None:
        of = (self.session, who, holding.item, holding.token)
        if action == "verdict":
            reviews.submit(*of, reviews.Answer("cannot_tell"))
        elif action == "give_back":
            reviews.give_back(*of)
        else:
            (reviews.skip if action == "skip" else reviews.escalate)(*of, "why")

    @stateful.rule(target=holdings, who=WHO, which=WHICH)
    def take_back(self, who: str, which: int) -> Holding | stateful.MultipleResults[Holding]:
        item = self.items[which % len(self.items)]
        holder = self.holder.get(item)
        is_own = bool(self.log[item]) and self.log[item][-1][1] == who
        may = is_own and (holder is None or holder.who == who)
        try:
            found = reviews.undo(self.session, self.people[who], item)
        except errors.Conflict:
            assert not may
            return stateful.multiple()
        assert may
        self.log[item].pop()
        self.written[item].append("undo")
        self.done.discard(item)
        return self._held_now(who, found)

    @stateful.invariant()
    def each_item_has_the_one_holder_it_should(self) -> None:
        live = sa.select(models.ReviewItem).where(
            models.ReviewItem.project_id == self.project_id, models.ReviewItem.lease_until > sa.func.now()
        )
        rows = self.session.scalars(live, execution_options={"populate_existing": True}).all()
        found = {row.id: (row.leased_by, row.lease_token) for row in rows}
        wanted = {item: (self.people[one.who].user_id, one.token) for item, one in self.holder.items()}
        assert found == wanted
        for name, person in self.people.items():
            mine = {one.item.id for one in reviews.held(self.session, person)}
            assert mine == {item for item, one in self.holder.items() if one.who == name}

    @stateful.invariant()
    def the_log_only_grows_and_one_verdict_counts(self) -> None:
        rows = self.session.scalars(sa.select(models.Review).where(models.Review.project_id == self.project_id)).all()
        undone = {row.undoes for row in rows}
        for item in self.items:
            acts = sorted((row for row in rows if row.item_id == item), key=lambda row: row.created_at)
            assert [row.action for row in acts] == self.written[item]
            counting = [row for row in acts if row.action == "verdict" and row.id not in undone]
            assert len(counting) == (item in self.done)
            tokens = [row.lease_token for row in acts if row.action != "undo"]
            assert len(tokens) == len(set(tokens)), "a lease is answered once"

    @stateful.invariant()
    def every_item_is_counted_in_one_place(self) -> None:
        found = reviews.counts(self.session, self.project_id)
        left = [item for item in self.items if item not in self.done and item not in self.holder]
        escalated = sum(self._is_escalated(item) for item in left)
        assert (found.held, found.escalated, found.open) == (len(self.holder), escalated, len(left) - escalated)
        assert found.done_today == len(self.done)

    @stateful.rule()
    def whatever_is_left_can_still_be_finished(self) -> None:
        """Tried and rolled back: once every lease ran out, a newcomer and a new lead reach all that is not done."""
        with self.session.begin_nested() as trial:
            people.pass_time(self.session, dt.timedelta(minutes=6))
            for name, state in (("new", "open"), (LEAD, "escalated")):
                who, last = self._person(name), None
                while (found := reviews.next_item(self.session, who, state=state)) is not None:
                    assert found.item.id != last
                    last = found.item.id
                    reviews.submit(self.session, who, last, found.lease.token, reviews.Answer("correct"))
            left = reviews.counts(self.session, self.project_id)
            assert (left.open, left.held, left.escalated) == (0, 0, 0)
            trial.rollback()
        self.session.expire_all()


def test_whatever_reviewers_do_no_item_is_shared_lost_or_answered_twice(session: orm.Session) -> None:
    stateful.run_state_machine_as_test(
        QueueAtWork,
        settings=hypothesis.settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
