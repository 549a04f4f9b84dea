"""Where alerts' messages go: made, changed, tested and disabled by people, with every secret sealed."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, ids, models, notify, outbound, sealing, settings
from cmerwatch.notify import webhook
from cmerwatch.shapes import Notice

SEVERITIES = ("info", "warning", "critical")
MAX_NAME = 100
MOST = 50  # channels of one project

_ENTERED = ("url", "routing_key", "secret")  # of a configuration, what a person gives; the rest is made by us
_DEMO = (("slack", "Demo: Slack"), ("pagerduty", "Demo: PagerDuty"), ("webhook", "Demo: webhook"))


@dataclass(frozen=True, slots=True)
class Made:
    """`secret` is what a webhook's receiver verifies with: this is the only time it is told."""

    channel: models.Channel
    secret: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody entered of a configuration, with an address that the outbound guard lets through: `looked_up`
    makes it."""

    values: Mapping[str, str]


def looked_up(values: Mapping[str, str], kind: str | None = None) -> Given:
    """For whoever changes a channel, before their transaction begins: this may wait seconds for a resolver, and no row
    and no connection should wait with it. Raises Invalid for an address that no message would be sent to, and for
    whatever else is wrong where the kind is known already: that costs no question."""
    if kind is not None:
        _configured(kind, values)
    if url := values.get("url", "").strip():
        outbound.check(url, settings.current().allowed_targets)
    return Given(dict(values))


def create(
    session: orm.Session,
    principal: access.Principal,
    kind: str,
    name: str,
    given: Given,
    min_severity: str = "info",
) -> Made:
    """Raises Invalid naming the field, and Conflict for a name that is taken."""
    checked = _configured(kind, given.values)
    _require_name(name)
    _lock_names(session, principal.project_id)
    _require_free(session, principal.project_id, name)
    _require_severity(min_severity)
    if len(listed(session, principal.project_id)) >= MOST:
        raise errors.Invalid(f"A project has at most {MOST} channels; delete one first.", field="channels", limit=MOST)
    made = _insert(session, principal.project_id, principal.actor, kind, name.strip(), checked, min_severity)
    _audit(session, principal, "create", made, kind=kind)
    return Made(made, checked.get("secret") if kind == "webhook" else None)


def listed(session: orm.Session, project_id: uuid.UUID) -> list[models.Channel]:
    """Those that were not deleted, the oldest first."""
    live = sa.select(models.Channel).where(models.Channel.project_id == project_id, models.Channel.deleted_at.is_(None))
    return list(session.scalars(live.order_by(models.Channel.id)))


def get(session: orm.Session, project_id: uuid.UUID, channel_id: uuid.UUID) -> models.Channel:
    """Raises NotFound for a deleted one and for another project's."""
    found = session.get(models.Channel, channel_id)
    if found is None or found.project_id != project_id or found.deleted_at is not None:
        raise errors.NotFound("There is no such channel in this project.")
    return found


def update(
    session: orm.Session,
    principal: access.Principal,
    channel_id: uuid.UUID,
    *,
    name: str | None = None,
    min_severity: str | None = None,
    given: Given | None = None,
) -> models.Channel:
    """Change what is given; a new configuration enables the channel again."""
    if name is not None:
        _require_name(name)
        _lock_names(session, principal.project_id)  # before the row: two orders would deadlock
    channel = _locked(session, principal, channel_id)
    if name is not None:
        if name.strip().casefold() != channel.name.casefold():
            _require_free(session, principal.project_id, name)
        channel.name = name.strip()
    if min_severity is not None:
        _require_severity(min_severity)
        channel.min_severity = min_severity
    config = given.values if given else {}
    if config:
        _reconfigure(channel, config)
        channel.disabled_at = channel.disabled_reason = None
    changed = {"name": name, "min_severity": min_severity, "config": config}
    _audit(session, principal, "update", channel, fields=[field for field, value in changed.items() if value])
    return channel


