"""GET /v1/cmer and /v1/ledger: rates with their n, interval and coverage; and where every event is."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import orm

from cmerwatch import cmer_series, errors, ledger, models, shapes
from cmerwatch_web import deps
from cmerwatch_web.api import events, times

router = APIRouter(prefix="/v1", tags=["rates"])

# What one answer may span: at most some ten thousand buckets.
_MOST = {"5m": dt.timedelta(days=31), "1h": dt.timedelta(days=400), "1d": dt.timedelta(days=3660)}


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
) -> JSONResponse:
    """CMER by bucket and group, of the current checker unless another is named; the last 8 days by default."""
    events.require_known(request, ("from", "to", "bucket", "group_by", "checker", *shapes.DIMENSIONS))
    events.require_one_of("bucket", bucket, tuple(_MOST))
    groups = list(dict.fromkeys(name for name in (group_by or "").split(",") if name))
    for name in groups:
        events.require_one_of("group_by", name, shapes.DIMENSIONS)
    first, last = times.window(start, to, cmer_series.DEFAULT_WINDOW, _MOST[bucket])
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
    )
    answer = {
        "from": first.isoformat(),
        "to": last.isoformat(),
        "bucket": bucket,
        "checker": found.name if found else None,
        "rows": [_rate(row) for row in rows],
    }
    return JSONResponse(answer)


def _checker(session: orm.Session, project_id: uuid.UUID, name: str | None) -> models.Checker | None:
    """The one named, else the one that checks this project now; None before the first check."""
    if name is None:
        return cmer_series.current_checker(session, project_id)
    found = session.scalar(sa.select(models.Checker).where(models.Checker.name == name))
    if found is None:
        raise errors.Invalid("`checker` names none that ever checked here; copy its whole id.", field="checker")
    return found


def _rate(row: cmer_series.CmerRow) -> dict[str, Any]:
    """No interval without an n: (0, 1) would look like a measurement."""
    low, high = row.cmer.interval if row.n else (None, None)
    uer_low, uer_high = row.uer.interval if row.uer.n else (None, None)
    return {
        "start": row.start.isoformat(),
        **row.group,
        "n": row.n,
        "scored": row.scored,
        "flagged": row.flagged,
        "cmer": row.cmer.value,
        "low": low,
        "high": high,
        "coverage": row.coverage,
        "uer": row.uer.value,
        "uer_n": row.uer.n,
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


@router.get("/ledger")
def get_ledger(
    request: Request,
    principal: deps.MayRead,
    session: deps.Session,
    start: times.From = None,
    to: times.To = None,
) -> JSONResponse:
    """Per hour: accepted = scored + unscorable + invalid_image + model_error + quarantined + waiting."""
    events.require_known(request, ("from", "to"))
    first, last = times.window(start, to, cmer_series.DEFAULT_WINDOW, _MOST["1h"])
    rows = ledger.hours(session, principal.project_id, first, last)
    hours = [{"hour": row.hour.isoformat(), **_counts(row), "difference": row.difference} for row in rows]
    return JSONResponse(
        {"from": first.isoformat(), "to": last.isoformat(), "rows": hours, "totals": ledger.totals(rows)}
    )


def _counts(row: ledger.LedgerRow) -> dict[str, int]:
    return {name: getattr(row, name) for name in ledger.COUNTS}
