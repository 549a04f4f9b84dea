"""The second opinion on the most suspicious outputs: what waits for the judge, what it said, what a day may cost.

All times are the database's now(). Judgements stand beside checks: no score, decision or rollup reads them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import models
from cmerwatch.shapes import Decided

MAX_ATTEMPTS = 3
RETRY_SECONDS = (10, 60)  # after the first and the second failure


@dataclass(frozen=True, slots=True)
class Question:
    """One claim: its characters in the output, and the statement to be judged. `negated`: the output denies it."""

    start: int
    end: int
    statement: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """An event leased to this judge with what asking needs: images by sha256, the weakest claims first."""

    event_id: uuid.UUID
    checker_id: int
    project_id: uuid.UUID
    attempts: int
    images: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What came of asking: probabilities in the order of the questions, or the reason why there are none."""

    p_yes: tuple[float, ...] = ()
    reason: str = ""
    may_pass: bool = False  # another try may succeed
    retry_seconds: float | None = None  # as the judge asked for; such a try is not counted
    calls: int = 0
    tokens: int = 0


_ROUTE = sa.text(
    """
    INSERT INTO judgements (event_id, checker_id, project_id)
    SELECT event_id, checker_id, project_id
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(event_id uuid, checker_id int, project_id uuid)
    ORDER BY event_id ON CONFLICT DO NOTHING RETURNING event_id
    """
)


def route(session: orm.Session, decided: Sequence[Decided], below: float | None) -> int:
    """Queue what the judge should see: what the policy calls low, or every score under `below`. Returns how many."""
    rows = [_row(one) for one in decided if _is_suspicious(one, below)]
    return len(session.execute(_ROUTE, {"rows": json.dumps(rows)}).all()) if rows else 0


def _is_suspicious(one: Decided, below: float | None) -> bool:
    score = one.result.score
    if not one.decision.is_decided or score is None or not one.result.claims:
        return False
    return one.decision.low_similarity if below is None else score < below


def _row(one: Decided) -> dict[str, Any]:
    event = one.result.event
    return {"event_id": str(event.event_id), "checker_id": one.checker_id, "project_id": str(event.project_id)}


# The oldest first. Attempts are counted here: an event that kills its judge does not come back for ever.
_CLAIM = sa.text(
    f"""
    WITH c AS (
        SELECT event_id, checker_id FROM judgements
        WHERE state = 'waiting' AND next_at <= now() AND (lease_until IS NULL OR lease_until < now())
        ORDER BY next_at, event_id LIMIT :n FOR UPDATE SKIP LOCKED
    )
    UPDATE judgements j SET
        attempts = attempts + 1,
        state = CASE WHEN attempts < {MAX_ATTEMPTS} THEN 'waiting' ELSE 'failed' END,
        reason = CASE WHEN attempts < {MAX_ATTEMPTS} OR reason <> '' THEN reason ELSE 'judge_died' END,
        lease_token = :token, lease_until = now() + make_interval(secs => :lease)
    FROM c WHERE (j.event_id, j.checker_id) = (c.event_id, c.checker_id)
    RETURNING j.event_id, j.checker_id, j.project_id, j.attempts, j.state
    """
)


def claim(session: orm.Session, n: int, lease_seconds: float, token: uuid.UUID, questions: int) -> list[Suspect]:
    """Lease up to n waiting events, each with its `questions` weakest claims. Commit before asking."""
    rows = session.execute(_CLAIM, {"n": n, "token": token, "lease": lease_seconds}).all()
    return [_suspect(session, row, questions) for row in rows if row.state == "waiting"]


def _suspect(session: orm.Session, row: sa.Row[Any], questions: int) -> Suspect:
    check = session.get(models.Check, (row.event_id, row.checker_id))
    event, body = session.get(models.Event, row.event_id), session.get(models.EventBody, row.event_id)
    claims = sorted(check.claims, key=_weakness)[:questions] if check else []
    output = body.output if body else ""
    return Suspect(
        row.event_id,
        row.checker_id,
        row.project_id,
        row.attempts,
        tuple(event.images) if event else (),
        tuple(_question(claim, output) for claim in claims),
    )


