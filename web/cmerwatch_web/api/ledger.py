"""GET /v1/ledger: where every accepted event is now, hour by hour."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from cmerwatch import cmer_series, ledger
from cmerwatch_web import deps
from cmerwatch_web.api import cmer, events, times

router = APIRouter(prefix="/v1", tags=["rates"])


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
    first, last = times.window(start, to, cmer_series.DEFAULT_WINDOW, cmer.MOST["1h"])
    rows = ledger.hours(session, principal.project_id, first, last)
    hours = [{"hour": row.hour.isoformat(), **_counts(row), "difference": row.difference} for row in rows]
    return JSONResponse(
        {
            "from": first.isoformat(),
            "to": last.isoformat(),
            "project": principal.project_slug,
            "rows": hours,
            "totals": ledger.totals(rows),
        }
    )


def _counts(row: ledger.LedgerRow) -> dict[str, int]:
    return {name: getattr(row, name) for name in ledger.COUNTS}
