"""What to watch: rules checked before they are kept, the pack every project begins with, and a rule in words."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors, ids, models
from cmerwatch.shapes import BUCKET_SECONDS, DIMENSIONS

KINDS = ("threshold", "baseline", "no_data")
METRICS = ("cmer", "uer")
SEVERITIES = ("info", "warning", "critical")
SCOPES = ("project", *DIMENSIONS)
DAY, WEEK = 86_400, 7 * 86_400
MAX_NAME, MAX_VALUE, MAX_RULES = 120, 300, 200


@dataclass(frozen=True, slots=True)
class RuleFields:
    """A rule as people give it; `checked` says whether it may be kept. Seconds are whole buckets of 5 minutes in
    `window_seconds`; shares lie in (0, 1]."""

    name: str
    kind: str
    severity: str = "warning"
    metric: str = "cmer"
    scopes: tuple[str, ...] = ("project",)
    match: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    multiple: float | None = None
    window_seconds: int = 3600
    for_seconds: int = 0
    keep_firing_seconds: int = 600
    repeat_seconds: int = 14_400
    min_n: int = 50
    min_coverage: float = 0.95
    channel_ids: tuple[uuid.UUID, ...] = ()
    is_enabled: bool = True


# What an edit may change without starting the judgement anew.
_TOLD_ONLY = ("name", "severity", "repeat_seconds", "channel_ids")

DEFAULT_SCOPES = ("project", "endpoint", "model_version")
# The first a warning, the second worth waking somebody for; the third because a dead checker looks like good news.
DEFAULT_PACK = (
    RuleFields(
        "CMER well above usual",
        "baseline",
        scopes=DEFAULT_SCOPES,
        multiple=1.5,
        for_seconds=300,
    ),
    RuleFields(
        "CMER far above usual",
        "baseline",
        severity="critical",
        scopes=DEFAULT_SCOPES,
        multiple=2.0,
        threshold=0.15,
        window_seconds=1800,
    ),
    # Not by model version: every rollout would report the old version silent.
    RuleFields(
        "Outputs missing or not checked",
        "no_data",
        scopes=("project", "endpoint"),
        for_seconds=600,
    ),
)


def checked(fields: RuleFields) -> RuleFields:
    """The same, tidied; raises Invalid naming the field and its limit."""
    name = fields.name.strip()
    if not 1 <= len(name) <= MAX_NAME:
        raise _invalid("name", f"must have 1 to {MAX_NAME} characters", MAX_NAME)
    _one_of("kind", fields.kind, KINDS)
    _one_of("metric", fields.metric, METRICS)
    _one_of("severity", fields.severity, SEVERITIES)
    _scopes(fields.scopes)
    _match(fields.match)
    _times(fields)
    _line(fields)
    _whole("min_n", fields.min_n, 1, 1_000_000)
    _share("min_coverage", fields.min_coverage)
    return replace(fields, name=name, scopes=tuple(dict.fromkeys(fields.scopes)), match=dict(fields.match))


def _scopes(scopes: Sequence[str]) -> None:
    if not scopes:
        raise _invalid("scopes", f"must name at least one of {', '.join(SCOPES)}")
    for scope in scopes:
        _one_of("scopes", scope, SCOPES)


def _match(match: Mapping[str, str]) -> None:
    for name, value in match.items():
        _one_of("match", name, DIMENSIONS)
        if not isinstance(value, str) or len(value) > MAX_VALUE:
            raise _invalid("match", f"must map {name} to text of at most {MAX_VALUE} characters", MAX_VALUE)


def _times(fields: RuleFields) -> None:
    _whole("window_seconds", fields.window_seconds, BUCKET_SECONDS, DAY)
    if fields.window_seconds % BUCKET_SECONDS:
        raise _invalid("window_seconds", "must be a multiple of 300: rates are counted in buckets of 5 minutes", 300)
    _whole("for_seconds", fields.for_seconds, 0, DAY)
    _whole("keep_firing_seconds", fields.keep_firing_seconds, 0, DAY)
    _whole("repeat_seconds", fields.repeat_seconds, BUCKET_SECONDS, WEEK)


def _line(fields: RuleFields) -> None:
    """What the kind needs is there, and what it would ignore is not."""
    if fields.kind == "threshold" and fields.threshold is None:
        raise _invalid("threshold", "is what a threshold rule compares with: give a share over 0 and up to 1")
    if fields.kind == "baseline" and fields.multiple is None:
        raise _invalid("multiple", "is what a baseline rule compares with: give a number over 1, such as 1.5")
    if fields.threshold is not None and fields.kind == "no_data":
        raise _invalid("threshold", "means nothing to a no_data rule; leave it out")
    if fields.multiple is not None and fields.kind != "baseline":
        raise _invalid("multiple", "belongs to baseline rules; leave it out")
    if fields.threshold is not None:
        _share("threshold", fields.threshold)
    if fields.multiple is not None:
        multiple = fields.multiple
        if not _is_number(multiple) or not 1 < multiple <= 100:
            raise _invalid("multiple", "must be a number over 1 and up to 100", 100)


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise _invalid(name, f"is {str(value)[:60]!r}; it must be one of {', '.join(allowed)}")


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _invalid(name, f"must be a whole number from {least} to {most}", most)


def _share(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        raise _invalid(name, "must be a share over 0 and up to 1, such as 0.15 for 15 %", 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _invalid(name: str, why: str, limit: float | None = None) -> errors.Invalid:
    details = {} if limit is None else {"limit": limit}
    return errors.Invalid(f"`{name}` {why}.", field=name, **details)


def lock(session: orm.Session, project_id: uuid.UUID) -> None:
    """Held to the end of the transaction by whoever changes or evaluates this project's rules: one at a time."""
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": _lock_key(project_id)})