def _weakness(claim: dict[str, Any]) -> tuple[float, float]:
    percentile = claim.get("percentile")
    return (1.0 if percentile is None else percentile, claim["similarity"])


def _question(claim: dict[str, Any], output: str) -> Question:
    start, end = claim["start"], claim["end"]
    return Question(start, end, claim.get("statement") or output[start:end], bool(claim.get("negated")))


_GIVE_BACK = sa.text(
    "UPDATE judgements SET attempts = attempts - 1, lease_token = NULL, lease_until = NULL "
    "WHERE lease_token = :token AND state = 'waiting'"
)


def give_back(session: orm.Session, token: uuid.UUID) -> None:
    """End the leases of what was claimed and never asked about: a judge that is told to stop has not failed."""
    session.execute(_GIVE_BACK, {"token": token})


_RESERVE = sa.text(
    """
    INSERT INTO judge_spend AS s (day, calls)
    SELECT (now() AT TIME ZONE 'UTC')::date, :calls WHERE :calls <= :most_calls
    ON CONFLICT (day) DO UPDATE SET calls = s.calls + excluded.calls
        WHERE s.calls + excluded.calls <= :most_calls AND s.tokens < :most_tokens
    RETURNING calls
    """
)


def reserve(session: orm.Session, calls: int, *, most_calls: int, most_tokens: int) -> bool:
    """Take so many of the day's calls; False where that would pass the day's limit. Commit before asking."""
    values = {"calls": calls, "most_calls": most_calls, "most_tokens": most_tokens}
    return session.execute(_RESERVE, values).first() is not None


_REFUND = sa.text("UPDATE judge_spend SET calls = greatest(0, calls - :n) WHERE day = (now() AT TIME ZONE 'UTC')::date")


def refund(session: orm.Session, calls: int) -> None:
    """Give back what was reserved and not asked: a picture was gone, or the judge asked for patience."""
    if calls > 0:
        session.execute(_REFUND, {"n": calls})


_TOKENS = sa.text(
    """
    INSERT INTO judge_spend AS s (day, tokens) VALUES ((now() AT TIME ZONE 'UTC')::date, :tokens)
    ON CONFLICT (day) DO UPDATE SET tokens = s.tokens + excluded.tokens
    """
)


def record(session: orm.Session, token: uuid.UUID, suspect: Suspect, judge: str, opinion: Opinion) -> bool:
    """Write the outcome where `token` still holds the lease; False for a zombie, whose spending still counts."""
    if opinion.tokens:
        session.execute(_TOKENS, {"tokens": opinion.tokens})
    values = _outcome(suspect, opinion) | {
        "judge": judge,
        "lease_token": None,
        "lease_until": None,
        "calls": models.Judgement.calls + opinion.calls,
        "tokens": models.Judgement.tokens + opinion.tokens,
    }
    held = sa.update(models.Judgement).where(
        models.Judgement.event_id == suspect.event_id,
        models.Judgement.checker_id == suspect.checker_id,
        models.Judgement.lease_token == token,
        models.Judgement.state == "waiting",
    )
    return session.execute(held.values(values).returning(models.Judgement.event_id)).first() is not None


def _outcome(suspect: Suspect, opinion: Opinion) -> dict[str, Any]:
    if opinion.p_yes:
        claims = [
            {"start": q.start, "end": q.end, "p_yes": p} for q, p in zip(suspect.questions, opinion.p_yes, strict=True)
        ]
        return {
            "state": "judged",
            "p_yes": min(opinion.p_yes),
            "claims": claims,
            "reason": "",
            "judged_at": sa.func.now(),
        }
    if opinion.retry_seconds is not None:
        return {"reason": opinion.reason, "attempts": suspect.attempts - 1} | _wait(opinion.retry_seconds)
    if opinion.may_pass and suspect.attempts < MAX_ATTEMPTS:
        return {"reason": opinion.reason} | _wait(RETRY_SECONDS[suspect.attempts - 1])
    return {"state": "skipped" if opinion.reason == "over_budget" else "failed", "reason": opinion.reason}


def _wait(seconds: float) -> dict[str, Any]:
    return {"next_at": sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)}
