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
MAX_RULES, MAX_VALUE = 100, 200
# What a rule compares with its sim_threshold. `cosine` is the legacy rule of a fixed similarity: it knows neither how
# many claims an output makes nor what is usual for its prompt type, and means something for CLIP-type checkers only.
MEASURES = ("score", "cosine")
DEFAULT_RULES: list[dict[str, Any]] = [{"match": {}, "conf_threshold": DEFAULT_CONF_THRESHOLD, "sim_threshold": "auto"}]


@dataclass(frozen=True, slots=True)
class Rule:
    match: tuple[tuple[str, str], ...]
    conf_threshold: float
    sim_threshold: float
    measure: str = "score"

    def applies(self, to: Slice) -> bool:
        return all(getattr(to, name) == value for name, value in self.match)


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a project's rules, the most specific first."""

    version: int
    rules: tuple[Rule, ...]

    def rule_for(self, to: Slice) -> Rule:
        return next(rule for rule in self.rules if rule.applies(to))

    def decide(self, result: CheckResult, is_calibrated: bool, has_bias: bool = False) -> Decision:
        """Flagged = confidence above and score below; a null confidence is never flagged, only counted as low.

        `has_bias`: the checker's logit has one, so a fixed cosine says nothing about its checks and decides none.
        """
        rule, confidence = self.rule_for(result.event.slice), result.event.confidence
        is_fit = rule.measure == "score" or not has_bias
        is_decided = is_fit and is_calibrated and result.outcome == "scored" and result.score is not None
        measured = result.score if rule.measure == "score" else _cosine(result)
        low = is_decided and measured is not None and measured < rule.sim_threshold
        return Decision(
            policy_version=self.version,
            is_decided=is_decided,
            flagged=low and confidence is not None and confidence > rule.conf_threshold,
            low_similarity=low,
            conf_threshold=rule.conf_threshold,
            sim_threshold=rule.sim_threshold,
        )


def _cosine(result: CheckResult) -> float | None:
    """What a fixed cosine is compared with; None of an output that only denies: where it is right, it is low."""
    only_denies = bool(result.claims) and all(claim.negated for claim in result.claims)
    return None if only_denies else result.similarity


def parse(version: int, rules: Sequence[Mapping[str, Any]]) -> Policy:
    """Raises Invalid naming the rule and field; a set without a rule for everything else is refused."""
    if len(rules) > MAX_RULES:
        raise errors.Invalid(f"rules has {len(rules)} entries; at most {MAX_RULES} are allowed", field="rules")
    as_given = [_rule(index, rule) for index, rule in enumerate(rules)]
    _require_different([rule.match for rule in as_given])
    parsed = sorted(as_given, key=lambda rule: -len(rule.match))
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
    strange = sorted(set(map(str, rule)) - {"match", "conf_threshold", "sim_threshold", "measure"})
    if strange:
        raise errors.Invalid(
            f"rules[{index}] has the field {strange[0]!r}; a rule has match, conf_threshold, sim_threshold and measure",
            field=str(strange[0]),
        )
    unknown = sorted(set(match) - set(DIMENSIONS))
    if unknown:
        raise errors.Invalid(
            f"rules[{index}].match names {unknown[0]!r}; the dimensions are {', '.join(DIMENSIONS)}", field="match"
        )
    for value in match.values():
        if len(value) > MAX_VALUE or not _is_storable(value):
            raise errors.Invalid(
                f"rules[{index}].match holds a value of more than {MAX_VALUE} characters, or one that cannot be stored",
                field="match",
                limit=MAX_VALUE,
            )
    sim, measure = rule.get("sim_threshold", "auto"), rule.get("measure", "score")
    if measure not in MEASURES:
        raise errors.Invalid(f"rules[{index}].measure must be one of {', '.join(MEASURES)}", field="measure")
    if measure == "cosine" and sim == "auto":
        raise errors.Invalid(
            f"rules[{index}].sim_threshold must be a number where measure is cosine, such as 0.25: auto is 5 % of the "
            "reference, which the score is measured against",
            field="sim_threshold",
        )
    return Rule(
        match=tuple(sorted(match.items())),
        conf_threshold=_share(index, "conf_threshold", rule.get("conf_threshold", DEFAULT_CONF_THRESHOLD)),
        sim_threshold=AUTO_SIM_THRESHOLD if sim == "auto" else _share(index, "sim_threshold", sim),
        measure=measure,
    )


