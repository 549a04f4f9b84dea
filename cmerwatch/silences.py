"""Asked-for quiet: while a silence lasts no message goes out for what it matches; states and history go on."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, ids, models
from cmerwatch.shapes import DIMENSIONS

LONGEST = dt.timedelta(days=90)
MAX_REASON, MAX_VALUE = 10_000, 300
KEPT_IN_SIGHT = dt.timedelta(days=7)  # how long a list shows what is over


def create(
    session: orm.Session,
    project_id: uuid.UUID,
    *,
    created_by: str,
    reason: str,
    ends_at: dt.datetime,
    starts_at: dt.datetime | None = None,
    rule_id: uuid.UUID | None = None,
    match: Mapping[str, str] | None = None,
) -> models.Silence:
    """Raises Invalid naming the field, NotFound for a rule of another project."""
    now = dt.datetime.now(dt.UTC)
    starts_at = starts_at or now
    match = dict(match or {})
    if not reason.strip() or len(reason) > MAX_REASON:
        raise errors.Invalid(
            f"`reason` says why nobody is to be told: 1 to {MAX_REASON} characters.", field="reason", limit=MAX_REASON
        )
    if ends_at <= max(starts_at, now):
        raise errors.Invalid("`ends_at` must lie in the future and after `starts_at`.", field="ends_at")
    if ends_at - starts_at > LONGEST or starts_at - now > LONGEST:
        raise errors.Invalid(
            f"`ends_at` is too far off: a silence lasts at most {LONGEST.days} days.",
            field="ends_at",
            limit=LONGEST.days,
        )
    for name, value in match.items():
        if name not in DIMENSIONS:
            raise errors.Invalid(
                f"`match` names {name[:60]!r}; the dimensions are {', '.join(DIMENSIONS)}.", field="match"
            )
        if not isinstance(value, str) or len(value) > MAX_VALUE:
            raise errors.Invalid(
                f"`match` must map {name} to text of at most {MAX_VALUE} characters.", field="match", limit=MAX_VALUE
            )
    if rule_id is not None:
        _require_rule(session, project_id, rule_id)
    silence = models.Silence(
        id=ids.uuid7(),
        project_id=project_id,
        rule_id=rule_id,
        match=match,
        starts_at=starts_at,
        ends_at=ends_at,
        reason=reason.strip(),
        created_by=created_by,
    )
    session.add(silence)
    session.flush()
    return silence


def _require_rule(session: orm.Session, project_id: uuid.UUID, rule_id: uuid.UUID) -> None:
    rule = session.get(models.AlertRule, rule_id)
    if rule is None or rule.project_id != project_id or rule.deleted_at is not None:
        raise errors.NotFound(f"There is no alert rule {rule_id} in this project.", id=str(rule_id))


def end(session: orm.Session, project_id: uuid.UUID, silence_id: uuid.UUID) -> models.Silence:
    """Over from now on; one that has not begun never does. Raises NotFound. Ending twice changes nothing."""
    silence = session.get(models.Silence, silence_id)
    if silence is None or silence.project_id != project_id:
        raise errors.NotFound(f"There is no silence {silence_id} in this project.", id=str(silence_id))
    now = dt.datetime.now(dt.UTC)
    if silence.ends_at > now:
        silence.ends_at = now
        silence.starts_at = min(silence.starts_at, now)
        session.flush()
    return silence


def find(session: orm.Session, project_id: uuid.UUID, limit: int = 200) -> list[models.Silence]:
    """Those that last or are to come, and what ended lately; the one that ends last first."""
    now = dt.datetime.now(dt.UTC)
    return list(
        session.scalars(
            sa.select(models.Silence)
            .where(models.Silence.project_id == project_id, models.Silence.ends_at > now - KEPT_IN_SIGHT)
            .order_by(models.Silence.ends_at.desc(), models.Silence.id.desc())
            .limit(limit)
        )
    )


def lasting(session: orm.Session, project_id: uuid.UUID, at: dt.datetime) -> list[models.Silence]:
    """Those in force at that moment, the longest first."""
    return list(
        session.scalars(
            sa.select(models.Silence)
            .where(models.Silence.project_id == project_id, models.Silence.starts_at <= at, models.Silence.ends_at > at)
            .order_by(models.Silence.ends_at.desc())
        )
    )


def covering(silences: Iterable[models.Silence], rule_id: uuid.UUID, of: Mapping[str, str]) -> models.Silence | None:
    """The first that names this rule, or none, and whose every dimension has this slice's value.

    A slice without the dimension is not covered: a silence for one endpoint must not hush the whole project.
    """
    for silence in silences:
        is_of_rule = silence.rule_id is None or silence.rule_id == rule_id
        if is_of_rule and all(of.get(name) == value for name, value in silence.match.items()):
            return silence
    return None
