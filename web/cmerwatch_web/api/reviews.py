"""/v1/reviews: take the next item, keep it, answer it. A key of scope `review` acts as its person."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from sqlalchemy import orm

from cmerwatch import access, blindness, event_views, models, reviews
from cmerwatch_web import deps
from cmerwatch_web.api import bodies, events, schemas

router = APIRouter(prefix="/v1/reviews", tags=["reviews"])


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, title="body")


class Wanted(_Body):
    """Both fields are for leads."""

    kinds: list[str] = []
    state: str = "open"


# A UUID comes as a string in JSON, which `strict` would refuse.
Token = Annotated[uuid.UUID, pydantic.Field(strict=False)]


class Holding(_Body):
    lease_token: Token


class Passing(Holding):
    reason: str


class Span(_Body):
    start: int
    end: int
    error_type: str | None = None


class Verdict(Holding):
    verdict: str
    error_types: list[str] = []
    spans: list[Span] = []
    correction: str | None = None
    note: str | None = None


Body = Annotated[Any, Depends(bodies.value)]


def _of(model: type[_Body]) -> dict[str, Any]:
    """What the OpenAPI page says of a body that is read by hand."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.post("/next", openapi_extra=_of(Wanted))
def post_next(principal: deps.MayReview, body: Body, session: deps.Session) -> Response:
    """Lease the first item that waits; 204 when there is none."""
    wanted = schemas.read(Wanted, body)
    held = reviews.next_item(session, principal, kinds=wanted.kinds, state=wanted.state)
    return Response(status_code=204) if held is None else _held(session, principal, held)


@router.get("/held")
def get_held(principal: deps.MayReview, session: deps.Session) -> JSONResponse:
    """What this person holds now, oldest first: for a client that was started again."""
    return JSONResponse({"rows": [_shown(session, principal, one) for one in reviews.held(session, principal)]})


@router.post("/{item}/hold")
def post_hold(item: uuid.UUID, principal: deps.MayReview, session: deps.Session) -> JSONResponse:
    """Lease this very item, or take it again after its lease ended."""
    return _held(session, principal, reviews.hold(session, principal, item))


@router.post("/{item}/heartbeat", openapi_extra=_of(Holding))
def post_heartbeat(item: uuid.UUID, principal: deps.MayReview, body: Body, session: deps.Session) -> JSONResponse:
    """Renew the lease for five minutes from now."""
    token = schemas.read(Holding, body).lease_token
    return JSONResponse({"lease": _lease(reviews.heartbeat(session, principal, item, token))})


@router.post("/{item}/verdict", openapi_extra=_of(Verdict))
def post_verdict(item: uuid.UUID, principal: deps.MayReview, body: Body, session: deps.Session) -> JSONResponse:
    """Answer the item, which ends the lease. 409 `lease_lost` when it is no longer this person's."""
    sent = schemas.read(Verdict, body)
    answer = reviews.Answer(
        verdict=sent.verdict,
        error_types=sent.error_types,
        spans=[span.model_dump(exclude_none=True) for span in sent.spans],
        correction=sent.correction,
        note=sent.note,
    )
    review = reviews.submit(session, principal, item, sent.lease_token, answer)
    return JSONResponse({"item": {"id": str(item), "state": "done"}, "review": _review(review)})


@router.post("/{item}/skip", openapi_extra=_of(Passing))
def post_skip(item: uuid.UUID, principal: deps.MayReview, body: Body, session: deps.Session) -> JSONResponse:
    """Leave the item to others; the second skip escalates it."""
    sent = schemas.read(Passing, body)
    return _state(reviews.skip(session, principal, item, sent.lease_token, sent.reason))


@router.post("/{item}/escalate", openapi_extra=_of(Passing))
def post_escalate(item: uuid.UUID, principal: deps.MayReview, body: Body, session: deps.Session) -> JSONResponse:
    """Hand the item to the leads."""
    sent = schemas.read(Passing, body)
    return _state(reviews.escalate(session, principal, item, sent.lease_token, sent.reason))


@router.post("/{item}/release", status_code=204, openapi_extra=_of(Holding))
def post_release(item: uuid.UUID, principal: deps.MayReview, body: Body, session: deps.Session) -> Response:
    """Give the item back unanswered; it is free at once."""
    reviews.give_back(session, principal, item, schemas.read(Holding, body).lease_token)
    return Response(status_code=204)


@router.post("/{item}/undo")
def post_undo(item: uuid.UUID, principal: deps.MayReview, session: deps.Session) -> JSONResponse:
    """Take back one's own last act on the item, within ten minutes, and hold it again."""
    return _held(session, principal, reviews.undo(session, principal, item))


def _held(session: orm.Session, principal: access.Principal, held: reviews.Held) -> JSONResponse:
    return JSONResponse(_shown(session, principal, held))


def _shown(session: orm.Session, principal: access.Principal, held: reviews.Held) -> dict[str, Any]:
    return {"item": _item(session, principal, held.item), "lease": _lease(held.lease)}


def _lease(lease: reviews.Lease) -> dict[str, str]:
    return {"token": str(lease.token), "expires_at": lease.expires_at.isoformat()}


# Whoever judges must not know whether an item was flagged or drawn at random, or the audit would measure what they
# expect. The decision tells it, and so does the priority, which is the same for all items of an audit.
_BLIND = ("kind", "priority", "inclusion_probability")


def _item(session: orm.Session, principal: access.Principal, item: models.ReviewItem) -> dict[str, Any]:
    """What _BLIND names, and the event's decision, are null except for leads; with blind reviews everything is that
    is not the picture or the text."""
    event = events.whole(event_views.get(session, principal.project_id, item.event_id))
    del event["review"]
    is_lead = principal.may("lead")
    is_blind = not is_lead and blindness.is_on(session, principal.project_id)
    if is_blind:
        event = events.blinded(event)
    elif not is_lead:
        event["decision"] = None
    return {
        "id": str(item.id),
        "state": item.state,
        "created_at": item.created_at.isoformat(),
        "reasons": None if is_blind else item.reasons,
        **{name: getattr(item, name) if is_lead else None for name in _BLIND},
        "event": event,
    }


def _state(item: models.ReviewItem) -> JSONResponse:
    return JSONResponse({"item": {"id": str(item.id), "state": item.state}})


def _review(review: models.Review) -> dict[str, Any]:
    names = ("verdict", "error_types", "spans", "correction", "note", "seconds", "is_blind")
    return {"id": str(review.id), **{name: getattr(review, name) for name in names}}
