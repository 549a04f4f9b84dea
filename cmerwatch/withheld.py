"""Checks that are scored and that the policy in force could not decide: a fixed cosine, where the logit has a bias.

They count as undecided, visibly, until a later version decides them: each exactly once, the deleted row is the guard.
Then they are counted under that version, as if they had been checked today; so a decision is never made by a number
that means nothing, and none is missing once the policy is mended.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import check_rows, policies, rollups
from cmerwatch.policies import Policy
from cmerwatch.shapes import BUCKET_SECONDS, DIMENSIONS, Decided, Decision


@dataclass(frozen=True, slots=True)
class Step:
    """`taken` rows are gone from the table; `decided` are their checks, but for those whose event is gone as well and
    those that the version in force does not fit either, which are withheld under it now."""

    taken: int
    decided: list[Decided]


def keep(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Note which of these, as they were just counted, have a score and no decision."""
    rows = [
        {
            "project_id": one.result.event.project_id.hex,
            "policy_version": one.decision.policy_version,
            "event_id": one.result.event.event_id.hex,
            "checker_id": one.checker_id,
        }
        for one in decided
        if one.result.outcome == "scored" and one.result.score is not None and not one.decision.is_decided
    ]
    if rows:
        session.execute(_KEEP, {"rows": json.dumps(rows)})


def count(session: orm.Session, project_id: uuid.UUID) -> int:
    found = sa.text("SELECT count(*) FROM withheld WHERE project_id = :project")
    return int(session.execute(found, {"project": project_id}).scalar_one())


def step(session: orm.Session, n: int) -> Step:
    """Decide up to n checks of one project that has a later version in force than theirs; 0 taken: there are none."""
    project_id = session.execute(_DUE).scalar()
    if project_id is None:
        return Step(0, [])
    policy = policies.current(session, [project_id])[project_id]
    gone = session.execute(_TAKE, {"project": project_id, "version": policy.version, "n": n}).all()
    if not gone:
        return Step(0, [])  # another worker has them
    return Step(len(gone), _decide(session, policy, [(row.event_id, row.checker_id) for row in gone]))


def _decide(session: orm.Session, policy: Policy, keys: Sequence[tuple[uuid.UUID, int]]) -> list[Decided]:
    ids = sorted(event_id for event_id, _ in keys)
    among = {"keys": json.dumps([[key.hex, checker] for key, checker in keys]), "low": ids[0], "high": ids[-1]}
    rows = session.execute(_READ, among).all()
    before = [_before(row) for row in rows]
    after = [
        replace(one, decision=policy.decide(one.result, is_calibrated=True, has_bias=row.has_bias))
        for one, row in zip(before, rows, strict=True)
    ]
    session.execute(_MOVE, among | {"version": policy.version})
    check_rows.insert_decisions(session, after)
    rollups.move(session, before, after)
    keep(session, after)
    return [one for one in after if one.decision.is_decided]


def _before(row: sa.Row[Any]) -> Decided:
    """As it is counted now: scored, undecided."""
    result = replace(check_rows.scored(row), score=row.score, mismatch_percentile=row.mismatch_percentile)
    return Decided(result, Decision(row.policy_version, False, False, False, 0, 0), row.checker_id)


_KEEP = sa.text(
    "INSERT INTO withheld (project_id, policy_version, event_id, checker_id) "
    "SELECT project_id, policy_version, event_id, checker_id FROM jsonb_to_recordset(CAST(:rows AS jsonb)) "
    "AS r(project_id uuid, policy_version int, event_id uuid, checker_id int)"
)

# One look into the key per project: the versions are few, and what is withheld under the newest is not looked at.
_DUE = sa.text(
    "SELECT project_id FROM (SELECT project_id, max(version) AS version FROM policy_versions GROUP BY project_id) p "
    "WHERE EXISTS (SELECT FROM withheld w WHERE w.project_id = p.project_id AND w.policy_version < p.version) LIMIT 1"
)

_TAKE = sa.text(
    """
    WITH few AS (
        SELECT project_id, policy_version, event_id, checker_id FROM withheld
        WHERE project_id = :project AND policy_version < :version
        ORDER BY policy_version, event_id LIMIT :n FOR UPDATE SKIP LOCKED
    )
    DELETE FROM withheld w USING few s
    WHERE w.project_id = s.project_id AND w.policy_version = s.policy_version AND w.event_id = s.event_id
        AND w.checker_id = s.checker_id
    RETURNING w.event_id, w.checker_id
    """
)

# BETWEEN prunes the day partitions.
_KEYS = "jsonb_array_elements(CAST(:keys AS jsonb)) AS k"
_AMONG = (
    "c.event_id = CAST(k ->> 0 AS uuid) AND c.checker_id = CAST(k ->> 1 AS int) AND c.event_id BETWEEN :low AND :high"
)

_READ = sa.text(
    f"""
    SELECT c.event_id, c.checker_id, c.policy_version, c.similarity, c.score, c.mismatch_percentile,
        c.prompt_similarity, c.claims, c.reasons, ch.logit_bias IS NOT NULL AS has_bias,
        e.project_id, e.geo_p, e.is_late, e.images, {", ".join("e." + name for name in DIMENSIONS)},
        date_bin(make_interval(secs => {BUCKET_SECONDS}), e.received_at, timestamptz '2000-01-01 00:00Z') AS bucket
    FROM {_KEYS} JOIN checks c ON {_AMONG} JOIN events e ON e.id = c.event_id AND e.id BETWEEN :low AND :high
    JOIN checkers ch ON ch.id = c.checker_id
    ORDER BY c.event_id
    """
)

_MOVE = sa.text(f"UPDATE checks c SET policy_version = :version FROM {_KEYS} WHERE {_AMONG}")
