"""Messages on their way: in order, one at a time, never a trigger after its resolve, never lost."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import channels, db, deliveries, errors, models, notify
from cmerwatch.deliveries import Claimed
from cmerwatch.notify import Dead, Delivered, Retry
from tests import alerting, factories

URL = "https://192.0.2.1/hooks/x"
LEASE = 60.0


@pytest.fixture(autouse=True)
def allowed(configured: object) -> None:
    configured(allow_private_targets="192.0.2.0/24")  # type: ignore[operator]


@pytest.fixture
def webhook(session: orm.Session, project: models.Project) -> models.Channel:
    return alerting.channel(session, project.id, "webhook", URL)


@pytest.fixture
def pagerduty(session: orm.Session, project: models.Project) -> models.Channel:
    return alerting.channel(session, project.id, "pagerduty", URL)


@pytest.fixture
def alert(session: orm.Session, project: models.Project) -> models.Alert:
    return alerting.alert(session, project.id)


def claim(session: orm.Session, n: int = 16, **options: bool) -> list[tuple[Claimed, uuid.UUID]]:
    token = uuid.uuid4()
    return [(one, token) for one in deliveries.claim(session, n, LEASE, token, **options)]


def attempt(session: orm.Session, outcome: notify.Outcome, status: int | None = 200) -> Claimed | None:
    """Claim one message and record this of it, as if time had passed since the last."""
    alerting.pass_time(session)
    for claimed, token in claim(session, 1):
        assert deliveries.record(session, claimed, token, outcome, status)
        return claimed
    return None


def state(session: orm.Session, delivery: models.Delivery) -> str:
    session.refresh(delivery)
    return delivery.state


# Claiming


def test_a_claimed_message_is_nobody_elses_until_its_lease_runs_out(
    session: orm.Session, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    [(first, token)] = claim(session)
    assert (first.id, first.is_first) == (delivery.id, True)
    assert claim(session) == []
    alerting.pass_time(session)
    [(again, other)] = claim(session)
    assert again.id == first.id
    assert not deliveries.record(session, first, token, Delivered(), 204)
    assert deliveries.record(session, again, other, Delivered(), 204)
    assert state(session, delivery) == "delivered"


def test_a_channel_has_one_message_in_the_air_and_others_are_not_held_up(
    session: orm.Session, project: models.Project, webhook: models.Channel, pagerduty: models.Channel
) -> None:
    for channel in (webhook, webhook, pagerduty):
        alerting.message(session, channel, alerting.alert(session, project.id))
    assert {one.channel_id for one, _ in claim(session)} == {webhook.id, pagerduty.id}
    assert claim(session) == []


@pytest.mark.parametrize("kind, gap", [("slack", 1.0), ("pagerduty", 0.6)])
def test_a_services_rate_limit_is_kept(session: orm.Session, project: models.Project, kind: str, gap: float) -> None:
    channel = alerting.channel(session, project.id, kind, URL)
    for _ in range(2):
        alerting.message(session, channel, alerting.alert(session, project.id))
    [(claimed, token)] = claim(session)
    before = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    deliveries.record(session, claimed, token, Delivered(), 200)
    assert claim(session) == []
    session.refresh(channel)
    assert channel.next_send_at >= before + dt.timedelta(seconds=gap)


def test_a_429_holds_the_whole_channel_as_long_as_it_asked(
    session: orm.Session, project: models.Project, webhook: models.Channel
) -> None:
    for _ in range(2):
        alerting.message(session, webhook, alerting.alert(session, project.id))
    [(claimed, token)] = claim(session)
    before = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    deliveries.record(session, claimed, token, Retry("429", 90.0, holds=True), 429)
    session.refresh(webhook)
    assert webhook.next_send_at >= before + dt.timedelta(seconds=90)
    delivery = session.get_one(models.Delivery, claimed.id, populate_existing=True)
    assert delivery.next_at >= before + dt.timedelta(seconds=90)


def test_channels_that_failed_last_can_be_left_for_later(
    session: orm.Session, project: models.Project, webhook: models.Channel, pagerduty: models.Channel
) -> None:
    for channel in (webhook, pagerduty):
        alerting.message(session, channel, alerting.alert(session, project.id))
    webhook.last_error_at = dt.datetime.now(dt.UTC)
    session.flush()
    assert [one.channel_id for one, _ in claim(session, troubled=False)] == [pagerduty.id]
    assert [one.channel_id for one, _ in claim(session, troubled=True)] == [webhook.id]


def test_two_senders_at_once_never_take_the_same_channel(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        for _ in range(10):
            channel = alerting.channel(session, project_id, "webhook", URL)
            for _ in range(3):
                alerting.message(session, channel, alerting.alert(session, project_id))
    took: list[uuid.UUID] = []
    together = threading.Barrier(4)

    def take() -> None:
        together.wait()
        for _ in range(20):
            with db.transaction() as session:
                took.extend(one.channel_id for one, _ in claim(session, 2))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == len(set(took)) == 10


# Failing


def test_a_failure_is_tried_again_by_the_schedule_and_then_dead_with_its_error(
    session: orm.Session, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    for number, wait in enumerate((5, 300, 1800, 7200, 18000, 36000, 36000), start=1):
        before = session.scalars(sa.select(sa.func.clock_timestamp())).one()
        assert attempt(session, Retry("The service answered 500."), 500) is not None
        assert state(session, delivery) == "pending"
        assert delivery.attempts == number
        assert 0.79 * wait <= (delivery.next_at - before).total_seconds() <= 1.21 * wait + 5
        assert claim(session) == []
    assert attempt(session, Retry("The service answered 500."), 500) is not None
    assert state(session, delivery) == "dead"
    assert (delivery.last_status, delivery.last_error) == (500, "The service answered 500.")
    assert attempt(session, Delivered()) is None
    session.refresh(webhook)
    assert webhook.disabled_at is None


def test_a_permanent_error_disables_the_channel_and_says_so_in_the_audit_log(
    session: orm.Session, project: models.Project, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    waiting = alerting.message(session, webhook, alerting.alert(session, project.id))
    attempt(session, Dead("The receiver answered 410.", disables=True), 410)
    assert (state(session, delivery), state(session, waiting)) == ("dead", "pending")
    session.refresh(webhook)
    assert webhook.disabled_reason == "The receiver answered 410."
    entry = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "channel.disable")).one()
    assert (entry.actor, entry.project_id) == ("dispatcher", project.id)
    assert attempt(session, Delivered()) is None
    channels.enable(session, alerting.principal(project.id), webhook.id)
    session.flush()
    assert attempt(session, Delivered()) is not None
    assert state(session, waiting) == "delivered"


def test_an_error_of_the_old_configuration_leaves_a_mended_channel_on(
    session: orm.Session, project: models.Project, webhook: models.Channel, alert: models.Alert
) -> None:
    """Somebody enters a new address while a message to the old one is in the air."""
    alerting.message(session, webhook, alert)
    [(claimed, token)] = claim(session)
    channels.update(
        session, alerting.principal(project.id), webhook.id, given=channels.looked_up({"url": f"{URL}/new"})
    )
    session.flush()
    assert deliveries.record(session, claimed, token, Dead("The receiver answered 410.", disables=True), 410)
    session.refresh(webhook)
    assert (webhook.disabled_at, webhook.last_error) == (None, "The receiver answered 410.")


def test_a_channel_that_was_down_for_long_does_not_stop_all_messages(
    session: orm.Session, project: models.Project, webhook: models.Channel, pagerduty: models.Channel
) -> None:
    """A statement may take 30 seconds: one that compared every waiting message with every other would be ended each
    time, and with it the messages of every project."""
    rows = sa.text(
        """
        WITH made AS (
            INSERT INTO alerts (id, project_id, rule_id, rule_name, rule_version, severity, slice_key, slice, fired_at)
            SELECT gen_random_uuid(), :project, gen_random_uuid(), 'rule', 1, 'warning', '', '{}', now()
            FROM generate_series(1, 10000) RETURNING id
        )
        INSERT INTO deliveries (id, project_id, channel_id, alert_id, transition_id, kind, notice)
        SELECT gen_random_uuid(), :project, channel, id, gen_random_uuid(), kind, '{}'
        FROM made, unnest(CAST(:channels AS uuid[])) AS channel, unnest(ARRAY['firing', 'repeat']) AS kind
        """
    )
    session.execute(rows, {"project": project.id, "channels": [webhook.id, pagerduty.id]})
    session.execute(sa.text("SET LOCAL statement_timeout = '20s'"))
    assert {one.channel_id for one, _ in claim(session)} == {webhook.id, pagerduty.id}
    states = sa.select(models.Delivery.state, sa.func.count()).group_by(models.Delivery.state)
    assert {state: n for state, n in session.execute(states)} == {"pending": 20_000, "superseded": 20_000}


def test_overdue_is_what_a_sender_should_have_taken_and_not_what_waits_for_a_person(
    session: orm.Session, project: models.Project, webhook: models.Channel, pagerduty: models.Channel
) -> None:
    late, held, off, gone = (alerting.channel(session, project.id, "slack", f"{URL}/{n}") for n in range(4))
    for channel in (late, held, off, gone):
        alerting.message(session, channel, alerting.alert(session, project.id))
    channels.disable(session, alerting.principal(project.id), off.id)
    gone.deleted_at = sa.func.now()  # while the message was being written
    session.flush()
    session.execute(sa.text("UPDATE deliveries SET next_at = now() - interval '1 hour'"))
    session.execute(sa.text("UPDATE channels SET next_send_at = now() - interval '1 hour'"))
    held.next_send_at = sa.func.now() + dt.timedelta(hours=1)  # as the service asked
    session.flush()
    found = deliveries.counts(session)
    assert (found.overdue, found.waiting, found.channels_off) == (1, 3, 1)


def test_a_test_is_tried_once_even_on_a_channel_that_is_off(
    session: orm.Session, project: models.Project, webhook: models.Channel
) -> None:
    principal = alerting.principal(project.id)
    channels.disable(session, principal, webhook.id)
    delivery = channels.test(session, principal, webhook.id)
    assert attempt(session, Retry("The service answered 500."), 500) is not None
    assert (state(session, delivery), delivery.last_error) == ("dead", "The service answered 500.")


def test_a_test_nobody_sent_within_a_minute_is_never_sent(
    session: orm.Session, project: models.Project, webhook: models.Channel
) -> None:
    delivery = channels.test(session, alerting.principal(project.id), webhook.id)
    delivery.created_at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=90)
    session.flush()
    assert claim(session) == []
    assert state(session, delivery) == "dead"


def test_pressing_the_button_twice_sends_one_test(
    session: orm.Session, project: models.Project, webhook: models.Channel
) -> None:
    principal = alerting.principal(project.id)
    first = channels.test(session, principal, webhook.id)
    assert channels.test(session, principal, webhook.id).id == first.id
    attempt(session, Delivered())
    assert channels.test(session, principal, webhook.id).id != first.id


def test_a_test_does_not_wait_behind_what_is_queued(
    session: orm.Session, project: models.Project, webhook: models.Channel, alert: models.Alert
) -> None:
    alerting.message(session, webhook, alert)
    delivery = channels.test(session, alerting.principal(project.id), webhook.id)
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert claimed.id == delivery.id


def test_a_stored_error_is_short_and_holds_no_control_characters(
    session: orm.Session, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    attempt(session, Retry("bad\0\x1b[31m" + "x" * 5000), 500)
    session.refresh(delivery)
    assert delivery.last_error is not None
    assert len(delivery.last_error) == deliveries.MAX_ERROR
    assert delivery.last_error.isprintable()


def test_what_a_newer_version_wrote_into_a_notice_is_left_out(
    session: orm.Session, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    delivery.notice = delivery.notice | {"from_the_future": 1}
    session.flush()
    [(claimed, _)] = claim(session)
    assert claimed.notice.worst == (("prompt_type", "count", 0.61, 118),)


def test_another_projects_message_is_not_found(
    session: orm.Session, stranger: models.Project, webhook: models.Channel, alert: models.Alert
) -> None:
    delivery = alerting.message(session, webhook, alert)
    with pytest.raises(errors.NotFound):
        deliveries.get(session, stranger.id, delivery.id)
    assert deliveries.recent(session, stranger.id) == []


# Order and superseding


def test_a_firing_whose_resolve_waits_behind_it_is_told_with_it_in_one(
    session: orm.Session, webhook: models.Channel, alert: models.Alert
) -> None:
    firing = alerting.message(session, webhook, alert)
    resolved = alerting.message(session, webhook, alert, "resolved")
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert (claimed.id, claimed.is_first) == (resolved.id, True)
    assert (state(session, firing), state(session, resolved)) == ("superseded", "delivered")


def test_a_firing_that_failed_once_is_never_sent_after_its_resolve(
    session: orm.Session, pagerduty: models.Channel, alert: models.Alert
) -> None:
    firing = alerting.message(session, pagerduty, alert)
    attempt(session, Retry("no answer"), None)
    resolved = alerting.message(session, pagerduty, alert, "resolved")
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert claimed.id == resolved.id  # the service may have taken the firing, so its end is told
    assert attempt(session, Delivered()) is None
    assert state(session, firing) == "superseded"


def test_a_firing_whose_sender_died_counts_as_told(
    session: orm.Session, pagerduty: models.Channel, alert: models.Alert
) -> None:
    alerting.message(session, pagerduty, alert)
    assert len(claim(session)) == 1
    resolved = alerting.message(session, pagerduty, alert, "resolved")
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert claimed.id == resolved.id


def test_an_incident_that_was_never_opened_is_not_resolved(
    session: orm.Session, pagerduty: models.Channel, alert: models.Alert
) -> None:
    both = [alerting.message(session, pagerduty, alert, kind) for kind in ("firing", "resolved")]
    assert attempt(session, Delivered()) is None
    assert [state(session, one) for one in both] == ["superseded", "superseded"]


def test_a_late_resolve_closes_its_own_incident_and_not_that_of_the_next_episode(
    session: orm.Session, project: models.Project, pagerduty: models.Channel
) -> None:
    """Each group has its own key at the service, so both arrive, whenever."""
    rule = uuid.uuid4()
    first = alerting.alert(session, project.id, rule, resolved_at=alerting.AT)
    alerting.message(session, pagerduty, first)
    attempt(session, Delivered())
    late = alerting.message(session, pagerduty, first, "resolved")
    attempt(session, Retry("no answer"), None)
    again = alerting.message(session, pagerduty, alerting.alert(session, project.id, rule))
    sent = [attempt(session, Delivered()), attempt(session, Delivered())]
    assert [one and one.id for one in sent] == [late.id, again.id]
    assert len({notify.pagerduty.dedup_key(one.notice) for one in sent if one}) == 2


def test_a_webhook_is_told_the_end_of_each_episode_by_its_own_alert(
    session: orm.Session, project: models.Project, webhook: models.Channel
) -> None:
    rule = uuid.uuid4()
    first = alerting.alert(session, project.id, rule, resolved_at=alerting.AT)
    ended = alerting.message(session, webhook, first, "resolved")
    again = alerting.message(session, webhook, alerting.alert(session, project.id, rule))
    sent = [attempt(session, Delivered()), attempt(session, Delivered())]
    assert [one and one.id for one in sent] == [ended.id, again.id]


def test_a_resolve_uses_the_key_its_trigger_was_sent_with(
    session: orm.Session, project: models.Project, pagerduty: models.Channel, alert: models.Alert
) -> None:
    alerting.message(session, pagerduty, alert)
    attempt(session, Delivered())
    old = pagerduty.sealed_config
    key = {"routing_key": "N0123456789012345678901234567890"}
    channels.update(session, alerting.principal(project.id), pagerduty.id, given=channels.looked_up(key))
    alerting.message(session, pagerduty, alert, "resolved")
    claimed = attempt(session, Dead("PagerDuty answered 404.", disables=True), 404)
    assert claimed is not None
    assert claimed.sealed_config == old != pagerduty.sealed_config
    session.refresh(pagerduty)
    assert pagerduty.disabled_at is None  # the new key did not fail
    alerting.message(session, pagerduty, alerting.alert(session, project.id))
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert claimed.sealed_config == pagerduty.sealed_config


def test_a_firing_that_never_arrived_is_retried_with_the_mended_configuration(
    session: orm.Session, project: models.Project, pagerduty: models.Channel, alert: models.Alert
) -> None:
    alerting.message(session, pagerduty, alert)
    attempt(session, Retry("no answer"), None)
    key = {"routing_key": "N0123456789012345678901234567890"}
    channels.update(session, alerting.principal(project.id), pagerduty.id, given=channels.looked_up(key))
    session.flush()
    claimed = attempt(session, Delivered())
    assert claimed is not None
    assert claimed.sealed_config == pagerduty.sealed_config


@dataclass
class Service:
    """What a receiver knows: incidents by group, and the last thing said of each alert."""

    open: dict[str, bool] = field(default_factory=dict)
    last: dict[str, tuple[int, str]] = field(default_factory=dict)

    def take(self, claimed: Claimed, sequence: int) -> None:
        notice = claimed.notice
        before = self.last.get(notice.alert_id, (-1, ""))
        assert sequence >= before[0], "an older message went out after a newer one of its alert"
        assert before[1] != "resolved" or notice.status == "resolved", "something went out after the resolve"
        self.last[notice.alert_id] = (sequence, notice.status)
        self.open[notice.group_id] = notice.status != "resolved"


class Story:
    """Two rules go through firing, repeat, update and resolved, again and again, while senders do what they do."""

    def __init__(self, session: orm.Session, channel: models.Channel) -> None:
        self.session, self.channel, self.service = session, channel, Service()
        self.rules = [uuid.uuid4(), uuid.uuid4()]
        self.alerts: list[models.Alert | None] = [None, None]
        self.newest: dict[str, str] = {}

    def change(self, which: int) -> None:
        """The next message of this rule."""
        told = self.alerts[which] or alerting.alert(self.session, self.channel.project_id, self.rules[which])
        after = {"": "firing", "firing": "repeat", "repeat": "update", "update": "resolved"}
        say = self.newest[str(told.id)] = after[self.newest.get(str(told.id), "")]
        alerting.message(self.session, self.channel, told, say)
        self.alerts[which] = None if say == "resolved" else told
        told.resolved_at = alerting.AT if say == "resolved" else None
        self.session.flush()

    def send(self, how: str) -> bool:
        """One sender's turn; False when there was nothing to send."""
        alerting.pass_time(self.session)
        for claimed, token in claim(self.session, 1):
            delivery = self.session.get_one(models.Delivery, claimed.id)
            if how in ("deliver", "lost answer", "die after"):
                self.service.take(claimed, delivery.sequence)
            if how == "deliver":
                deliveries.record(self.session, claimed, token, Delivered(), 200)
            elif how in ("fail", "lost answer") and delivery.attempts < 5:  # well before it is given up
                deliveries.record(self.session, claimed, token, Retry("no answer"), None)
            return True
        return False


ACTS = ["change", "change", "deliver", "fail", "lost answer", "die", "die after"]


@pytest.mark.parametrize("kind", ["webhook", "pagerduty"])
@given(script=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1)), max_size=25))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_whatever_fails_receivers_end_up_knowing_how_each_alert_stands(
    session: orm.Session, project: models.Project, kind: str, script: list[tuple[str, int]]
) -> None:
    channel = alerting.channel(session, project.id, kind, URL)
    story = Story(session, channel)
    for act, which in script:
        if act == "change":
            story.change(which)
        else:
            story.send(act)
    while story.send("deliver"):
        pass
    left = session.scalars(sa.select(models.Delivery.state).where(models.Delivery.channel_id == channel.id)).all()
    assert set(left) <= {"delivered", "superseded"}
    for group, said in story.newest.items():
        assert story.service.open.get(group, False) == (said != "resolved")
    if kind == "webhook":
        assert {alert_id: status for alert_id, (_, status) in story.service.last.items()} == story.newest
    channels.delete(session, alerting.principal(project.id), channel.id)
