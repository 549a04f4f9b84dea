"""Alerts, channels and messages as the alert stage leaves them in the tables, without running it."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, channels, ids, models, sealing
from cmerwatch.shapes import Notice

AT = dt.datetime(2026, 3, 4, 10, 0, tzinfo=dt.UTC)


def notice(**fields: Any) -> Notice:
    """A firing of CMER for one endpoint."""
    known: dict[str, Any] = {
        "alert_id": str(uuid.UUID(int=7)),
        "rule_id": str(uuid.UUID(int=8)),
        "status": "firing",
        "severity": "warning",
        "project": "acme",
        "rule": "CMER over 1.5 times its baseline",
        "slice": {"endpoint": "/describe"},
        "metric": "cmer",
        "value": 0.463,
        "low": 0.422,
        "high": 0.505,
        "n": 570,
        "baseline": 0.084,
        "coverage": 0.99,
        "condition": "CMER over 1.5 times the 7 days before for 1 h",
        "window_start": "2026-03-04T09:00:00+00:00",
        "window_end": "2026-03-04T10:00:00+00:00",
        "fired_at": "2026-03-04T10:00:00+00:00",
        "resolved_at": None,
        "link": "https://cmerwatch.example.com/?window=1h&endpoint=%2Fdescribe",
        "events_link": "https://cmerwatch.example.com/events?show=flagged&endpoint=%2Fdescribe",
        "worst": (("prompt_type", "count", 0.61, 118),),
        "changes": ("The model version changed to 2026.11.2.",),
    }
    return Notice(**(known | fields))


def principal(project_id: uuid.UUID, slug: str = "acme", role: str = "engineer") -> access.Principal:
    return access.Principal(project_id, slug, "user:ada", frozenset(), None, role)


def channel(session: orm.Session, project_id: uuid.UUID, kind: str, url: str, **config: str) -> models.Channel:
    if kind == "pagerduty":
        config = {"routing_key": "R0123456789012345678901234567890"} | config
    number = len(channels.listed(session, project_id)) + 1
    return channels.create(
        session, principal(project_id), kind, f"{kind} {number}", channels.looked_up({"url": url} | config)
    ).channel


def opened(made: models.Channel) -> dict[str, str]:
    """A channel's configuration in plain text, as only the tests and the sender see it."""
    config: dict[str, str] = json.loads(sealing.unseal(made.sealed_config, f"channel:{made.id}"))
    return config


def alert(session: orm.Session, project_id: uuid.UUID, rule_id: uuid.UUID | None = None, **fields: Any) -> models.Alert:
    own_id = ids.uuid7()
    made = models.Alert(
        id=own_id,
        project_id=project_id,
        group_id=fields.pop("group_id", own_id),
        rule_id=rule_id or uuid.uuid4(),
        rule_name="CMER over 1.5 times its baseline",
        rule_version=1,
        severity="warning",
        slice_key="endpoint=/describe",
        slice={"endpoint": "/describe"},
        fired_at=AT,
        **fields,
    )
    session.add(made)
    session.flush()
    return made


def message(
    session: orm.Session, to: models.Channel, about: models.Alert, kind: str = "firing", **fields: Any
) -> models.Delivery:
    """What the alert stage writes with a transition."""
    said = notice(
        status=kind,
        alert_id=str(about.id),
        rule_id=str(about.rule_id),
        group_id=str(about.group_id),
        resolved_at=AT.isoformat() if kind == "resolved" else None,
        **fields,
    )
    made = models.Delivery(
        id=ids.uuid7(),
        project_id=to.project_id,
        channel_id=to.id,
        alert_id=about.id,
        transition_id=uuid.uuid4(),
        kind=kind,
        notice=asdict(said),
    )
    session.add(made)
    session.flush()
    return made


def pass_time(session: orm.Session) -> None:
    """Let waits, leases and rate limits run out, as if time had passed."""
    session.execute(
        sa.text(
            "UPDATE deliveries SET next_at = least(next_at, now()), "
            "lease_until = CASE WHEN lease_until IS NOT NULL THEN now() - interval '1 second' END "
            "WHERE state = 'pending'"
        )
    )
    session.execute(sa.text("UPDATE channels SET next_send_at = least(next_send_at, now())"))