def parse_match(rule: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """A rule's match as Rule keeps it, to find a rule again among the parsed ones."""
    return tuple(sorted(rule.get("match", {}).items()))


def _require_different(matches: Sequence[tuple[tuple[str, str], ...]]) -> None:
    for second, match in enumerate(matches):
        first = matches.index(match)
        if first < second:
            named = ", ".join(f"{name} {value!r}" for name, value in match) or "everything else"
            raise errors.Invalid(
                f"rules[{first}] and rules[{second}] are both for {named}; only one of them could ever apply",
                field="match",
            )


def _is_storable(value: str) -> bool:
    return "\0" not in value and value.encode("utf-8", "replace").decode() == value


def _share(index: int, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        word = ' or "auto"' if field == "sim_threshold" else ""
        raise errors.Invalid(f"rules[{index}].{field} must be a number from 0 to 1{word}", field=field)
    return float(value)


def current(session: orm.Session, project_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Policy]:
    """The policy in force per project, its highest version, for a transaction that decides by it: until its end
    `is_taken_up` is false in other transactions."""
    ids = set(project_ids)
    # A statement of its own, before the versions are read: what is read under the lock cannot be older than the lock.
    session.execute(_HOLD, {"keys": sorted(_lock_key(project_id) for project_id in ids)})
    rows = session.scalars(
        sa.select(models.PolicyVersion)
        .where(models.PolicyVersion.project_id.in_(ids))
        .ext(pg.distinct_on(models.PolicyVersion.project_id))
        .order_by(models.PolicyVersion.project_id, models.PolicyVersion.version.desc())
    )
    return {row.project_id: parse(row.version, row.rules) for row in rows}


def is_taken_up(session: orm.Session, project_id: uuid.UUID) -> bool:
    """Whether whoever decides from now on does so by the versions that the caller can see. It never waits: false while
    another transaction is open that read `current`, which may have been an older version."""
    return bool(session.execute(_IS_FREE, {"key": _lock_key(project_id)}).scalar())


def _lock_key(project_id: uuid.UUID) -> str:
    return f"cmerwatch policy {project_id}"


_HOLD = sa.text(
    "SELECT pg_advisory_xact_lock_shared(hashtextextended(key, 0)) FROM unnest(CAST(:keys AS text[])) AS key"
)
# Let go within the statement: held to the end of the transaction, it would keep workers from completing.
_IS_FREE = sa.text(
    "SELECT CASE WHEN pg_try_advisory_lock(hashtextextended(:key, 0)) "
    "THEN pg_advisory_unlock(hashtextextended(:key, 0)) ELSE false END"
)


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


def versions(session: orm.Session, project_id: uuid.UUID, limit: int = 100) -> Sequence[models.PolicyVersion]:
    """The newest first: the one in force is the first."""
    return session.scalars(
        sa.select(models.PolicyVersion)
        .where(models.PolicyVersion.project_id == project_id)
        .order_by(models.PolicyVersion.version.desc())
        .limit(limit)
    ).all()


def version(session: orm.Session, project_id: uuid.UUID, number: int) -> models.PolicyVersion:
    """Raises NotFound."""
    found = session.get(models.PolicyVersion, (project_id, number)) if 0 < number < 2**31 else None
    if found is None:
        raise errors.NotFound(f"There is no policy version {number} in this project.")
    return found


def create(
    session: orm.Session,
    project_id: uuid.UUID,
    rules: list[dict[str, Any]],
    created_by: str,
    based_on: int | None = None,
) -> int:
    """Append the next version and return its number.

    Raises Conflict where another took that number meanwhile, or where `based_on` is not the newest any more.
    """
    parse(0, rules)
    latest = session.scalar(
        sa.select(sa.func.max(models.PolicyVersion.version)).where(models.PolicyVersion.project_id == project_id)
    )
    number = (latest or 0) + 1
    row = {"project_id": project_id, "version": number, "rules": rules, "created_by": created_by}
    made = None
    if based_on is None or based_on == latest:
        made = session.scalar(
            pg.insert(models.PolicyVersion).values(row).on_conflict_do_nothing().returning(models.PolicyVersion.version)
        )
    if made is None:
        newest = latest if based_on is not None and based_on != latest else number
        raise errors.Conflict(
            f"version {newest} was saved by someone else meanwhile; look at it, then save again", version=newest
        )
    return number


def require_meaning(rules: Sequence[Mapping[str, Any]], checker: models.Checker | None) -> None:
    """Raises Invalid for a fixed cosine where this checker's cosines have no fixed meaning, or none that is known."""
    parsed = parse(0, rules)
    if all(rule.measure == "score" for rule in parsed.rules):
        return
    if checker is None or checker.logit_scale is None:
        raise errors.Invalid(
            "measure cosine needs a checker that has noted its kind, and none has checked here so far: start a worker "
            "and let it check something first",
            field="measure",
        )
    if checker.logit_bias is not None:
        raise errors.Invalid(
            f"measure cosine is refused for {checker.name}: it is of the SigLIP kind, whose logit has a bias, so its "
            "cosines are small numbers that no fixed threshold such as 0.25 fits; use the score",
            field="measure",
        )


def misfit(version: int, rules: Sequence[Mapping[str, Any]], checker: models.Checker | None) -> str | None:
    """Why some of these rules decide nothing about this checker's outputs; None where all of them do."""
    if checker is None or checker.logit_bias is None:
        return None
    if all(rule.measure == "score" for rule in parse(version, rules).rules):
        return None
    return unfit(version, checker.name)


def unfit(version: int, checker: str) -> str:
    """The reason a check stays undecided, in words."""
    return (
        f"policy {version} is a fixed cosine and checker {checker} has a logit bias, so its cosines are small numbers "
        "no fixed threshold fits: choose auto"
    )


def misfit_now(session: orm.Session, project_id: uuid.UUID, checker: models.Checker | None) -> str | None:
    """`misfit` of the version in force."""
    newest = versions(session, project_id, limit=1)
    return misfit(newest[0].version, newest[0].rules, checker) if newest else None


def misfits(session: orm.Session, checker_id: int) -> dict[str, str]:
    """By the slug of each project whose policy in force does not fit this checker: why."""
    checker = session.get_one(models.Checker, checker_id)
    rows = session.execute(
        sa.select(models.Project.slug, models.PolicyVersion)
        .join(models.PolicyVersion, models.PolicyVersion.project_id == models.Project.id)
        .ext(pg.distinct_on(models.PolicyVersion.project_id))
        .order_by(models.PolicyVersion.project_id, models.PolicyVersion.version.desc())
    )
    found = {slug: misfit(row.version, row.rules, checker) for slug, row in rows}
    return {slug: why for slug, why in sorted(found.items()) if why is not None}


def ensure_default(session: orm.Session, project_id: uuid.UUID) -> None:
    """Version 1 where there is none: confidence > 0.8 and score < 0.05 (`auto`), for everything. Safe to race."""
    row = {"project_id": project_id, "version": 1, "rules": DEFAULT_RULES, "created_by": "cmerwatch"}
    session.execute(pg.insert(models.PolicyVersion).values(row).on_conflict_do_nothing())
