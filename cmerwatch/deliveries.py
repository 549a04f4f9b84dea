"""Messages on their way: claimed under a lease, sent with no transaction open, recorded. At least once, in order.

A channel has one message in flight at a time, whoever sends it: `channels.next_send_at` is pushed past the lease when
a message is claimed and pulled back when its outcome is recorded. So a channel that hangs holds up only itself, and
the services' rate limits are kept by the same column. All times are the database's now().

What is sent of one group of alerts to one channel (`alert_id` is the alert that leads it):

1. Only the newest pending message is ever sent; older ones become `superseded`. So nothing goes out after its resolve.
2. A `resolved` before which nothing was ever tried is sent as "fired and resolved"; a kind that keeps incidents has
   none to close, so there it becomes `superseded` too.
3. Where incidents are kept, every message of a group uses the configuration that its first delivered one used.

"Tried" includes a try whose sender died: the service may have taken it.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, models, notify
from cmerwatch.shapes import Notice, Part

TEST_SECONDS = 60  # a test that nobody sent by then is of no use to whoever pressed the button
MAX_ERROR = 300
ACTOR = "dispatcher"

_INCIDENTS = [name for name, kind in notify.KINDS.items() if kind.has_incidents]

# `d` a delivery, `c` the channel; `e` another delivery of the same channel. What belongs together is told by equal
# keys, not by comparing pairs: a channel that was down for a day may have tens of thousands of messages waiting, and
# pairs of them would take longer than a statement may.
_TRIED = "(e.attempts > 0 OR e.lease_token IS NOT NULL)"
_DUE = (
    "d.state = 'pending' AND d.next_at <= now() AND (d.lease_until IS NULL OR d.lease_until < now()) "
    "AND (c.disabled_at IS NULL OR d.kind = 'test')"
)

_TROUBLED = "(c.last_error_at IS NOT NULL AND (c.last_ok_at IS NULL OR c.last_ok_at <= c.last_error_at))"

_CHANNELS = sa.text(
    f"""
    SELECT c.id FROM channels c
    WHERE c.deleted_at IS NULL AND c.next_send_at <= now()
      AND EXISTS (SELECT 1 FROM deliveries d WHERE d.channel_id = c.id AND {_DUE})
      AND (CAST(:troubled AS boolean) IS NULL OR {_TROUBLED} = :troubled)
    ORDER BY c.next_send_at LIMIT :n FOR UPDATE OF c SKIP LOCKED
    """
)
_SUPERSEDE = sa.text(
    """
    UPDATE deliveries SET state = 'superseded', last_error = 'A newer message of this alert took its place.'
    WHERE id = ANY (ARRAY (
        SELECT id FROM (
            SELECT d.id, d.sequence < max(d.sequence) OVER (PARTITION BY d.channel_id, d.alert_id) AS is_older
            FROM deliveries d
            WHERE d.channel_id = ANY(:channels) AND d.state = 'pending' AND d.alert_id IS NOT NULL
        ) AS waiting WHERE is_older))
    """
)
_NOTHING_TO_RESOLVE = sa.text(
    f"""
    UPDATE deliveries SET state = 'superseded', last_error = 'Nothing was triggered, so there is nothing to resolve.'
    WHERE id = ANY (ARRAY (
        SELECT d.id FROM deliveries d JOIN channels c ON c.id = d.channel_id
        WHERE d.channel_id = ANY(:channels) AND d.state = 'pending' AND d.kind = 'resolved'
          AND c.kind = ANY(:incidents) AND NOT {_TRIED.replace("e.", "d.")} AND NOT EXISTS (
            SELECT 1 FROM deliveries e
            WHERE e.channel_id = d.channel_id AND e.alert_id = d.alert_id AND e.sequence < d.sequence AND {_TRIED})))
    """
)
_STALE_TESTS = sa.text(
    "UPDATE deliveries SET state = 'dead', last_error = 'No worker sent this test in time.' "
    f"WHERE kind = 'test' AND state = 'pending' AND created_at < now() - interval '{TEST_SECONDS} seconds' "
    "AND (lease_until IS NULL OR lease_until < now())"
)
_LEASE = sa.text(
    f"""
    UPDATE deliveries SET lease_token = :token, lease_until = now() + make_interval(secs => :lease),
        sealed_config = coalesce((
            SELECT e.sealed_config FROM deliveries e JOIN channels c ON c.id = e.channel_id
            WHERE e.channel_id = deliveries.channel_id AND e.alert_id = deliveries.alert_id
              AND e.state = 'delivered' AND c.kind = ANY(:incidents) ORDER BY e.sequence LIMIT 1
        ), (SELECT c.sealed_config FROM channels c WHERE c.id = deliveries.channel_id))
    WHERE id = ANY (ARRAY (
        SELECT DISTINCT ON (d.channel_id) d.id FROM deliveries d JOIN channels c ON c.id = d.channel_id
        WHERE d.channel_id = ANY(:channels) AND {_DUE}
        ORDER BY d.channel_id, (d.kind = 'test') DESC, d.sequence))
    RETURNING id, channel_id
    """
)
_LEASED = sa.text(
    """
    SELECT d.id, d.channel_id, d.project_id, d.notice, d.sealed_config, d.attempts, c.kind,
        NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.channel_id = d.channel_id AND e.alert_id = d.alert_id
                    AND e.state = 'delivered') AS is_first
    FROM deliveries d JOIN channels c ON c.id = d.channel_id WHERE d.lease_token = :token AND d.state = 'pending'
    """
)

# The first two read the partial index on what is pending. What waits for a channel that is off waits for a person.
_COUNTS = sa.text(
    """
    SELECT
        (SELECT count(*) FROM deliveries d JOIN channels c ON c.id = d.channel_id
         WHERE d.state = 'pending' AND c.deleted_at IS NULL) AS waiting,
        (SELECT count(*) FROM deliveries d JOIN channels c ON c.id = d.channel_id
         WHERE d.state = 'pending' AND c.deleted_at IS NULL AND (c.disabled_at IS NULL OR d.kind = 'test')
           AND greatest(d.next_at, c.next_send_at) < now() - interval '1 minute') AS overdue,
        (SELECT count(*) FROM deliveries WHERE state = 'dead' AND created_at > now() - interval '1 day') AS dead_today,
        (SELECT count(*) FROM channels WHERE disabled_at IS NOT NULL AND deleted_at IS NULL) AS channels_off
    """
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message leased to a sender."""

    id: uuid.UUID
    channel_id: uuid.UUID
    project_id: uuid.UUID
    kind: str
    stored_notice: Mapping[str, Any]
    is_first: bool
    sealed_config: bytes

    @property
    def notice(self) -> Notice:
        """Read here and not by the claim, which a row that cannot be read would stop for everyone."""
        return notice_of(self.stored_notice)


