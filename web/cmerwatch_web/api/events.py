"""POST /v1/events: what a 202 promises is on disk and committed. GET: one event whole, or thin pages of them."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy import orm
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cmerwatch import (
    access,
    blindness,
    errors,
    event_views,
    fetches,
    models,
    policies,
    shapes,
)
from cmerwatch_web import deps
from cmerwatch_web import errors as web_errors
from cmerwatch_web.api import bodies, intake, metrics, schemas, times

router = APIRouter(prefix="/v1", tags=["events"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schemas.EventSource.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": 'Part `events`: {"events": [...]}; a part `sha256:<hex>` for each picture.',
                }
            },
        },
    }
}


class _Plain(APIRoute):
    """Hands its endpoint the request and nothing else: resolving dependencies costs more than reading an event."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await super().handle(scope, receive, send)
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


async def post_events(request: Request) -> JSONResponse:
    """Store one event, or up to 64."""
    principal = await deps.may_ingest(request)  # before the body: nobody without a key makes us hold megabytes
    sent = await bodies.sent(request)
    taking: intake.Intake = request.app.state.intake
    results = await taking.take(principal.project_id, sent)
    if len(results) == 1 and isinstance(results[0], errors.CmerwatchError):
        metrics.count(["rejected"])
        raise results[0]
    metrics.count([_status(result) for result in results], time.perf_counter() - sent.started)
    return JSONResponse({"results": [_result(result) for result in results]}, 202)


router.add_api_route(
    "/events", post_events, methods=["POST"], status_code=202, openapi_extra=_BODY, route_class_override=_Plain
)


def _status(result: intake.Result) -> str:
    return "rejected" if isinstance(result, errors.CmerwatchError) else result.status


def _result(result: intake.Result) -> dict[str, Any]:
    if isinstance(result, errors.CmerwatchError):
        return {"id": None, "status": "rejected", "error": web_errors.of(result)}
    return {"id": str(result.id), "status": result.status}


@router.get("/events/{event_id}")
def get_event(event_id: uuid.UUID, principal: deps.MayRead, session: deps.Session) -> JSONResponse:
    """One event with its check, decision and review; each is null until it exists."""
    return JSONResponse(seen_by(session, principal, event_views.get(session, principal.project_id, event_id)))


