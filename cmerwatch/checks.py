"""Open work and its results: claim with a lease, complete exactly once, give back, quarantine, replay.

All times are the database's now(), so a worker whose clock jumps neither loses nor steals a lease.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import check_rows, models
from cmerwatch.shapes import DIMENSIONS, CheckResult, Claimed, Decided, Decision, Slice

# A batch that dies is retried in shrinking batches, so that one poison row ends alone and its innocent
# neighbours never reach quarantine: at most 255 of them are dragged through two extra attempts.
RETRY_BATCH = {1: 16, 2: 1, 3: 1}
MAX_ATTEMPTS = 4

_RETRIES = " ".join(f"WHEN {level} THEN least(:n, {size})" for level, size in RETRY_BATCH.items())
_READY = f"priority < {models.BEHIND} AND not_before <= now() AND (state = 0 OR (state = 1 AND lease_until < now()))"

# A CTE, not WHERE id IN (SELECT ... FOR UPDATE): Postgres may evaluate such a sub-select more than once.
# The head, the oldest row that is ready, picks the retry level; the rest of the batch joins it at that level only.
# A head whose attempts are used up takes its like into quarantine, so a crash loop ends visibly.
# The commit does not wait for the disk: a claim lost in a crash of the database is only made again, and the guard in
# complete() turns its first holder away.
_CLAIM = sa.text(
    f"""
    WITH head AS (
        SELECT least(attempts, {MAX_ATTEMPTS}) AS level, set_config('synchronous_commit', 'off', true)
        FROM work WHERE {_READY}
        ORDER BY priority, event_id LIMIT 1 FOR UPDATE SKIP LOCKED
    ), c AS (
        SELECT w.event_id FROM work w, head
        WHERE {_READY} AND least(w.attempts, {MAX_ATTEMPTS}) = head.level
        ORDER BY w.priority, w.event_id
        LIMIT (SELECT CASE level {_RETRIES} ELSE :n END FROM head)
        FOR UPDATE OF w SKIP LOCKED
    )
    UPDATE work w SET
        state = CASE WHEN attempts < {MAX_ATTEMPTS} THEN 1 ELSE 9 END,
        attempts = attempts + CASE WHEN attempts < {MAX_ATTEMPTS} THEN 1 ELSE 0 END,
        lease_token = CASE WHEN attempts < {MAX_ATTEMPTS} THEN CAST(:token AS uuid) END,
        lease_until = CASE WHEN attempts < {MAX_ATTEMPTS} THEN now() + make_interval(secs => :lease) END,
        last_error = CASE WHEN attempts < {MAX_ATTEMPTS} THEN last_error
            ELSE coalesce(last_error, 'the worker died or lost its lease while this event was checked') END
    -- An array, not a join: the planner cannot know the LIMIT and would scan the whole table for a batch of 256.
    WHERE w.event_id = ANY (ARRAY (SELECT event_id FROM c))
    RETURNING w.event_id, w.project_id, w.bucket, w.state, w.attempts, w.refused,
        {", ".join("w." + d for d in DIMENSIONS)}
    """
)

# BETWEEN prunes the day partitions, which ANY alone does not; two reads, because the planner joins two ANY lists
# of one batch by trying every pair.
_AMONG = "id = ANY (CAST(:ids AS uuid[])) AND id BETWEEN :low AND :high"
_EVENTS = sa.text(f"SELECT id, images, geo_p, is_late FROM events WHERE {_AMONG}")
_BODIES = sa.text(f"SELECT id, prompt, output FROM event_bodies WHERE {_AMONG}")
_DELETE = sa.text(
    "DELETE FROM work WHERE event_id = ANY (CAST(:ids AS uuid[])) AND lease_token = :token AND state = 1 "
    "RETURNING event_id"
)


def register(
    session: orm.Session,
    *,
    name: str,
    label: str,
    is_demo: bool,
    reference_version: str | None,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
) -> int:
    """The id of this checker's row, made on first sight: another reference in its bundle is another row.

    `reference_version` None: the bundle brings none, and the one taken from traffic stays in force once it is frozen.
    """
    values = {
        "name": name,
        "bundle": reference_version or "",
        "label": label,
        "demo": is_demo,
        "reference": reference_version,
        "scale": logit_scale,
        "bias": logit_bias,
    }
    statement = sa.text(
        "INSERT INTO checkers (name, bundle_reference, label, is_demo, reference_version, logit_scale, logit_bias) "
        "VALUES (:name, :bundle, :label, :demo, :reference, :scale, :bias) "
        "ON CONFLICT (name, bundle_reference) DO UPDATE SET label = excluded.label, "
        "logit_scale = excluded.logit_scale, logit_bias = excluded.logit_bias RETURNING id"
    )
    return int(session.execute(statement, values).scalar_one())


def claim(session: orm.Session, n: int, lease_seconds: float, token: uuid.UUID) -> list[Claimed]:
    """Lease up to n events of one retry level to `token`. Commit before any inference.

    Rows met whose attempts are used up go to quarantine, and the next ones are looked at.
    """
    values: dict[str, Any] = {"n": n, "token": token, "lease": lease_seconds}
    while rows := session.execute(_CLAIM, values).all():
        leased = [row for row in rows if row.state == models.LEASED]
        if leased:
            return _with_content(session, leased)
    return []


def _with_content(session: orm.Session, rows: Sequence[sa.Row[Any]]) -> list[Claimed]:
    # By number: a UUID compares and hashes in Python, a twentieth of this path's time (bench/pipeline.py).
    claimed = {row.event_id.int: row for row in sorted(rows, key=lambda row: row.event_id.int)}
    event_ids = [row.event_id for row in claimed.values()]
    values = {"ids": _array(event_ids), "low": event_ids[0], "high": event_ids[-1]}
    heads = {row.id.int: row for row in session.execute(_EVENTS, values).all()}
    bodies = {row.id.int: row for row in session.execute(_BODIES, values).all()}
    return [
        _claimed(row, heads[number], bodies[number])
        for number, row in claimed.items()
        if number in heads and number in bodies
    ]


def _claimed(work: sa.Row[Any], head: sa.Row[Any], body: sa.Row[Any]) -> Claimed:
    return Claimed(
        event_id=work.event_id,
        project_id=work.project_id,
        slice=Slice(*work[-len(DIMENSIONS) :]),
        bucket=work.bucket,
        attempts=work.attempts,
        is_late=head.is_late,
        confidence=head.geo_p,
        images=tuple(head.images),
        prompt=body.prompt,
        output=body.output,
        refused=tuple(work.refused or ()),
    )


def extend(session: orm.Session, token: uuid.UUID, lease_seconds: float) -> int:
    """Renew the lease of everything `token` still holds; returns how many rows that is.

    Rows locked by the completion of the same batch are skipped, not waited for: two statements that take the same
    rows in different orders would deadlock, and those rows are going away.
    """
    return _count(
        session,
        "UPDATE work SET lease_until = now() + make_interval(secs => :lease) WHERE event_id = ANY (ARRAY ("
        "SELECT event_id FROM work WHERE lease_token = :token AND state = 1 FOR UPDATE SKIP LOCKED))",
        token=token,
        lease=lease_seconds,
    )


def release(session: orm.Session, token: uuid.UUID, event_ids: Sequence[uuid.UUID] | None = None) -> int:
    """Give back unharmed on an orderly stop: the attempt is not counted."""
    return _count(
        session,
        "UPDATE work SET state = 0, attempts = attempts - 1, lease_token = NULL, lease_until = NULL "
        "WHERE lease_token = :token AND state = 1 AND (CAST(:ids AS uuid[]) IS NULL OR event_id = ANY(:ids))",
        token=token,
        ids=None if event_ids is None else list(event_ids),
    )


def postpone(session: orm.Session, token: uuid.UUID, event_ids: Sequence[uuid.UUID], seconds: float, why: str) -> int:
    """Give back what cannot be looked at now through no fault of its own: the attempt is not counted."""
    return _count(
        session,
        "UPDATE work SET state = 0, attempts = attempts - 1, lease_token = NULL, lease_until = NULL, "
        "last_error = :why, not_before = now() + make_interval(secs => :seconds) "
        "WHERE lease_token = :token AND state = 1 AND event_id = ANY(:ids)",
        token=token,
        ids=list(event_ids),
        seconds=seconds,
        why=check_rows.storable(why)[:500],
    )


def fail(session: orm.Session, token: uuid.UUID, event_ids: Sequence[uuid.UUID], error: str) -> int:
    """Give back after a failure: the attempt counts, and the next one is a second later and in a smaller batch."""
    return _count(
        session,
        "UPDATE work SET state = 0, lease_token = NULL, lease_until = NULL, last_error = :error, "
        "not_before = now() + interval '1 second' WHERE lease_token = :token AND state = 1 AND event_id = ANY(:ids)",
        token=token,
        ids=list(event_ids),
        error=check_rows.storable(error)[:500],
    )


def complete(
    session: orm.Session, token: uuid.UUID, checker_id: int, pairs: Sequence[tuple[CheckResult, Decision]]
) -> list[Decided]:
    """Delete the work rows this token still holds and write exactly their checks and decisions.

    The DELETE is the guard: a zombie whose lease was taken deletes 0 rows, so writes and counts nothing.
    Raises Invalid, before anything is written, for a scored result without finite numbers.
    """
    for result, _ in pairs:
        check_rows.require_numbers(result)
    ids = [result.event.event_id for result, _ in pairs]
    deleted = {row.event_id.int for row in session.execute(_DELETE, {"ids": _array(ids), "token": token}).all()}
    done = [Decided(result, decision, checker_id) for result, decision in pairs if result.event.event_id.int in deleted]
    check_rows.insert_checks(session, done)
    check_rows.insert_decisions(session, done)
    return done


def _array(ids: Sequence[uuid.UUID]) -> str:
    """As Postgres writes an array: psycopg quotes a list element by element, which costs ten times as much."""
    return "{" + ",".join([one.hex for one in ids]) + "}"


def waiting(session: orm.Session, project_id: uuid.UUID | None = None) -> int:
    return session.execute(
        sa.select(sa.func.count())
        .select_from(models.Work)
        .where(models.Work.state != models.QUARANTINED, *_of(project_id))
    ).scalar_one()


def has_ready(session: orm.Session) -> bool:
    """Whether a drain would find anything now; what the poll thread asks every two seconds."""
    return bool(session.execute(sa.text(f"SELECT EXISTS (SELECT FROM work WHERE {_READY})")).scalar_one())


def quarantined(session: orm.Session, project_id: uuid.UUID, limit: int = 200) -> Sequence[models.Work]:
    """The events no worker survived, oldest first, each with its last error."""
    return session.scalars(
        sa.select(models.Work)
        .where(models.Work.state == models.QUARANTINED, *_of(project_id))
        .order_by(models.Work.event_id)
        .limit(limit)
    ).all()


def replay(session: orm.Session, project_id: uuid.UUID, event_ids: Sequence[uuid.UUID] | None = None) -> int:
    """Give quarantined events (all, or those named) a fresh start; returns how many."""
    return _count(
        session,
        "UPDATE work SET state = 0, attempts = 0, not_before = now(), last_error = NULL "
        "WHERE state = 9 AND project_id = :project "
        "AND (CAST(:ids AS uuid[]) IS NULL OR event_id = ANY(:ids))",
        project=project_id,
        ids=None if event_ids is None else list(event_ids),
    )


def _of(project_id: uuid.UUID | None) -> list[sa.ColumnElement[bool]]:
    return [] if project_id is None else [models.Work.project_id == project_id]


def _count(session: orm.Session, statement: str, **values: Any) -> int:
    result = session.execute(sa.text(statement), values)
    return int(result.rowcount)  # type: ignore[attr-defined]
