"""References of checkers: kept whole, collected from the first traffic where a bundle brings none.

A checker that is calibrating scores events and decides nothing. Once its reference is frozen, what it left undecided is
decided here in batches, each exactly once: the row lock and `score IS NULL` are the guard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import check_rows, models
from cmerwatch.shapes import (
    BUCKET_SECONDS,
    DIMENSIONS,
    CheckResult,
    Decided,
    Decision,
    Sample,
)


def load(session: orm.Session, checker_id: int) -> dict[str, Any] | None:
    """The reference in force, as the worker wrote it; None while calibrating."""
    return session.scalar(
        sa.select(models.CheckerReference.data)
        .join(models.Checker, models.Checker.id == models.CheckerReference.checker_id)
        .where(models.Checker.id == checker_id, models.CheckerReference.version == models.Checker.reference_version)
    )


def keep(session: orm.Session, checker_id: int, version: str, data: dict[str, Any]) -> None:
    """Store a reference whole. Safe to repeat."""
    session.execute(
        sa.text(
            "INSERT INTO checker_references (checker_id, version, data) "
            "VALUES (:id, :version, CAST(:data AS jsonb)) ON CONFLICT DO NOTHING"
        ),
        {"id": checker_id, "version": version, "data": json.dumps(data)},
    )


# --- collecting ----------------------------------------------------------------------------------------------------


def collect(session: orm.Session, checker_id: int, samples: Sequence[Sample]) -> None:
    """Add what these events say of the checker's scale; the same images and output count once."""
    rows = [
        {"content": one.content.hex, "prompt_type": one.prompt_type, "own": one.own, "mismatched": one.mismatched}
        for one in samples
    ]
    if not rows:
        return
    session.execute(
        sa.text(
            "INSERT INTO reference_samples (checker_id, content, prompt_type, own, mismatched) "
            "SELECT :id, content, prompt_type, own, mismatched FROM jsonb_to_recordset(CAST(:rows AS jsonb)) "
            "AS r(content uuid, prompt_type text, own float8[], mismatched float8[]) "
            # In one order: two workers that collect the same contents never wait for each other in a circle.
            "ORDER BY content ON CONFLICT DO NOTHING"
        ),
        {"id": checker_id, "rows": json.dumps(rows)},
    )


def counts(session: orm.Session, checker_id: int) -> dict[str, tuple[int, int]]:
    """Claims collected so far by prompt type: with their own images, with a stranger's."""
    rows = session.execute(
        sa.text(
            "SELECT prompt_type, sum(cardinality(own)), sum(cardinality(mismatched)) "
            "FROM reference_samples WHERE checker_id = :id GROUP BY prompt_type"
        ),
        {"id": checker_id},
    )
    return {prompt_type: (int(own), int(mismatched)) for prompt_type, own, mismatched in rows}


def lock_calibrating(session: orm.Session, checker_id: int) -> bool:
    """Hold the checker's row until the commit; False when another worker froze its reference meanwhile."""
    statement = sa.text("SELECT reference_version IS NULL FROM checkers WHERE id = :id FOR UPDATE")
    return bool(session.execute(statement, {"id": checker_id}).scalar_one())


def collected(session: orm.Session, checker_id: int) -> list[Sample]:
    rows = session.scalars(
        sa.select(models.ReferenceSample)
        .where(models.ReferenceSample.checker_id == checker_id)
        .order_by(models.ReferenceSample.content)
    )
    return [Sample(row.content, row.prompt_type, tuple(row.own), tuple(row.mismatched)) for row in rows]


def freeze(session: orm.Session, checker_id: int, version: str, data: dict[str, Any]) -> None:
    """Put this reference in force for good and drop what it was made of. The caller holds the row."""
    keep(session, checker_id, version, data)
    session.execute(
        sa.text("UPDATE checkers SET reference_version = :version WHERE id = :id AND reference_version IS NULL"),
        {"id": checker_id, "version": version},
    )
    drop_samples(session, checker_id)


def drop_samples(session: orm.Session, checker_id: int) -> None:
    """Also of a worker that had not heard of the freeze."""
    session.execute(sa.text("DELETE FROM reference_samples WHERE checker_id = :id"), {"id": checker_id})


# --- deciding what waited --------------------------------------------------------------------------------------------

_UNDECIDED = sa.text(
    f"""
    WITH c AS (
        SELECT event_id, similarity, prompt_similarity, policy_version, claims, reasons FROM checks
        WHERE checker_id = :id AND outcome = 'scored' AND score IS NULL
            -- Of a day that was dropped nothing is decided any more: taken first, such rows would fill every batch.
            AND EXISTS (SELECT FROM events WHERE id = checks.event_id)
        ORDER BY event_id LIMIT :n FOR UPDATE SKIP LOCKED
    )
    SELECT c.*, e.project_id, e.geo_p, e.is_late, e.images, {", ".join("e." + d for d in DIMENSIONS)},
        date_bin(make_interval(secs => {BUCKET_SECONDS}), e.received_at, timestamptz '2000-01-01 00:00Z') AS bucket
    FROM c JOIN events e ON e.id = c.event_id ORDER BY c.event_id
    """
)


def undecided(session: orm.Session, checker_id: int, n: int) -> list[tuple[CheckResult, int]]:
    """Up to n scored checks without a decision, oldest first and locked, each with the policy version it was counted
    under."""
    rows = session.execute(_UNDECIDED, {"id": checker_id, "n": n}).all()
    return [(check_rows.scored(row), row.policy_version or 1) for row in rows]


def settle(session: orm.Session, checker_id: int, pairs: Sequence[tuple[CheckResult, Decision]]) -> list[Decided]:
    """Write scores and decisions of checks that `undecided` gave in this transaction."""
    done = [Decided(result, decision, checker_id) for result, decision in pairs]
    for one in done:
        check_rows.require_numbers(one.result)
    rows = [
        {
            "event_id": one.result.event.event_id.hex,
            "score": one.result.score,
            "mismatch_percentile": one.result.mismatch_percentile,
            "claims": [check_rows.stored(claim) for claim in one.result.claims],
            "reasons": list(one.result.reasons),
        }
        for one in done
    ]
    ids = sorted(one.result.event.event_id for one in done)
    if ids:
        values = {"id": checker_id, "low": ids[0], "high": ids[-1], "rows": json.dumps(rows)}
        session.execute(_SETTLE, values)
    check_rows.insert_decisions(session, done)
    return done


# BETWEEN prunes the day partitions.
_SETTLE = sa.text(
    """
    UPDATE checks c SET score = r.score, mismatch_percentile = r.mismatch_percentile, claims = r.claims,
        reasons = r.reasons
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS r(event_id uuid, score float8, mismatch_percentile float8, claims jsonb, reasons text[])
    WHERE c.event_id = r.event_id AND c.checker_id = :id AND c.event_id BETWEEN :low AND :high
    """
)
