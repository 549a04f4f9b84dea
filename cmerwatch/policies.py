"""Versioned thresholds: which rule is the most specific for an event, and what it decides about a check."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

from cmerwatch import errors, models
from cmerwatch.shapes import DIMENSIONS, CheckResult, Decision, Slice

# `auto` is 5 % of the frozen reference flagged: the score is uniform on matched pairs at any number of claims.
AUTO_SIM_THRESHOLD = 0.05
DEFAULT_CONF_THRESHOLD = 0.8
DEFAULT_RULES: list[dict[str, Any]] = [{"match": {}, "conf_threshold": DEFAULT_CONF_THRESHOLD, "sim_threshold": "auto"}]


@dataclass(frozen=True, slots=True)
class Rule:
    match: tuple[tuple[str, str], ...]
    conf_threshold: float
    sim_threshold: float

    def applies(self, to: Slice) -> bool:
        return all(getattr(to, name) == value for name, value in self.match)


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a project's rules, the most specific first."""

    version: int
    rules: tuple[Rule, ...]

    def rule_for(self, to: Slice) -> Rule:
        return next(rule for rule in self.rules if rule.applies(to))

    def decide(self, result: CheckResult, is_calibrated: bool) -> Decision:
        """Flagged = confidence above and score below; a null confidence is never flagged, only counted as low."""
        rule, confidence = self.rule_for(result.event.slice), result.event.confidence
        is_decided = is_calibrated and result.outcome == "scored" and result.score is not None
        low = is_decided and result.score is not None and result.score < rule.sim_threshold
        return Decision(
            policy_version=self.version,
            is_decided=is_decided,
            flagged=low and confidence is not None and confidence > rule.conf_threshold,
            low_similarity=low,
            conf_threshold=rule.conf_threshold,
            sim_threshold=rule.sim_threshold,
        )


def parse(version: int, rules: Sequence[Mapping[str, Any]]) -> Policy:
    """Raises Invalid naming the rule and field; a set without a rule for everything else is refused."""
    parsed = sorted((_rule(index, rule) for index, rule in enumerate(rules)), key=lambda rule: -len(rule.match))
    if not parsed or parsed[-1].match:
        raise errors.Invalid(
            'rules needs one rule with "match": {} for everything no other rule matches', field="rules"
        )
    return Policy(version, tuple(parsed))


def _rule(index: int, rule: Mapping[str, Any]) -> Rule:
    match = rule.get("match", {}) if isinstance(rule, Mapping) else None
    if not isinstance(match, Mapping) or not all(isinstance(value, str) for value in match.values()):
        raise errors.Invalid(
            f'rules[{index}] must be an object whose "match" maps dimensions to text, such as {{"endpoint": "/vqa"}}',
            field="match",
        )
    strange = sorted(set(rule) - {"match", "conf_threshold", "sim_threshold"})
    if strange:
        raise errors.Invalid(
            f"rules[{index}] has the field {strange[0]!r}; a rule has match, conf_threshold and sim_threshold",
            field=str(strange[0]),
        )
    unknown = sorted(set(match) - set(DIMENSIONS))
    if unknown:
        raise errors.Invalid(
            f"rules[{index}].match names {unknown[0]!r}; the dimensions are {', '.join(DIMENSIONS)}", field="match"
        )
    sim = rule.get("sim_threshold", "auto")
    return Rule(
        match=tuple(sorted(match.items())),
        conf_threshold=_share(index, "conf_threshold", rule.get("conf_threshold", DEFAULT_CONF_THRESHOLD)),
        sim_threshold=AUTO_SIM_THRESHOLD if sim == "auto" else _share(index, "sim_threshold", sim),
    )


def _share(index: int, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        word = ' or "auto"' if field == "sim_threshold" else ""
        raise errors.Invalid(f"rules[{index}].{field} must be a number from 0 to 1{word}", field=field)
    return float(value)


def current(session: orm.Session, project_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Policy]:
    """The policy in force per project: its highest version."""
    rows = session.scalars(
        sa.select(models.PolicyVersion)
        .where(models.PolicyVersion.project_id.in_(set(project_ids)))
        .ext(pg.distinct_on(models.PolicyVersion.project_id))
        .order_by(models.PolicyVersion.project_id, models.PolicyVersion.version.desc())
    )
    return {row.project_id: parse(row.version, row.rules) for row in rows}


def at(session: orm.Session, wanted: Iterable[tuple[uuid.UUID, int]]) -> dict[tuple[uuid.UUID, int], Policy]:
    """Policies by (project, version), those that exist."""
    key = sa.tuple_(models.PolicyVersion.project_id, models.PolicyVersion.version)
    rows = session.scalars(sa.select(models.PolicyVersion).where(key.in_(set(wanted))))
    return {(row.project_id, row.version): parse(row.version, row.rules) for row in rows}


def changes(
    session: orm.Session, project_id: uuid.UUID, start: dt.datetime, end: dt.datetime
) -> Sequence[models.PolicyVersion]:
    """The versions that came into force in [start, end), oldest first; a project's first one changed nothing."""
    return session.scalars(
        sa.select(models.PolicyVersion)
        .where(
            models.PolicyVersion.project_id == project_id,
            models.PolicyVersion.version > 1,
            models.PolicyVersion.created_at >= start,
            models.PolicyVersion.created_at < end,
        )
        .order_by(models.PolicyVersion.version)
    ).all()


def create(session: orm.Session, project_id: uuid.UUID, rules: list[dict[str, Any]], created_by: str) -> int:
    """Append the next version and return its number. Raises Conflict where another took that number meanwhile."""
    parse(0, rules)
    latest = session.scalar(
        sa.select(sa.func.max(models.PolicyVersion.version)).where(models.PolicyVersion.project_id == project_id)
    )
    version = (latest or 0) + 1
    row = {"project_id": project_id, "version": version, "rules": rules, "created_by": created_by}
    made = session.scalar(
        pg.insert(models.PolicyVersion).values(row).on_conflict_do_nothing().returning(models.PolicyVersion.version)
    )
    if made is None:
        raise errors.Conflict(f"version {version} was saved by someone else meanwhile; look at it, then save again")
    return version


def ensure_default(session: orm.Session, project_id: uuid.UUID) -> None:
    """Version 1 where there is none: confidence > 0.8 and score < 0.05 (`auto`), for everything. Safe to race."""
    row = {"project_id": project_id, "version": 1, "rules": DEFAULT_RULES, "created_by": "cmerwatch"}
    session.execute(pg.insert(models.PolicyVersion).values(row).on_conflict_do_nothing())