def try_lock(session: orm.Session, project_id: uuid.UUID) -> bool:
    """The same without waiting; False while another has it."""
    statement = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
    return bool(session.scalar(statement, {"key": _lock_key(project_id)}))


def _lock_key(project_id: uuid.UUID) -> str:
    return f"cmerwatch alerts {project_id}"


def create(
    session: orm.Session, project_id: uuid.UUID, fields: RuleFields, created_by: str, *, is_default: bool = False
) -> models.AlertRule:
    """Raises Invalid, and Conflict for a name that is taken and past the most rules a project may have."""
    fields = checked(fields)
    lock(session, project_id)  # two that are made at once must not both be the last one, nor have one name
    require_channels(session, project_id, fields.channel_ids)
    if not is_default:
        require_free_name(session, project_id, fields.name)
    if len(find(session, project_id)) >= MAX_RULES:
        raise errors.Conflict(
            f"This project has {MAX_RULES} rules, the most there may be; delete one.", limit=MAX_RULES
        )
    rule = models.AlertRule(id=ids.uuid7(), project_id=project_id, created_by=created_by, is_default=is_default)
    write(rule, fields)
    session.add(rule)
    session.flush()
    return rule


def write(rule: models.AlertRule, fields: RuleFields) -> None:
    """Put checked fields into a row."""
    for name in RuleFields.__dataclass_fields__:
        value = getattr(fields, name)
        setattr(rule, name, list(value) if isinstance(value, tuple) else value)


def read(rule: models.AlertRule) -> RuleFields:
    """The fields of a row, to be edited."""
    values: dict[str, Any] = {name: getattr(rule, name) for name in RuleFields.__dataclass_fields__}
    tidied: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return RuleFields(**tidied)


def judges_otherwise(old: RuleFields, new: RuleFields) -> bool:
    """Whether an edit changes what is judged, rather than only how it is told."""
    told = dict.fromkeys(_TOLD_ONLY)
    return any(getattr(old, name) != getattr(new, name) for name in RuleFields.__dataclass_fields__ if name not in told)


def require_channels(session: orm.Session, project_id: uuid.UUID, channel_ids: Sequence[uuid.UUID]) -> None:
    known = sa.select(models.Channel.id).where(
        models.Channel.project_id == project_id, models.Channel.deleted_at.is_(None)
    )
    missing = sorted(str(one) for one in set(channel_ids) - set(session.scalars(known)))
    if missing:
        raise _invalid("channel_ids", f"names {missing[0]}, which is no channel of this project")


def require_free_name(session: orm.Session, project_id: uuid.UUID, name: str) -> None:
    """Messages, silences and the audit log know a rule by its name. Rules that share one since long may go on to."""
    if any(rule.name.casefold() == name.casefold() for rule in find(session, project_id)):
        raise errors.Conflict(f"`name`: this project has a rule called “{name}” already; choose another.", field="name")


def find(session: orm.Session, project_id: uuid.UUID) -> list[models.AlertRule]:
    """The project's rules, oldest first; deleted ones are history only."""
    return list(
        session.scalars(
            sa.select(models.AlertRule)
            .where(models.AlertRule.project_id == project_id, models.AlertRule.deleted_at.is_(None))
            .order_by(models.AlertRule.id)
        )
    )


def get(session: orm.Session, project_id: uuid.UUID, rule_id: uuid.UUID) -> models.AlertRule:
    """Raises NotFound for an absent, a deleted and another project's rule alike."""
    rule = session.get(models.AlertRule, rule_id, populate_existing=True)
    if rule is None or rule.project_id != project_id or rule.deleted_at is not None:
        raise errors.NotFound(f"There is no alert rule {rule_id} in this project.", id=str(rule_id))
    return rule


def ensure_default(session: orm.Session, project_id: uuid.UUID) -> None:
    """The default pack, once: what somebody deleted of it stays deleted."""
    lock(session, project_id)
    was_given = sa.select(models.AlertRule.id).where(
        models.AlertRule.project_id == project_id, models.AlertRule.is_default
    )
    if session.scalar(was_given.limit(1)) is None:
        for fields in DEFAULT_PACK:
            create(session, project_id, fields, "cmerwatch", is_default=True)


def condition(rule: models.AlertRule | RuleFields) -> str:
    """The line in words, such as "CMER over 2x its usual rate, or over 15%, in 30 min"."""
    window = duration(rule.window_seconds)
    if rule.kind == "no_data":
        return (
            f"nothing arrives for {window} at an hour that usually has outputs, too little of it is checked, or most "
            "pictures cannot be read"
        )
    usual = f"over {rule.multiple:g}x its usual rate" if rule.multiple is not None else ""
    fixed = f"over {typed_percent(rule.threshold)}" if rule.threshold is not None else ""
    return f"{rule.metric.upper()} {', or '.join(part for part in (usual, fixed) if part)}, in {window}"


def duration(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def typed_percent(share: float) -> str:
    """A line or a minimum, with the digits somebody gave it."""
    return f"{share * 100:.6g}%"


def percent(share: float) -> str:
    """A measured share, to a tenth; one that rounds to none or all without being so keeps its sign."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{round(share * 100, 1):g}%"
