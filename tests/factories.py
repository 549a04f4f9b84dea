"""Events, results and completions made small, with what a test cares about named and the rest filled in."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from PIL import Image
from sqlalchemy import orm

from cmerwatch import access, checks, db, events, ids, models, policies, reviews, rollups, withheld
from cmerwatch.shapes import CheckResult, Claimed, ClaimScore, Decided, Decision, Slice
from tests import stack

AT = dt.datetime(2026, 3, 4, 10, 17, 30, tzinfo=dt.UTC)


def project(session: orm.Session, slug: str = "") -> uuid.UUID:
    """A project with the default policy."""
    made = access.create_project(session, slug or f"p-{uuid.uuid4()}")
    policies.ensure_default(session, made.id)
    return made.id


def image(session: orm.Session, project_id: uuid.UUID, name: str = "picture") -> str:
    """The sha256 of an image this project has uploaded."""
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    if session.get(models.Image, (project_id, sha256)) is None:
        session.add(models.Image(project_id=project_id, sha256=sha256, size_bytes=1, format="png", width=32, height=32))
        session.flush()
    return sha256


def png(width: int = 3, height: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def new_event(*images: str, **fields: Any) -> events.NewEvent:
    """Dimensions may be given by name; the rest are fields of NewEvent."""
    dimensions = {name: fields.pop(name) for name in Slice._fields if name in fields}
    known: dict[str, Any] = {"output": "A red circle.", "prompt": "Describe the scene.", "confidence": 0.9} | fields
    return events.NewEvent(slice=Slice(**({"endpoint": "/describe"} | dimensions)), images=images, **known)


def ingest(
    session: orm.Session, project_id: uuid.UUID, received_at: dt.datetime | None = None, **fields: Any
) -> uuid.UUID:
    """Store one event with an image; returns its id."""
    sha256 = image(session, project_id)
    return events.ingest(session, project_id, new_event(sha256, **fields), received_at).id


def ingest_many(session: orm.Session, project_id: uuid.UUID, n: int, **fields: Any) -> list[uuid.UUID]:
    """In the order in which they are claimed: ids of one millisecond are in no order of their own."""
    return sorted(ingest(session, project_id, **fields) for _ in range(n))


def slow_events(session: orm.Session) -> None:
    """From here to the rollback, whoever reads an event waits for longer than the database lets a statement run."""
    session.execute(sa.text("ALTER TABLE events RENAME TO fast_events"))
    session.execute(sa.text("CREATE VIEW events AS SELECT fast_events.* FROM fast_events, pg_sleep(60)"))
    session.execute(sa.text("SET LOCAL statement_timeout = '1s'"))


def checker(session: orm.Session, name: str = "clip:test:0:1", **fields: Any) -> int:
    return checks.register(session, name=name, label=name, is_demo=False, reference_version="r1", **fields)


def claim(session: orm.Session, n: int = 256, token: uuid.UUID | None = None) -> tuple[uuid.UUID, list[Claimed]]:
    token = token or uuid.uuid4()
    return token, checks.claim(session, n, 30, token)


def expire(session: orm.Session, token: uuid.UUID | None = None) -> None:
    """Let the leases (of one token, or all) and the waits after failures run out, as if time had passed."""
    session.execute(
        sa.text(
            "UPDATE work SET not_before = now() - interval '1 minute', "
            "lease_until = CASE WHEN state = 1 THEN now() - interval '1 second' END "
            "WHERE CAST(:token AS uuid) IS NULL OR lease_token = :token"
        ),
        {"token": token},
    )


def wait_for_locks(n: int) -> None:
    """Until n statements of this database wait for another's lock."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with db.SessionLocal() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        stack.wait_until(lambda: session.scalar(waiting) == n)


def claimed(**fields: Any) -> Claimed:
    """A leased event that is in no database."""
    known: dict[str, Any] = {
        "event_id": ids.uuid7(AT),
        "project_id": uuid.UUID(int=1),
        "slice": Slice("/describe"),
        "bucket": events.bucket_of(AT),
        "attempts": 1,
        "is_late": False,
        "confidence": 0.9,
        "images": ("00",),
        "prompt": "What is this?",
        "output": "A red circle.",
    }
    return Claimed(**(known | fields))


def result(event: Claimed, score: float | None = 0.5, similarity: float | None = 0.3, **fields: Any) -> CheckResult:
    """Scored, unless another outcome is named."""
    if fields.get("outcome", "scored") != "scored":
        return CheckResult(event, **fields)
    pieces = () if similarity is None else (ClaimScore(0, len(event.output), similarity, score),)
    known = {"outcome": "scored", "similarity": similarity, "score": score, "claims": pieces}
    return CheckResult(event, **(known | fields))


DEFAULT_POLICY = policies.parse(1, policies.DEFAULT_RULES)


def decided(
    score: float | None = 0.5, similarity: float | None = 0.3, is_calibrated: bool = True, **fields: Any
) -> Decided:
    """A check that is in no database, decided by the default policy."""
    about = {name: fields.pop(name) for name in ("outcome", "reasons") if name in fields}
    made = result(claimed(**fields), score, similarity, **about)
    return Decided(made, DEFAULT_POLICY.decide(made, is_calibrated), fields.get("checker_id", 1))


def complete(
    session: orm.Session,
    token: uuid.UUID,
    checker_id: int,
    results: Iterable[CheckResult],
    *,
    is_calibrated: bool = True,
    audit_rate: float = 0.0,
) -> list[Decided]:
    """What a worker does in its one transaction: decide, complete, count, route."""
    results = list(results)
    in_force = policies.current(session, {one.event.project_id for one in results})
    has_bias = session.get_one(models.Checker, checker_id).logit_bias is not None
    pairs: Sequence[tuple[CheckResult, Decision]] = [
        (one, in_force[one.event.project_id].decide(one, is_calibrated, has_bias)) for one in results
    ]
    done = checks.complete(session, token, checker_id, pairs)
    rollups.add(session, done)
    withheld.keep(session, done)
    reviews.route(session, done, audit_rate)
    return done


def check_all(
    session: orm.Session,
    score: float | Callable[[Claimed], float | None] | None = 0.5,
    checker_id: int | None = None,
    **fields: Any,
) -> list[Decided]:
    """Claim whatever is ready and complete it."""
    made = checker(session) if checker_id is None else checker_id
    about = {name: fields.pop(name) for name in ("outcome", "similarity", "reasons") if name in fields}
    done: list[Decided] = []
    while True:
        token, batch = claim(session)
        if not batch:
            return done
        results = [result(event, score(event) if callable(score) else score, **about) for event in batch]
        done += complete(session, token, made, results, **fields)
