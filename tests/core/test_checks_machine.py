"""Any order of claiming, dying, completing late, failing and replaying counts every event exactly once."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter

import hypothesis
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import checks, db, ledger, models, rollups
from cmerwatch.shapes import Claimed
from tests import factories

OUTCOMES = st.sampled_from(["scored", "scored", "scored", "unscorable", "invalid_image", "model_error"])


class EventsInFlight(stateful.RuleBasedStateMachine):
    """A model beside the database: who holds which event, and which are checked or quarantined."""

    batches = stateful.Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.session: orm.Session = db.SessionLocal()
        self.session.execute(sa.delete(models.Work))  # of the example before
        self.project_id = factories.project(self.session)
        self.checker_id = factories.checker(self.session)
        self.accepted: set[uuid.UUID] = set()
        self.holder: dict[uuid.UUID, uuid.UUID | None] = {}
        self.done: set[uuid.UUID] = set()
        self.quarantined: set[uuid.UUID] = set()

    def teardown(self) -> None:
        self.session.close()

    @stateful.initialize(n=st.integers(1, 8), endpoints=st.lists(st.sampled_from("ab"), min_size=8, max_size=8))
    def begin(self, n: int, endpoints: list[str]) -> None:
        for endpoint in endpoints[:n]:
            self.ingest(endpoint, 0.9)

    @stateful.rule(endpoint=st.sampled_from("ab"), confidence=st.sampled_from([None, 0.5, 0.9]))
    def ingest(self, endpoint: str, confidence: float | None) -> None:
        made = factories.ingest(self.session, self.project_id, endpoint=endpoint, confidence=confidence)
        self.accepted.add(made)
        self.holder[made] = None

    @stateful.rule(target=batches, n=st.integers(1, 20))
    def claim(self, n: int) -> tuple[uuid.UUID, list[Claimed]]:
        token, batch = factories.claim(self.session, n)
        self.session.commit()
        taken = {event.event_id for event in batch}
        assert taken <= self.accepted - self.done - self.quarantined
        assert len(batch) <= n
        assert len({event.attempts for event in batch}) <= 1, "retry levels are never mixed"
        if batch and batch[0].attempts > 1:
            assert len(batch) <= {2: 16, 3: 1, 4: 1}[batch[0].attempts]
        self.holder.update(dict.fromkeys(taken, token))
        gone = {row.event_id for row in checks.quarantined(self.session, self.project_id)} - self.quarantined
        self.quarantined |= gone
        self.holder.update(dict.fromkeys(gone, None))
        return token, batch

    @stateful.rule()
    def time_passes(self) -> None:
        """Every lease runs out, but whoever holds one may still come back."""
        factories.expire(self.session)

    @stateful.rule(batch=batches)
    def extend(self, batch: tuple[uuid.UUID, list[Claimed]]) -> None:
        assert checks.extend(self.session, batch[0], 30) == len(self._held(batch[0]))

    @stateful.rule(batch=batches, data=st.data())
    def complete(self, batch: tuple[uuid.UUID, list[Claimed]], data: st.DataObject) -> None:
        """All or part of a batch, in time or long after the lease was lost, once or again."""
        token, events = batch
        part = data.draw(st.lists(st.sampled_from(events), unique=True)) if events else []
        results = [
            factories.result(event, data.draw(st.sampled_from([0.01, 0.5, 1.0])), outcome=data.draw(OUTCOMES))
            for event in part
        ]
        done = factories.complete(self.session, token, self.checker_id, results, audit_rate=0.3)
        self.session.commit()
        finished = {one.result.event.event_id for one in done}
        assert finished == {event.event_id for event in part} & self._held(token)
        self.done |= finished
        self.holder.update(dict.fromkeys(finished, None))

    @stateful.rule(batch=batches)
    def release(self, batch: tuple[uuid.UUID, list[Claimed]]) -> None:
        held = self._held(batch[0])
        assert checks.release(self.session, batch[0]) == len(held)
        self.holder.update(dict.fromkeys(held, None))

    @stateful.rule(batch=batches)
    def fail(self, batch: tuple[uuid.UUID, list[Claimed]]) -> None:
        held = self._held(batch[0])
        ids = [event.event_id for event in batch[1]]
        assert checks.fail(self.session, batch[0], ids, "it broke") == len(held)
        self.holder.update(dict.fromkeys(held, None))

    @stateful.rule()
    def replay(self) -> None:
        assert checks.replay(self.session, self.project_id) == len(self.quarantined)
        self.quarantined.clear()

    @stateful.invariant()
    def every_event_is_in_exactly_one_place(self) -> None:
        of_ours = models.Check.project_id == self.project_id
        found = Counter(self.session.scalars(sa.select(models.Check.event_id).where(of_ours)))
        assert set(found) == self.done
        assert all(count == 1 for count in found.values())
        open_ = set(self.session.scalars(sa.select(models.Work.event_id)))
        assert open_ == self.accepted - self.done

    @stateful.invariant()
    def rollups_equal_a_recount_and_the_ledger_balances(self) -> None:
        assert rollups.differences(self.session, self.project_id) == []
        now = dt.datetime.now(dt.UTC)
        rows = ledger.hours(self.session, self.project_id, now - dt.timedelta(hours=1), now + dt.timedelta(hours=1))
        assert [row.difference for row in rows] == [0] * len(rows)
        totals = ledger.totals(rows)
        assert totals["accepted"] == len(self.accepted)
        assert totals["quarantined"] == len(self.quarantined)
        assert totals["waiting"] == len(self.accepted - self.done - self.quarantined)

    def _held(self, token: uuid.UUID) -> set[uuid.UUID]:
        return {event_id for event_id, holder in self.holder.items() if holder == token}


def test_whatever_happens_every_event_is_checked_at_most_once_and_counted_right(session: orm.Session) -> None:
    stateful.run_state_machine_as_test(
        EventsInFlight,
        settings=hypothesis.settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
