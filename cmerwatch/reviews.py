"""What people should look at: flagged events, low ones of unknown confidence, and a random audit of the rest."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import ids
from cmerwatch.shapes import Decided

# How much earlier than it came an item of priority 1 stands in the queue: beside one of priority 0 it is taken first
# unless that one has waited a day longer. So nothing starves, and an index holds the order.
HEAD_START_SECONDS = 86_400.0

# The same for all: were suspicious ones looked at first, an unfinished audit would be no random sample.
AUDIT_PRIORITY = 0.5

_INSERT = sa.text(
    """
    INSERT INTO review_items
        (id, project_id, event_id, checker_id, policy_version, kind, inclusion_probability, priority, rank, reasons)
    SELECT id, project_id, event_id, checker_id, policy_version, kind, inclusion_probability, priority,
        extract(epoch FROM now()) - :head_start * priority, reasons
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id uuid, project_id uuid, event_id uuid, checker_id int,
        policy_version int, kind text, inclusion_probability float8, priority float8, reasons text[])
    ORDER BY project_id, event_id
    ON CONFLICT (project_id, event_id) DO NOTHING
    RETURNING id
    """
)


def route(session: orm.Session, decided: Sequence[Decided], audit_rate: float) -> int:
    """Insert the items of these checks, one per event at most; returns how many are new."""
    rows = [row for one in decided if (row := _item(one, audit_rate)) is not None]
    if not rows:
        return 0
    values = {"rows": json.dumps(rows, default=str), "head_start": HEAD_START_SECONDS}
    return len(session.execute(_INSERT, values).all())


def _item(one: Decided, audit_rate: float) -> dict[str, Any] | None:
    result, decision = one.result, one.decision
    if result.outcome != "scored" or not decision.is_decided:
        return None
    if decision.flagged:
        return _row(one, "flagged", 1.0)
    if decision.low_similarity and result.event.confidence is None:
        return _row(one, "low_similarity_unconfirmed", 1.0)
    if draw(result.event.event_id) < audit_rate:
        return _row(one, "audit", audit_rate)
    return None


def draw(event_id: uuid.UUID) -> float:
    """A uniform number in [0, 1) that belongs to the event: a retried completion draws the same one, and nobody
    who knows the score can steer it."""
    return int.from_bytes(hashlib.blake2b(event_id.bytes, digest_size=8, person=b"cmw-audit").digest()) / 2**64


def _row(one: Decided, kind: str, probability: float) -> dict[str, Any]:
    result = one.result
    return {
        "id": ids.uuid7(),
        "project_id": result.event.project_id,
        "event_id": result.event.event_id,
        "checker_id": one.checker_id,
        "policy_version": one.decision.policy_version,
        "kind": kind,
        "inclusion_probability": probability,
        "priority": AUDIT_PRIORITY if kind == "audit" else _priority(one),
        "reasons": list(result.reasons),
    }


def _priority(one: Decided) -> float:
    """Severity times confidence, in [0, 1]: surest and least supported first."""
    confidence = one.result.event.confidence
    return (1.0 - (one.result.score or 0.0)) * (0.5 if confidence is None else confidence)