def rotate_secret(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> Made:
    """A webhook's new secret; the old one signs beside it for a day, and until then there is no third: Conflict.

    Raises Invalid for other kinds.
    """
    channel = _locked(session, principal, channel_id)
    if channel.kind != "webhook":
        raise errors.Invalid("Only a webhook has a secret of ours to rotate.", field="kind")
    known, now = _opened(channel), dt.datetime.now(dt.UTC)
    if (until := webhook.old_until(known)) is not None and now < until:
        raise errors.Conflict(
            f"The secret before this one goes on signing until {until:%Y-%m-%d %H:%M} UTC, as its receivers were told; "
            "rotate again after that. If a secret leaked, enter one of your own instead: that ends both at once.",
            field="secret",
            until=until.isoformat(),
        )
    config = webhook.rotated(known, now)
    channel.sealed_config = _sealed(channel.id, config)
    _audit(session, principal, "rotate_secret", channel)
    return Made(channel, config["secret"])


def enable(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> models.Channel:
    """Messages that waited go out; of each alert only the newest."""
    channel = _locked(session, principal, channel_id)
    channel.disabled_at = channel.disabled_reason = None
    _audit(session, principal, "enable", channel)
    return channel


def disable(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> models.Channel:
    channel = _locked(session, principal, channel_id)
    channel.disabled_at = channel.disabled_at or dt.datetime.now(dt.UTC)
    channel.disabled_reason = channel.disabled_reason or f"Switched off by {principal.actor.removeprefix('user:')}."
    _audit(session, principal, "disable", channel)
    return channel


def delete(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> None:
    """It stays in the history of deliveries, without its configuration; what it still had to send is not sent."""
    channel = _locked(session, principal, channel_id)
    channel.deleted_at = dt.datetime.now(dt.UTC)
    channel.sealed_config = b""
    mine = models.Delivery.channel_id == channel.id
    session.execute(sa.update(models.Delivery).where(mine).values(sealed_config=None))
    waiting = sa.update(models.Delivery).where(mine, models.Delivery.state == "pending")
    session.execute(waiting.values(state="superseded", last_error="The channel was deleted.", lease_token=None))
    _audit(session, principal, "delete", channel)


def test(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> models.Delivery:
    """Ask a worker to send a test message; the delivery's state tells what became of it. One waits at a time."""
    channel = _locked(session, principal, channel_id)
    waiting = sa.select(models.Delivery).where(
        models.Delivery.channel_id == channel.id, models.Delivery.kind == "test", models.Delivery.state == "pending"
    )
    if found := session.scalars(waiting.limit(1)).first():
        return found
    made = models.Delivery(
        id=ids.uuid7(),
        project_id=channel.project_id,
        channel_id=channel.id,
        kind="test",
        notice=asdict(_test_notice(principal.project_slug)),
    )
    session.add(made)
    _audit(session, principal, "test", channel)
    return made


def ensure_demo(session: orm.Session, project_id: uuid.UUID, project_slug: str, base_url: str) -> str:
    """One channel of each kind, pointed at the sink under `base_url`, which the demo's environment lists as allowed.
    Returns the webhook's secret. A second call points them at where the sink is now."""
    known = {channel.name: channel for channel in listed(session, project_id)}
    secret = ""
    for kind, name in _DEMO:
        given = {"url": f"{base_url}/sink/{project_slug}/{kind}"}
        if kind == "pagerduty":
            given["routing_key"] = "demo0000000000000000000000000000"
        channel = known.get(name)
        if channel is None:
            config = _configured(kind, given)
            channel = _insert(session, project_id, "demo", kind, name, config, "info")
        else:
            config = _reconfigure(channel, given)
        secret = config.get("secret", secret)
    return secret


def _locked(session: orm.Session, principal: access.Principal, channel_id: uuid.UUID) -> models.Channel:
    """As it is now, and nobody else's until the commit: what is read of a configuration is written back whole, and of
    two people at once the one would undo what the other was told. Raises NotFound like `get`."""
    get(session, principal.project_id, channel_id)
    session.get(models.Channel, channel_id, with_for_update=True, populate_existing=True)
    return get(session, principal.project_id, channel_id)


def _configured(kind: str, given: Mapping[str, str]) -> notify.Config:
    if kind not in notify.KINDS:
        raise errors.Invalid(f"`kind` must be one of: {', '.join(notify.KINDS)}.", field="kind")
    return notify.KINDS[kind].configure(given)


def _reconfigure(channel: models.Channel, given: Mapping[str, str]) -> notify.Config:
    """With what is given. What is not given stays, as far as it can be read: under a lost secret key all of it is
    entered again."""
    try:
        known = _opened(channel)
    except sealing.Unreadable:
        known = {}
    kept = {name: value for name, value in known.items() if name in _ENTERED}
    if not given.get("secret", "").strip():  # an empty field of a form; one made here would be told to nobody
        given = {name: value for name, value in given.items() if name != "secret"}
    config = notify.KINDS[channel.kind].configure({**kept, **given})
    # A new address does not end the day that the secret before the last goes on signing; a new secret does.
    rest = {} if "secret" in given else {name: value for name, value in known.items() if name not in _ENTERED}
    config = {**config, **rest}
    channel.sealed_config = _sealed(channel.id, config)
    channel.hint = notify.KINDS[channel.kind].hint(config)
    return config


def _insert(
    session: orm.Session,
    project_id: uuid.UUID,
    actor: str,
    kind: str,
    name: str,
    config: notify.Config,
    min_severity: str,
) -> models.Channel:
    channel_id = ids.uuid7()
    made = models.Channel(
        id=channel_id,
        project_id=project_id,
        kind=kind,
        name=name,
        sealed_config=_sealed(channel_id, config),
        hint=notify.KINDS[kind].hint(config),
        min_severity=min_severity,
        created_by=actor,
    )
    session.add(made)
    session.flush()
    return made


def _sealed(channel_id: uuid.UUID, config: notify.Config) -> bytes:
    return sealing.seal(json.dumps(config).encode(), f"channel:{channel_id}")


def _opened(channel: models.Channel) -> notify.Config:
    config: notify.Config = json.loads(sealing.unseal(channel.sealed_config, f"channel:{channel.id}"))
    return config


def _require_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise errors.Invalid(f"`name` must have 1 to {MAX_NAME} printable characters.", field="name", limit=MAX_NAME)


def _lock_names(session: orm.Session, project_id: uuid.UUID) -> None:
    """Held to the end of the transaction: of two channels named at once, one finds the name taken."""
    key = {"key": f"cmerwatch channels {project_id}"}
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), key)


def _require_free(session: orm.Session, project_id: uuid.UUID, name: str) -> None:
    """The alert pages and the API know a channel by its name. Those that share one since long may go on to."""
    name = name.strip()
    if any(channel.name.casefold() == name.casefold() for channel in listed(session, project_id)):
        raise errors.Conflict(
            f"`name`: this project has a channel called “{name}” already; choose another.", field="name"
        )


def _require_severity(value: str) -> None:
    if value not in SEVERITIES:
        raise errors.Invalid(f"`min_severity` must be one of: {', '.join(SEVERITIES)}.", field="min_severity")


def _audit(
    session: orm.Session, principal: access.Principal, action: str, channel: models.Channel, **details: object
) -> None:
    """Never the configuration; the name is the project's own word and needed to know which one it was."""
    target = f"channel:{channel.id}"
    access.audit(session, principal.actor, f"channel.{action}", target, principal.project_id, **details)


def _test_notice(project: str) -> Notice:
    now = dt.datetime.now(dt.UTC).isoformat()
    link = settings.current().public_url.rstrip("/")
    return Notice(
        alert_id="",
        rule_id="",
        status="test",
        severity="info",
        project=project,
        rule="Test message",
        slice={},
        metric="cmer",
        value=None,
        low=None,
        high=None,
        n=0,
        baseline=None,
        coverage=None,
        condition="Somebody pressed the test button; no alert is firing.",
        window_start=now,
        window_end=now,
        fired_at=now,
        resolved_at=None,
        link=f"{link}/settings/channels",
        events_link=f"{link}/events",
    )
