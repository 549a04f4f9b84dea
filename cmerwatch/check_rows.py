"""Checks and decisions as rows: whole batches go in and come out as one JSON parameter."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import errors
from cmerwatch.shapes import DIMENSIONS, CheckResult, Claimed, ClaimScore, Decided, Slice

DECISION = (
    "event_id uuid, checker_id int, policy_version int, project_id uuid, flagged bool, low_similarity bool, "
    "conf_threshold float8, sim_threshold float8"
)


def require_numbers(result: CheckResult) -> None:
    """JSON has no NaN, so one such result would fail its whole batch; and it would be counted but in no histogram."""
    if result.outcome != "scored":
        return
    numbers = [claim.similarity for claim in result.claims]
    optional = [result.score, result.mismatch_percentile, result.prompt_similarity]
    optional += [claim.percentile for claim in result.claims]
    numbers += [x for x in optional if x is not None]
    if result.similarity is None or not all(map(math.isfinite, [result.similarity, *numbers])):
        raise errors.Invalid(
            f"the check of event {result.event.event_id} is scored, but not with finite numbers; "
            "its outcome must be model_error",
            field="similarity",
        )


def storable(text: str) -> str:
    """Postgres keeps neither NUL nor halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def insert_checks(session: orm.Session, done: Sequence[Decided]) -> None:
    rows = [
        {
            "event_id": one.result.event.event_id.hex,
            "checker_id": one.checker_id,
            "project_id": one.result.event.project_id.hex,
            "outcome": one.result.outcome,
            "similarity": one.result.similarity,
            "score": one.result.score,
            "mismatch_percentile": one.result.mismatch_percentile,
            "prompt_similarity": one.result.prompt_similarity,
            "policy_version": one.decision.policy_version,
            "claims": [stored(claim) for claim in one.result.claims],
            "reasons": list(one.result.reasons),
        }
        for one in done
    ]
    _insert(
        session,
        "checks",
        "event_id uuid, checker_id int, project_id uuid, outcome text, similarity float8, score float8, "
        "mismatch_percentile float8, prompt_similarity float8, policy_version int, claims jsonb, reasons text[]",
        rows,
    )


def stored(claim: ClaimScore) -> dict[str, Any]:
    """A claim as its check keeps it; what most claims do not have is left out."""
    row: dict[str, Any] = {
        "start": claim.start,
        "end": claim.end,
        "similarity": claim.similarity,
        "percentile": claim.percentile,
    }
    if claim.statement is not None:
        row["statement"] = storable(claim.statement)
    if claim.negated:
        row["negated"] = True
    if claim.images:
        row["images"] = claim.images
    if claim.contrast is not None:
        row["contrast"] = claim.contrast
    return row


def read(row: Mapping[str, Any]) -> ClaimScore:
    """The claim of which `stored` made this."""
    return ClaimScore(
        start=row["start"],
        end=row["end"],
        similarity=row["similarity"],
        percentile=row.get("percentile"),
        statement=row.get("statement"),
        negated=row.get("negated", False),
        images=tuple(row.get("images", ())),
        contrast=row.get("contrast"),
    )


def scored(row: sa.Row[Any]) -> CheckResult:
    """A check without its score, of a row of checks with its event's columns, to be decided from the stored cosines.
    Prompt and output are left out: nothing is read again."""
    event = Claimed(
        event_id=row.event_id,
        project_id=row.project_id,
        slice=Slice(*(getattr(row, name) for name in DIMENSIONS)),
        bucket=row.bucket,
        attempts=1,
        is_late=row.is_late,
        confidence=row.geo_p,
        images=tuple(row.images),
        prompt="",
        output="",
    )
    return CheckResult(
        event,
        "scored",
        similarity=row.similarity,
        claims=tuple(read(claim) for claim in row.claims),
        reasons=tuple(row.reasons),
        prompt_similarity=row.prompt_similarity,
    )


def insert_decisions(session: orm.Session, done: Sequence[Decided]) -> None:
    rows = [decision(one) for one in done if one.decision.is_decided and one.result.outcome == "scored"]
    _insert(session, "decisions", DECISION, rows)


def decision(one: Decided) -> dict[str, Any]:
    """A row of DECISION."""
    return {
        "event_id": one.result.event.event_id.hex,
        "checker_id": one.checker_id,
        "policy_version": one.decision.policy_version,
        "project_id": one.result.event.project_id.hex,
        "flagged": one.decision.flagged,
        "low_similarity": one.decision.low_similarity,
        "conf_threshold": one.decision.conf_threshold,
        "sim_threshold": one.decision.sim_threshold,
    }


def _insert(session: orm.Session, table: str, columns: str, rows: Sequence[dict[str, Any]]) -> None:
    """One parameter for the whole batch: psycopg's cost per parameter is what bounds this path (bench/pipeline.py)."""
    if not rows:
        return
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    source = f"jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({columns})"
    statement = sa.text(f"INSERT INTO {table} ({names}) SELECT {names} FROM {source}")
    session.execute(statement, {"rows": json.dumps(rows)})