def claim(
    session: orm.Session, n: int, lease_seconds: float, token: uuid.UUID, *, troubled: bool | None = None
) -> list[Claimed]:
    """Lease the next message of up to n channels to `token`. Commit before sending.

    `troubled`: only of channels whose last message failed, or only of the others; None is both.
    """
    if n <= 0:
        return []
    session.execute(_STALE_TESTS)
    found = session.scalars(_CHANNELS, {"n": n, "troubled": troubled}).all()
    if not found:
        return []
    values: dict[str, Any] = {"channels": list(found), "incidents": _INCIDENTS}
    session.execute(_SUPERSEDE, values)
    session.execute(_NOTHING_TO_RESOLVE, values)
    leased = session.execute(_LEASE, values | {"token": token, "lease": lease_seconds}).all()
    _hold(session, [row.channel_id for row in leased], lease_seconds)
    return [_claimed(row) for row in session.execute(_LEASED, {"token": token})]


def record(
    session: orm.Session, claimed: Claimed, token: uuid.UUID, outcome: notify.Outcome, status: int | None
) -> bool:
    """Note what became of a try. False, and nothing changed, when the lease was lost to another sender meanwhile."""
    # The channel first, as claiming and deleting do: two orders would deadlock.
    channel = session.get(models.Channel, claimed.channel_id, with_for_update=True)
    held = (
        models.Delivery.id == claimed.id,
        models.Delivery.lease_token == token,
        models.Delivery.state == "pending",
    )
    delivery = session.scalar(sa.select(models.Delivery).where(*held).with_for_update())
    if channel is None or delivery is None:
        return False
    now = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    delivery.attempts += 1
    delivery.lease_token = delivery.lease_until = None
    delivery.last_status = status
    channel.next_send_at = now + dt.timedelta(seconds=_pause(claimed.kind, outcome))
    if isinstance(outcome, notify.Delivered):
        delivery.state, delivery.delivered_at, delivery.last_error = "delivered", now, None
        channel.last_ok_at = now
    else:
        _failed(session, channel, delivery, claimed, outcome, now)
    session.flush()
    return True


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the whole installation: overdue messages are those a sender should have taken a minute ago."""

    waiting: int
    overdue: int
    dead_today: int
    channels_off: int


def counts(session: orm.Session) -> Counts:
    """For whoever watches the watcher: an alert that cannot be told is worth an alarm elsewhere."""
    row = session.execute(_COUNTS).one()
    return Counts(row.waiting, row.overdue, row.dead_today, row.channels_off)


STATES = ("pending", "delivered", "dead", "superseded")


def recent(
    session: orm.Session,
    project_id: uuid.UUID,
    limit: int = 50,
    *,
    state: str | None = None,
    before: uuid.UUID | None = None,
) -> list[sa.Row[models.Delivery, str]]:
    """The newest messages with the names of their channels; of that state, and older than `before`. Raises Invalid."""
    if state is not None and state not in STATES:
        raise errors.Invalid(f"`state` must be one of {', '.join(STATES)}.", field="state")
    statement = (
        sa.select(models.Delivery, models.Channel.name)
        .join(models.Channel, models.Channel.id == models.Delivery.channel_id)
        .where(models.Delivery.project_id == project_id)
        .order_by(models.Delivery.id.desc())
        .limit(limit)
    )
    if state is not None:
        statement = statement.where(models.Delivery.state == state)
    if before is not None:
        statement = statement.where(models.Delivery.id < before)
    return list(session.execute(statement))


def get(session: orm.Session, project_id: uuid.UUID, delivery_id: uuid.UUID) -> models.Delivery:
    """As it is now. Raises NotFound for another project's too."""
    found = session.get(models.Delivery, delivery_id, populate_existing=True)
    if found is None or found.project_id != project_id:
        raise errors.NotFound("There is no such message in this project.")
    return found


