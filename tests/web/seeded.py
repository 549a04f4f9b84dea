"""Events and checks laid through the core as the worker would lay them, for pages to show.

The similarities are drawn here, so that a test knows what the page must say; everything else is the product's.
"""

from __future__ import annotations

import datetime as dt
import random
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence

from sqlalchemy import orm

from cmerwatch import blobs, checks, events, models, policies, reviews, rollups, withheld
from cmerwatch.shapes import CheckResult, Claimed, ClaimScore, Slice

LABEL = "test: numbers drawn by a test"
Judge = Callable[[Claimed], CheckResult]


def png(width: int = 8, height: int = 8, shade: int = 128) -> bytes:
    """A grey PNG, small and real."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([shade]) * width for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# A 1 x 1 WebP, as a worker's display copy would be.
WEBP = bytes.fromhex("524946461a000000574542505650384c0d0000002f00000010071011118888fe0700")


def checker(
    session: orm.Session,
    reference_version: str | None = "test-1",
    label: str = LABEL,
    name: str = "test:drawn",
    **logit: float,
) -> int:
    return checks.register(session, name=name, label=label, is_demo=True, reference_version=reference_version, **logit)


def event(
    session: orm.Session,
    store: blobs.BlobStore,
    project_id: uuid.UUID,
    *,
    output: str = "A red circle.",
    prompt: str | None = "What is this?",
    at: dt.datetime | None = None,
    confidence: float | None = 0.95,
    picture: bytes | None = None,
    display: bytes | None = WEBP,
    tokens: Sequence[str] | None = None,
    logprobs: Sequence[float] | None = None,
    metadata: dict[str, object] | None = None,
    event_id: str | None = None,
    **dimensions: str,
) -> uuid.UUID:
    """Ingest one event; its display copy is stored unless it is None (a worker that has not come by yet)."""
    sha256 = events.store_image(session, store, project_id, picture or png())
    if display is not None:
        store.put_display(project_id, sha256, display)
    new = events.NewEvent(
        slice=Slice(**({"endpoint": "/describe"} | dimensions)),
        images=(sha256,),
        prompt=prompt,
        output=output,
        confidence=None if logprobs else confidence,
        tokens=None if tokens is None else tuple(tokens),
        logprobs=None if logprobs is None else tuple(logprobs),
        metadata=dict(metadata or {}),
        event_id=event_id,
    )
    return events.ingest(session, project_id, new, at).id


def scored(similarity: float, percentile: float | None, spans: Sequence[tuple[int, int]] = ()) -> Judge:
    """A judge that gives every claim the same numbers; without spans the whole output is one claim."""

    def judge(claimed: Claimed) -> CheckResult:
        found = spans or [(0, len(claimed.output))]
        claims = tuple(ClaimScore(start, end, similarity, percentile) for start, end in found)
        score = None if percentile is None else 1 - (1 - percentile) ** len(claims)
        return CheckResult(claimed, "scored", similarity, score, None, claims)

    return judge


def ended(outcome: str, *reasons: str) -> Judge:
    return lambda claimed: CheckResult(claimed, outcome, reasons=reasons)


def check(
    session: orm.Session,
    judge: Judge,
    *,
    is_calibrated: bool = True,
    audit_rate: float = 0.0,
    checker_id: int | None = None,
) -> int:
    """Claim everything that waits and complete it as the worker does; returns how many."""
    token, done = uuid.uuid4(), 0
    checker_id = checker(session) if checker_id is None else checker_id
    while claimed := checks.claim(session, 4096, 30, token):
        current = policies.current(session, {one.project_id for one in claimed})
        results = [judge(one) for one in claimed]
        has_bias = session.get_one(models.Checker, checker_id).logit_bias is not None
        pairs = [
            (result, current[result.event.project_id].decide(result, is_calibrated, has_bias)) for result in results
        ]
        decided = checks.complete(session, token, checker_id, pairs)
        rollups.add(session, decided)
        withheld.keep(session, decided)
        reviews.route(session, decided, audit_rate)
        done += len(decided)
    return done


def moments(days: float, n: int, rng: random.Random, end: dt.datetime) -> list[dt.datetime]:
    return sorted(end - dt.timedelta(days=days) * rng.random() for _ in range(n))