@router.get("/events")
def find_events(
    request: Request,
    principal: deps.MayRead,
    session: deps.Session,
    event_id: Annotated[str | None, Query(max_length=128)] = None,
    flagged: bool | None = None,
    outcome: str | None = None,
    state: str | None = None,
    start: times.From = None,
    to: times.To = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> JSONResponse:
    """Newest first. Also filters by endpoint, prompt_type, customer, model, model_version and environment."""
    is_kept = blindness.keeps(session, principal, None)
    if is_kept and (flagged is not None or outcome is not None):
        raise errors.Forbidden(
            "Reviews are blind in this project: for reviewers events are not filtered by `flagged` or `outcome`."
        )
    known = ("event_id", "flagged", "outcome", "state", "from", "to", "limit", "cursor", *shapes.DIMENSIONS)
    require_known(request, known)
    require_one_of("outcome", outcome, shapes.OUTCOMES)
    require_one_of("state", state, event_views.STATES)
    wanted = event_views.EventFilter(
        event_key=bodies.cleaned(event_id)[0],
        dimensions=dimensions(request),
        flagged=flagged,
        outcome=outcome,
        state=state,
        start=times.moment(start, "from"),
        end=times.moment(to, "to"),
    )
    page = event_views.find(session, principal.project_id, wanted, cursor, limit)
    rows = [_thin(row) | (dict.fromkeys(_CHECKED) if is_kept else {}) for row in page.rows]
    return JSONResponse({"rows": rows, "next_cursor": page.next_cursor})


def dimensions(request: Request) -> dict[str, str]:
    """The dimensions that the query filters by. An empty value means events without that dimension."""
    return {
        name: bodies.cleaned(request.query_params[name])[0]
        for name in shapes.DIMENSIONS
        if name in request.query_params
    }


def require_known(request: Request, names: tuple[str, ...]) -> None:
    """A mistyped filter must not silently widen the answer, nor a second value silently replace the first."""
    unknown = sorted(set(request.query_params) - set(names))
    if unknown:
        name = unknown[0][:64]
        raise errors.Invalid(f"`{name}` is not a parameter here; those are {', '.join(names)}.", field=name)
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise errors.Invalid(f"`{name}` is given more than once; only one value can count.", field=name)


def require_one_of(field: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise errors.Invalid(f"`{field}` must be one of {', '.join(allowed)}.", field=field)


def _thin(row: event_views.EventRow) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "event_id": row.event_key,
        "received_at": row.received_at.isoformat(),
        **row.dimensions,
        "state": row.state,
        "outcome": row.outcome,
        "confidence": row.confidence,
        "similarity": row.similarity,
        "score": row.score,
        "flagged": row.flagged,
    }


# Of a thin row, what the checker said or what its decision rests on.
_CHECKED = ("outcome", "confidence", "similarity", "score", "flagged")

# Of a whole event, what is left in blind reviews: the picture, the text, and where they came from. A list of what is
# kept away would miss the field that somebody adds; metadata may hold the app's own scores.
_TOLD = (
    *("id", "event_id", "state", "received_at", "occurred_at", "is_late", "request_id", "response_id", "trace_id"),
    *("images", "prompt", "output", "text_sanitized", "sample_rate", *shapes.DIMENSIONS),
)


def blinded(answer: dict[str, Any]) -> dict[str, Any]:
    """The same fields, and null for all that is not the picture or the text."""
    return {name: value if name in _TOLD else None for name, value in answer.items()}


def seen_by(session: orm.Session, principal: access.Principal, view: event_views.EventView) -> dict[str, Any]:
    """A whole event as this person may see it now."""
    answer = whole(view)
    return blinded(answer) if blindness.keeps(session, principal, view.review) else answer


def whole(view: event_views.EventView) -> dict[str, Any]:
    event, body = view.event, view.body
    return {
        "id": str(event.id),
        "event_id": event.event_key,
        "state": view.state,
        "received_at": event.received_at.isoformat(),
        "occurred_at": event.occurred_at and event.occurred_at.isoformat(),
        "is_late": event.is_late,
        **{name: getattr(event, name) for name in shapes.DIMENSIONS},
        "request_id": body.request_id,
        "response_id": body.response_id,
        "trace_id": body.trace_id,
        "waiting_for": _waiting_for(view),
        "images": [{"sha256": sha256} for sha256 in event.images],
        "image_fetches": [_fetch(row) for row in view.fetches],
        "prompt": body.prompt,
        "output": body.output,
        "text_sanitized": body.text_sanitized,
        "confidence": {
            "geo_p": event.geo_p,
            "mean_p": event.mean_p,
            "min_p": event.min_p,
            "n_tokens": event.n_tokens,
            "status": event.confidence_status,
        },
        "sample_rate": event.sample_rate,
        "metadata": body.metadata_,
        "check": _check(view),
        "decision": _decision(view),
        "undecided": _undecided(view),
        "review": _review(view),
        "judge": _judge(view),
    }


def _waiting_for(view: event_views.EventView) -> str | None:
    if view.state != "waiting":
        return None
    return "images" if view.awaits_pictures else "check"


def _fetch(row: models.ImageFetch) -> dict[str, Any]:
    """One picture named by its address, of which as much is told as people may see; `reason` is of its last try."""
    return {
        "position": row.position,
        "url": fetches.told(row),
        "state": row.state,
        "sha256": row.sha256,
        "reason": row.reason or None,
        "attempts": row.attempts,
        "next_at": row.next_at.isoformat() if row.state == "waiting" else None,
    }


def _judge(view: event_views.EventView) -> dict[str, Any] | None:
    """The second opinion, beside the check and no part of it."""
    found = view.judgement
    if found is None:
        return None
    return {
        "state": found.state,
        "judge": found.judge,
        "p_yes": found.p_yes,
        "claims": found.claims,
        "reason": found.reason or None,
    }


def _check(view: event_views.EventView) -> dict[str, Any] | None:
    if view.check is None:
        return None
    claims = [
        {
            "start": claim["start"],
            "end": claim["end"],
            "text": view.body.output[claim["start"] : claim["end"]],
            "similarity": claim["similarity"],
            "percentile": claim.get("percentile"),
            "statement": claim.get("statement"),
            "negated": claim.get("negated", False),
        }
        for claim in view.check.claims
    ]
    return {
        "outcome": view.check.outcome,
        "checker": view.checker.name if view.checker else None,
        "label": view.checker.label if view.checker else None,
        "similarity": view.check.similarity,
        "score": view.check.score,
        "claims": claims,
        "reasons": view.check.reasons,
    }


def _decision(view: event_views.EventView) -> dict[str, Any] | None:
    if view.decision is None:
        return None
    names = ("flagged", "low_similarity", "policy_version", "conf_threshold", "sim_threshold")
    return {name: getattr(view.decision, name) for name in names}


def _undecided(view: event_views.EventView) -> str | None:
    """Why a scored output has no decision; null where it has one, or cannot have one."""
    check = view.check
    if check is None or check.outcome != "scored" or view.decision is not None:
        return None
    if check.score is None:
        return "the checker is calibrating: it has no reference of matching text yet"
    return policies.unfit(check.policy_version or 1, view.checker.name if view.checker else "")


def _review(view: event_views.EventView) -> dict[str, Any] | None:
    """The verdict's fields are null until there is one that nobody took back."""
    if view.review is None:
        return None
    said, names = view.verdict, ("verdict", "error_types", "spans", "correction", "note", "is_blind")
    return {
        "item": str(view.review.id),
        "kind": view.review.kind,
        "state": view.review.state,
        **{name: said and getattr(said, name) for name in names},
        "reviewed_at": said and said.created_at.isoformat(),
    }
