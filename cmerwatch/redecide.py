"""Decide history again under a newer policy version: in small steps, each output once, beside what was decided then.

A step locks the job's row, so two workers never take the same outputs; its decisions, their counts and how far it has
come are one transaction, so a worker that dies in between leaves nothing half done. Nothing is checked again and no
picture is needed: scores and confidences are kept. The review queue is left alone. An output that a checker's reference
decides later than this passes it keeps the version it was counted with.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import check_rows, errors, events, models, policies, rollups
from cmerwatch.policies import Policy
from cmerwatch.shapes import DIMENSIONS, CheckResult, Claimed, Decided, Slice

STEP = 2000  # checks per transaction: some 100 ms, so that ingest and checking never wait long for a rollup row
_FIRST = uuid.UUID(int=0)
# A worker reads the version in force inside the transaction that completes a batch, which lasts 30 s at most: once the
# new version is this old, nothing is decided under an older one any more, behind this job's back. Mostly that is known
# at once: no transaction is open that read an older version (`policies.is_taken_up`).
SETTLED = dt.timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Progress:
    """`seen` of about `total` outputs; finished once every one of them was looked at under this version."""

    policy_version: int
    seen: int
    total: int
    finished_at: dt.datetime | None
    cancelled_at: dt.datetime | None = None

    @property
    def is_running(self) -> bool:
        return self.finished_at is None and self.cancelled_at is None

    @property
    def share(self) -> float:
        return 1.0 if self.finished_at or not self.total else min(self.seen / self.total, 0.999)


def start(session: orm.Session, project_id: uuid.UUID, policy_version: int, created_by: str) -> None:
    """One that was cancelled goes on where it stood.

    Raises Conflict unless it is the version in force, when it is done, and while one runs in this project.
    """
    # The project's row is the lock: two people who start one at the same moment must not both find none running.
    session.execute(sa.select(models.Project.id).where(models.Project.id == project_id).with_for_update())
    newest = session.scalar(
        sa.select(sa.func.max(models.PolicyVersion.version)).where(models.PolicyVersion.project_id == project_id)
    )
    if policy_version != newest:
        raise errors.Conflict(
            f"Version {policy_version} is not in force; history is decided again under {newest} only."
        )
    jobs = progress(session, project_id)
    running = next((job for job in jobs.values() if job.is_running), None)
    if running is not None:
        raise errors.Conflict(
            f"History is being decided again under version {running.policy_version} already ({running.share:.0%} so "
            "far), one at a time: wait until it is done, or cancel it on the policies page.",
            version=running.policy_version,
        )
    if policy_version in jobs and jobs[policy_version].finished_at:
        raise errors.Conflict(f"History was decided again under version {policy_version} already.")
    if policy_version in jobs:
        session.get_one(models.Redecision, (project_id, policy_version)).cancelled_at = None
    else:
        session.add(_job(session, project_id, policy_version, created_by))
    session.flush()


def _job(session: orm.Session, project_id: uuid.UUID, policy_version: int, created_by: str) -> models.Redecision:
    decided = sa.select(sa.func.coalesce(sa.func.sum(models.Rollup1h.scored - models.Rollup1h.undecided), 0))
    return models.Redecision(
        project_id=project_id,
        policy_version=policy_version,
        created_by=created_by,
        last_event_id=_FIRST,
        total=session.scalar(decided.where(models.Rollup1h.project_id == project_id)),
    )


def cancel(session: orm.Session, project_id: uuid.UUID, policy_version: int | None = None) -> int:
    """Stop the one that runs between two steps (that under this version, where one is named); returns its version.

    What it decided so far stays, readable under that version; charts go on reading history as it was decided before.
    Raises Conflict where none runs.
    """
    running = sa.select(models.Redecision).where(
        models.Redecision.project_id == project_id,
        models.Redecision.finished_at.is_(None),
        models.Redecision.cancelled_at.is_(None),
    )
    if policy_version is not None:
        running = running.where(models.Redecision.policy_version == policy_version)
    job = session.scalars(running.with_for_update()).first()
    if job is None:
        under = f" under version {policy_version}" if policy_version is not None else ""
        raise errors.Conflict(f"History is not being decided again{under} now, so there is nothing to cancel.")
    job.cancelled_at = session.scalar(sa.func.now())
    session.flush()
    return job.policy_version


def progress(session: orm.Session, project_id: uuid.UUID) -> dict[int, Progress]:
    """By policy version."""
    rows = session.scalars(sa.select(models.Redecision).where(models.Redecision.project_id == project_id))
    return {
        row.policy_version: Progress(row.policy_version, row.seen, row.total, row.finished_at, row.cancelled_at)
        for row in rows
    }


def step(session: orm.Session, size: int = STEP) -> bool:
    """Decide the next few outputs of one job; False when there is none to go on with now."""
    job = _next_job(session)
    if job is None or not _may_begin(session, job):
        return False
    values = {"project": job.project_id, "after": job.last_event_id, "version": job.policy_version, "size": size}
    last = session.execute(_LAST, values).scalar()
    if last is None:
        job.finished_at = session.scalar(sa.func.now())
    else:
        wanted = (job.project_id, job.policy_version)
        rows = session.execute(_NEXT, values | {"last": last}).all()
        _decide(session, policies.at(session, [wanted])[wanted], [row for row in rows if not row.has_decision])
        # Not the last of the rows: those of a day whose events are gone would be met again and again.
        job.last_event_id = last
        job.seen += len(rows)
    session.flush()
    return True


def _next_job(session: orm.Session) -> models.Redecision | None:
    """Locked, the oldest first."""
    return session.scalars(
        sa.select(models.Redecision)
        .where(models.Redecision.finished_at.is_(None), models.Redecision.cancelled_at.is_(None))
        .order_by(models.Redecision.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()


def _may_begin(session: orm.Session, job: models.Redecision) -> bool:
    """Whether no worker decides by an older version any more; one that has begun was found so before."""
    if job.last_event_id != _FIRST:
        return True
    is_old = sa.select(models.PolicyVersion.created_at < sa.func.now() - SETTLED).where(
        models.PolicyVersion.project_id == job.project_id, models.PolicyVersion.version == job.policy_version
    )
    return bool(session.scalar(is_old)) or policies.is_taken_up(session, job.project_id)


# Whole events at a time: two checks of one event must not be parted by the end of a step, or the second is skipped.
_LAST = sa.text(
    """
    SELECT max(event_id::text)::uuid AS last FROM (
        SELECT event_id FROM checks
        WHERE project_id = :project AND event_id > :after AND outcome = 'scored' AND score IS NOT NULL
        ORDER BY event_id LIMIT :size
    ) AS few
    """
)

# What is withheld has no decision yet: it will be counted under the version that makes the first one (withheld.py).
_NEXT = sa.text(
    f"""
    SELECT c.event_id, c.checker_id, c.project_id, c.similarity, c.score, c.claims, e.received_at, e.geo_p, e.is_late,
        ch.logit_bias IS NOT NULL AS has_bias, {", ".join("e." + name for name in DIMENSIONS)},
        EXISTS (
            SELECT FROM decisions d WHERE d.event_id = c.event_id AND d.checker_id = c.checker_id
            AND d.policy_version >= :version
        ) AS has_decision
    FROM checks c JOIN events e ON e.id = c.event_id JOIN checkers ch ON ch.id = c.checker_id
    WHERE c.event_id > :after AND c.event_id <= :last AND e.id > :after AND e.id <= :last
        AND c.project_id = :project AND c.outcome = 'scored' AND c.score IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM withheld w WHERE w.project_id = c.project_id AND w.policy_version = c.policy_version
            AND w.event_id = c.event_id AND w.checker_id = c.checker_id
        )
    ORDER BY c.event_id
    """
)


def _decide(session: orm.Session, policy: Policy, rows: Sequence[sa.Row[Any]]) -> None:
    """Insert what is not there and can be decided by this policy, and count exactly what was inserted."""
    every = {(row.event_id, row.checker_id): _decided(policy, row) for row in rows}
    decided = {key: one for key, one in every.items() if one.decision.is_decided}
    made = session.execute(_INSERT, {"rows": json.dumps([check_rows.decision(one) for one in decided.values()])}).all()
    rollups.add_again(session, [decided[row.event_id, row.checker_id] for row in made])


def _decided(policy: Policy, row: sa.Row[Any]) -> Decided:
    event = Claimed(
        event_id=row.event_id,
        project_id=row.project_id,
        slice=Slice(*(getattr(row, name) for name in DIMENSIONS)),
        bucket=events.bucket_of(row.received_at),
        attempts=0,
        is_late=row.is_late,
        confidence=row.geo_p,
        images=(),
        prompt="",
        output="",
    )
    claims = tuple(check_rows.read(claim) for claim in row.claims)
    result = CheckResult(event, "scored", row.similarity, row.score, claims=claims)
    return Decided(result, policy.decide(result, is_calibrated=True, has_bias=row.has_bias), row.checker_id)


_NAMES = ", ".join(column.split()[0] for column in check_rows.DECISION.split(", "))
_INSERT = sa.text(
    f"INSERT INTO decisions ({_NAMES}) SELECT {_NAMES} "
    f"FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({check_rows.DECISION}) "
    "ON CONFLICT DO NOTHING RETURNING event_id, checker_id"
)
