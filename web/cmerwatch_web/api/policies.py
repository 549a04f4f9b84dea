"""/v1/policies: the thresholds in force, every version before them, the next one, and what it would have flagged."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from sqlalchemy import orm

from cmerwatch import access, blindness, cmer_series, models, policies, policy_preview, redecide
from cmerwatch_web import deps
from cmerwatch_web.api import events

router = APIRouter(prefix="/v1/policies", tags=["policies"])


class Rules(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    rules: Annotated[list[dict[str, Any]], pydantic.Field(max_length=policies.MAX_RULES)]


class NewVersion(Rules):
    """`based_on`: the version that was looked at; another newest one is then a conflict. `redecide`: history, too."""

    based_on: int | None = None
    redecide: bool = False


@router.get("")
def list_policies(request: Request, principal: deps.MaySeePolicies, session: deps.Session) -> JSONResponse:
    """The newest 100 versions, the one in force first."""
    events.require_known(request, ())
    rows = policies.versions(session, principal.project_id)
    again = redecide.progress(session, principal.project_id)
    shown = [_whole(row, again.get(row.version)) for row in rows]
    return JSONResponse({"current": rows[0].version if rows else None, "rows": shown})


@router.get("/{version}")
def get_policy(
    principal: deps.MaySeePolicies, session: deps.Session, version: Annotated[int, Path(ge=1)]
) -> JSONResponse:
    return JSONResponse(_one(session, principal, version))


@router.post("", status_code=201)
def create_policy(principal: deps.MayChangePolicies, session: deps.Session, sent: NewVersion) -> JSONResponse:
    """The next version, in force for what is checked from now on; with `redecide` for what was checked before, too."""
    policies.require_meaning(sent.rules, cmer_series.current_checker(session, principal.project_id))
    made = policies.create(session, principal.project_id, sent.rules, principal.actor, sent.based_on)
    access.audit(
        session, principal.actor, "policy.create", f"version {made}", principal.project_id, rules=len(sent.rules)
    )
    if sent.redecide:
        redecide.start(session, principal.project_id, made, principal.actor)
        access.audit(session, principal.actor, "policy.redecide", f"version {made}", principal.project_id)
    return JSONResponse(_one(session, principal, made), 201)


@router.post("/{version}/redecide", status_code=202)
def decide_again(
    principal: deps.MayChangePolicies, session: deps.Session, version: Annotated[int, Path(ge=1)]
) -> JSONResponse:
    """History under the version in force, for who saved it without; one that was cancelled goes on."""
    policies.version(session, principal.project_id, version)
    redecide.start(session, principal.project_id, version, principal.actor)
    access.audit(session, principal.actor, "policy.redecide", f"version {version}", principal.project_id)
    return JSONResponse(_one(session, principal, version), 202)


@router.delete("/{version}/redecide")
def cancel_deciding(
    principal: deps.MayChangePolicies, session: deps.Session, version: Annotated[int, Path(ge=1)]
) -> JSONResponse:
    """Stop it where it stands: both versions stay readable, and rates read history as it was decided before."""
    policies.version(session, principal.project_id, version)
    redecide.cancel(session, principal.project_id, version)
    access.audit(session, principal.actor, "policy.redecide_cancel", f"version {version}", principal.project_id)
    return JSONResponse(_one(session, principal, version))


@router.post("/preview")
def preview(principal: deps.MaySeePolicies, session: deps.Session, sent: Rules) -> JSONResponse:
    """What these rules would have flagged over the last 7 days, per rule: exact, or from `least` to `most`."""
    blindness.require_previews(session, principal)
    checker = cmer_series.current_checker(session, principal.project_id)
    policies.require_meaning(sent.rules, checker)
    end = dt.datetime.now(dt.UTC)
    start = end - policy_preview.WINDOW
    found = policy_preview.estimate(
        session, principal.project_id, checker.id if checker else None, sent.rules, start, end
    )
    return JSONResponse(
        {
            "from": start.isoformat(),
            "to": end.isoformat(),
            "rows": [_estimate(one) for one in found],
            "total": _estimate(sum(found, policy_preview.NOTHING)),
        }
    )


def _estimate(one: policy_preview.Estimate) -> dict[str, Any]:
    return {"n": one.n, "flagged": one.before, "least": one.least, "most": one.most, "is_exact": one.is_exact}


def _one(session: orm.Session, principal: access.Principal, version: int) -> dict[str, Any]:
    row = policies.version(session, principal.project_id, version)
    return _whole(row, redecide.progress(session, principal.project_id).get(version))


def _whole(row: models.PolicyVersion, again: redecide.Progress | None) -> dict[str, Any]:
    """`redecided` is null where history keeps the decisions it had."""
    return {
        "version": row.version,
        "rules": row.rules,
        "created_at": row.created_at.isoformat(),
        "created_by": row.created_by,
        "redecided": again
        and {
            "seen": again.seen,
            "total": again.total,
            "finished_at": again.finished_at.isoformat() if again.finished_at else None,
            "cancelled_at": again.cancelled_at.isoformat() if again.cancelled_at else None,
        },
    }
