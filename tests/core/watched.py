"""A week of counts and a window, laid as the worker lays them, for alert rules to be judged on."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_rules, alerts, ids, models, rollups
from cmerwatch.alert_rules import RuleFields
from cmerwatch.shapes import Slice
from tests import factories

NOW = dt.datetime(2026, 3, 18, 12, 0, 20, tzinfo=dt.UTC)  # a Wednesday; the bucket that ends at 12:00 is closed
END = dt.datetime(2026, 3, 18, 12, 0, tzinfo=dt.UTC)
MINUTES_5 = dt.timedelta(minutes=5)
MINUTES_10 = dt.timedelta(minutes=10)
HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)


def lay(
    session: orm.Session,
    project_id: uuid.UUID,
    at: dt.datetime,
    n: int,
    flagged: int = 0,
    *,
    outcome: str = "scored",
    is_late: bool = False,
    confidence: float | None = 0.9,
    is_calibrated: bool = True,
    policy_version: int = 1,
    **dimensions: str,
) -> None:
    """n checked outputs in the bucket of `at`, the first `flagged` of them flagged."""
    about: dict[str, Any] = {
        "project_id": project_id,
        "bucket": at.replace(minute=at.minute - at.minute % 5, second=0, microsecond=0),
        "slice": Slice(**({"endpoint": "/describe"} | dimensions)),
        "is_late": is_late,
        "confidence": confidence,
    }
    checker_id = factories.checker(session)
    if outcome != "scored":
        made = [factories.decided(None, None, outcome=outcome, **about) for _ in range(n)]
    else:
        made = [factories.decided(0.01 if i < flagged else 0.5, is_calibrated=is_calibrated, **about) for i in range(n)]
    under = [replace(one.decision, policy_version=policy_version) for one in made]
    pairs = zip(made, under, strict=True)
    rollups.add(session, [replace(one, checker_id=checker_id, decision=decision) for one, decision in pairs])


def lay_week(
    session: orm.Session, project_id: uuid.UUID, n: int = 40, flagged: int = 2, before: dt.datetime = END, **dims: str
) -> None:
    """The seven days before, n outputs a day at noon; 5 % flagged unless told otherwise."""
    for day in range(1, 8):
        lay(session, project_id, before - day * DAY - MINUTES_5, n, flagged, **dims)


def wait(session: orm.Session, project_id: uuid.UUID, at: dt.datetime, n: int, state: int = 0, **dims: str) -> None:
    """n outputs of the bucket of `at` that nobody has looked at."""
    for _ in range(n):
        session.add(
            models.Work(
                event_id=ids.uuid7(at),
                project_id=project_id,
                bucket=at,
                state=state,
                **{name: "" for name in Slice._fields} | {"endpoint": "/describe"} | dims,
            )
        )
    session.flush()


def rule(session: orm.Session, project_id: uuid.UUID, kind: str = "threshold", **fields: Any) -> models.AlertRule:
    """A rule of the whole project over one hour, 15 %, with no waiting either way, unless told otherwise."""
    known: dict[str, Any] = {"name": "watch", "kind": kind, "keep_firing_seconds": 0}
    if kind == "threshold":
        known["threshold"] = 0.15
    if kind == "baseline":
        known["multiple"] = 2.0
    return alert_rules.create(session, project_id, RuleFields(**(known | fields)), "key:test")


def channel(session: orm.Session, project_id: uuid.UUID, **fields: Any) -> models.Channel:
    known: dict[str, Any] = {"kind": "webhook", "name": "hook", "sealed_config": b"", "hint": "", "created_by": "test"}
    made = models.Channel(id=ids.uuid7(), project_id=project_id, **(known | fields))
    session.add(made)
    session.flush()
    return made


def tick(session: orm.Session, project_id: uuid.UUID, after: dt.timedelta = dt.timedelta(0)) -> alerts.Evaluated:
    """Evaluate as if it were so long after NOW."""
    return alerts.evaluate(session, project_id, NOW + after)


def state(session: orm.Session, made: models.AlertRule, **of: str) -> models.AlertState:
    statement = sa.select(models.AlertState).where(
        models.AlertState.rule_id == made.id, models.AlertState.slice == dict(of)
    )
    return session.scalars(statement.execution_options(populate_existing=True)).one()


def episodes(session: orm.Session, project_id: uuid.UUID) -> list[models.Alert]:
    statement = sa.select(models.Alert).where(models.Alert.project_id == project_id).order_by(models.Alert.id)
    return list(session.scalars(statement))


def messages(session: orm.Session, project_id: uuid.UUID) -> list[models.Delivery]:
    statement = sa.select(models.Delivery).where(models.Delivery.project_id == project_id)
    return list(session.scalars(statement.order_by(models.Delivery.sequence)))


def kinds(session: orm.Session, project_id: uuid.UUID) -> list[str]:
    return [message.kind for message in messages(session, project_id)]