def notice_of(stored: Mapping[str, Any]) -> Notice:
    """What a newer version wrote beside the known fields is left out, so that old and new workers run together."""
    known = _known(Notice, stored)
    worst = tuple((str(name), str(value), float(rate), int(n)) for name, value, rate, n in known.pop("worst", ()))
    changes = tuple(known.pop("changes", ()))
    parts = tuple(Part(**_known(Part, one)) for one in known.pop("parts", ()))
    return Notice(**known, worst=worst, changes=changes, parts=parts)


def _known(shape: type[Notice | Part], stored: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: stored[field.name] for field in fields(shape) if field.name in stored}


def _claimed(row: sa.Row[Any]) -> Claimed:
    return Claimed(
        id=row.id,
        channel_id=row.channel_id,
        project_id=row.project_id,
        kind=row.kind,
        stored_notice=row.notice,
        is_first=row.is_first,
        sealed_config=bytes(row.sealed_config),
    )


def _hold(session: orm.Session, channel_ids: list[uuid.UUID], seconds: float) -> None:
    until = sa.func.now() + dt.timedelta(seconds=seconds)
    session.execute(sa.update(models.Channel).where(models.Channel.id.in_(channel_ids)).values(next_send_at=until))


def _pause(kind: str, outcome: notify.Outcome) -> float:
    """Until the channel's next message: its rate limit, or what the service asked for on behalf of all of them."""
    gap = notify.KINDS[kind].gap
    if isinstance(outcome, notify.Retry) and outcome.holds and outcome.after is not None:
        return max(gap, min(outcome.after, 3600))
    return gap


def _failed(
    session: orm.Session,
    channel: models.Channel,
    delivery: models.Delivery,
    claimed: Claimed,
    outcome: notify.Retry | notify.Plainer | notify.Dead,
    now: dt.datetime,
) -> None:
    reason = storable(outcome.reason)
    delivery.last_error = channel.last_error = reason
    channel.last_error_at = now
    after = _next_try(delivery, claimed.kind, outcome)
    if after is None:
        delivery.state = "dead"
    else:
        delivery.next_at = now + dt.timedelta(seconds=after)
    # Somebody may have mended the channel while this was in the air.
    is_current = claimed.sealed_config == bytes(channel.sealed_config)
    if isinstance(outcome, notify.Dead) and outcome.disables and is_current and channel.disabled_at is None:
        channel.disabled_at, channel.disabled_reason = now, reason
        access.audit(session, ACTOR, "channel.disable", f"channel:{channel.id}", channel.project_id, reason=reason)


def _next_try(
    delivery: models.Delivery, kind: str, outcome: notify.Retry | notify.Plainer | notify.Dead
) -> float | None:
    """Seconds, or None for dead. A test is tried once: a person is waiting for its answer."""
    if delivery.kind == "test" or not isinstance(outcome, notify.Retry):
        return None
    spread = random.uniform(-1, 1)
    return notify.delay(notify.KINDS[kind].schedule, delivery.attempts, outcome.after, spread)


def storable(text: str) -> str:
    """Short, and without the characters that Postgres or a page could not hold."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_ERROR]
