"""GET /v1/cmer: rates with their n, interval and coverage."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import orm

from cmerwatch import blindness, cmer_series, errors, models, policies, shapes
from cmerwatch_web import deps
from cmerwatch_web.api import events, times

router = APIRouter(prefix="/v1", tags=["rates"])

# What one answer may span: at most some ten thousand buckets.
MOST = {"5m": dt.timedelta(days=31), "1h": dt.timedelta(days=400), "1d": dt.timedelta(days=3660)}

MOST_ROWS = 10_000  # of one answer: four megabytes


@router.get("/cmer")
def get_cmer(
    request: Request,
    principal: deps.MayRead,
    session: deps.Session,
    start: times.From = None,
    to: times.To = None,
    bucket: str = "1h",
    group_by: Annotated[str | None, Query(description="Dimensions, separated by commas.")] = None,
    checker: str | None = None,
    policy_version: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> JSONResponse:
    """CMER by bucket and group, of the current checker unless another is named; the last 8 days by default.

    Rates of different checkers are never added up; `checkers` lists all that counted in the window, and since when.
    Each output counts as it was decided when it was checked; `policy_changes` says when that changed in the window.
    With `policy_version` only that version's decisions count, and what another decided is `undecided`. An answer of
    more than 10 000 rows is refused: ask for wider buckets, a shorter time or a narrower slice. With blind reviews,
    `flagged`, `cmer`, `uer`, their intervals and `sim_quartiles` are null for reviewers where fewer than 50 outputs
    count.
    """
    known = ("from", "to", "bucket", "group_by", "checker", "policy_version", *shapes.DIMENSIONS)
    events.require_known(request, known)
    events.require_one_of("bucket", bucket, tuple(MOST))
    groups = list(dict.fromkeys(name for name in (group_by or "").split(",") if name))
    for name in groups:
        events.require_one_of("group_by", name, shapes.DIMENSIONS)
    first, last = times.window(start, to, cmer_series.DEFAULT_WINDOW, MOST[bucket])
    found = _checker(session, principal.project_id, checker)
    rows = cmer_series.query(
        session,
        principal.project_id,
        first,
        last,
        bucket,
        groups,
        events.dimensions(request),
        checker_id=found.id if found else None,
        policy_version=None if policy_version is None else _policy(session, principal.project_id, policy_version),
        most=MOST_ROWS + 1,
    )
    _require_room(rows, groups)
    fewest = blindness.fewest(session, principal)
    answer = {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "bucket": bucket,
        "checker": found.name if found else None,
        "checkers": [_seen(one) for one in cmer_series.checkers(session, principal.project_id, first, last)],
        "policy_version": policy_version,
        "policy_changes": [
            {"version": one.version, "at": one.created_at.isoformat()}
            for one in policies.changes(session, principal.project_id, first, last)
        ],
        "rows": [_rate(replace(row, fewest=fewest)) for row in rows],
    }
    return JSONResponse(answer)


def _require_room(rows: Sequence[cmer_series.CmerRow], groups: Sequence[str]) -> None:
    if len(rows) > MOST_ROWS:
        raise errors.Invalid(
            f"This would answer with more than {MOST_ROWS:,} rows. Ask for a wider `bucket`, a shorter time between "
            "`from` and `to`, fewer dimensions in `group_by`, or one value of a dimension.",
            field="group_by" if groups else "bucket",
            limit=MOST_ROWS,
        )


def _seen(one: cmer_series.Seen) -> dict[str, Any]:
    return {"checker": one.checker.name, "first": one.first.isoformat(), "outputs": one.outputs}


def _checker(session: orm.Session, project_id: uuid.UUID, name: str | None) -> models.Checker | None:
    """The one named, else the one that checks this project now; None before the first check."""
    if name is None:
        return cmer_series.current_checker(session, project_id)
    # A bundle's new reference is another row under the same name: the newest is what is meant.
    named = sa.select(models.Checker).where(models.Checker.name == name).order_by(models.Checker.id.desc())
    found = session.scalar(named.limit(1))
    if found is None:
        raise errors.Invalid("`checker` names none that ever checked here; copy its whole id.", field="checker")
    return found


def _policy(session: orm.Session, project_id: uuid.UUID, number: int) -> int:
    try:
        return policies.version(session, project_id, number).version
    except errors.NotFound as error:
        raise errors.Invalid(error.message, field="policy_version") from None


def _rate(row: cmer_series.CmerRow) -> dict[str, Any]:
    """No interval without an n: (0, 1) would look like a measurement."""
    low, high = row.cmer.interval if row.cmer.n else (None, None)
    uer_low, uer_high = row.uer.interval if row.uer.n else (None, None)
    return {
        "start": row.start.isoformat(),
        **row.group,
        "n": row.n,
        "scored": row.scored,
        "flagged": row.flagged_shown,
        "cmer": row.cmer.value,
        "low": low,
        "high": high,
        "coverage": row.coverage,
        "uer": row.uer.value,
        "uer_n": row.decided,
        "uer_low": uer_low,
        "uer_high": uer_high,
        "sim_quartiles": row.sim_quartiles,
        "accepted": row.accepted,
        "waiting": row.waiting,
        "unscorable": row.unscorable,
        "invalid_image": row.invalid_image,
        "model_error": row.model_error,
        "quarantined": row.quarantined,
        "undecided": row.undecided,
    }
