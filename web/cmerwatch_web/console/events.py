"""From a number to what stands behind it: the list of events, one event with its picture, and the picture itself."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import fastapi
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmerwatch import access, blindness, errors, event_views, fetches, policies
from cmerwatch.event_views import EventFilter, EventRow, EventView
from cmerwatch.shapes import DIMENSIONS, Slice
from cmerwatch_web import deps
from cmerwatch_web.api import events as api_events
from cmerwatch_web.console import auth, pages, passages, review_page, views, words

router = fastapi.APIRouter(route_class=pages.Page)

# What the tabs of the list show; "looked at but not scorable" is found through the ledger's columns.
SHOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("All", {}),
    "flagged": ("Flagged", {"flagged": True}),
    "waiting": ("Waiting", {"state": "waiting"}),
    "quarantined": ("Quarantined", {"state": "quarantined"}),
    "unscorable": ("Not scorable", {"outcome": "unscorable"}),
    "invalid_image": ("Unreadable picture", {"outcome": "invalid_image"}),
}
UNCHECKED = ("all", "waiting", "quarantined")  # tabs that tell nothing of what the checker said
PAGE = 40


@router.get("/events")
def list_events(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    query = request.query_params
    found = _find_by_id(session, viewer, query.get("find", "").strip())
    if found is not None:
        return RedirectResponse(f"/events/{found}", 303)
    view = views.read(query)
    show = query.get("show", "all")
    is_kept = blindness.keeps(session, viewer, None)
    shown = {name: SHOWN[name] for name in UNCHECKED} if is_kept else SHOWN
    if show not in SHOWN:
        raise errors.Invalid(f"`show` must be one of {', '.join(shown)}.", field="show")
    if show not in shown:
        raise errors.Forbidden(
            "Reviews are blind in this project: reviewers look at all events, and are not shown which were flagged."
        )
    wanted = EventFilter(dimensions=view.chosen, start=view.start, end=view.end, **SHOWN[show][1])
    page = event_views.find(session, viewer.project_id, wanted, query.get("cursor"), PAGE)
    # A window such as "8 days" moves on with the clock; the next page keeps the ends of this one.
    fixed = view.during(view.start, view.end)
    older = page.next_cursor and fixed.link("/events", show=show, cursor=page.next_cursor)
    return pages.render(
        request,
        "events.html",
        viewer=viewer,
        view=view,
        show=show,
        shown=shown,
        is_kept=is_kept,
        rows=[(row, words.explain(_judged_row(row))) for row in page.rows],
        older=older,
        is_first="cursor" not in query,
        find=query.get("find", ""),
    )


def _find_by_id(session: Any, viewer: access.Principal, wanted: str) -> uuid.UUID | None:
    """An event by its id or by the id the app gave it; None when there is none, and the list says so."""
    if not wanted:
        return None
    try:
        return event_views.get(session, viewer.project_id, uuid.UUID(wanted)).event.id
    except (ValueError, errors.NotFound):
        rows = event_views.find(session, viewer.project_id, EventFilter(event_key=wanted), None, 1).rows
        return rows[0].id if rows else None


def _judged_row(row: EventRow) -> words.Judged:
    """Only the badge is shown in the list, so thresholds are not needed there."""
    return words.Judged(
        state=row.state,
        outcome=row.outcome,
        confidence=row.confidence,
        score=row.score,
        is_decided=row.flagged is not None,
        flagged=bool(row.flagged),
        conf_threshold=0.0,
        sim_threshold=0.0,
    )


@router.get("/events/{event_id}")
def show_event(
    request: Request, session: auth.Session, viewer: auth.Viewer, store: deps.Blobs, event_id: uuid.UUID
) -> Response:
    found = event_views.get(session, viewer.project_id, event_id)
    is_kept = blindness.keeps(session, viewer, found.review)
    if is_kept:
        found = replace(found, check=None, checker=None, decision=None, judgement=None, verdict=None)
    body = found.body
    parts = passages.cut(body.output, found.check.claims if found.check else [])
    weakest = passages.weakest(parts)
    cosine = _cosine(session, found)
    pictures = [store.get_display(viewer.project_id, sha256) is not None for sha256 in found.event.images]
    return pages.render(
        request,
        "event.html",
        viewer=viewer,
        found=found,
        is_kept=is_kept,
        verdict=words.KEPT if is_kept else words.explain(replace(judged(found), cosine=cosine)),
        passages=passages.marked(parts, weakest),
        claims=weakest,
        opinions=words.opinions(found),
        judge_says=words.judge(found.judgement),
        tokens=passages.strip(body.tokens, body.logprobs),
        hidden_tokens=max(0, len(body.tokens or ()) - passages.TOKENS_SHOWN),
        pictures=pictures,
        fetches=[(row, fetches.told(row)) for row in found.fetches],
        review=review_page.card(session, viewer, found.review) if found.review else None,
        confidence_status=words.CONFIDENCE_STATUS.get(found.event.confidence_status, found.event.confidence_status),
        compared="Score" if cosine is None else "Similarity",
        **_gauges(found, cosine),
    )


def judged(found: EventView) -> words.Judged:
    check, decision = found.check, found.decision
    return words.Judged(
        state=found.state,
        outcome=check.outcome if check else None,
        confidence=found.event.geo_p,
        score=check.score if check else None,
        n_claims=len(check.claims) if check else 0,
        is_decided=decision is not None,
        flagged=decision is not None and decision.flagged,
        low=decision is not None and decision.low_similarity,
        awaits_pictures=found.awaits_pictures,
        lacks_pictures=any(row.state == "failed" for row in found.fetches),
        conf_threshold=decision.conf_threshold if decision else None,
        sim_threshold=decision.sim_threshold if decision else None,
    )


def _cosine(session: orm.Session, found: EventView) -> float | None:
    """The similarity, where the rule that decided compared it and not the score."""
    if found.decision is None or found.check is None:
        return None
    version = (found.event.project_id, found.decision.policy_version)
    policy = policies.at(session, [version]).get(version)
    of = Slice(*(getattr(found.event, name) for name in DIMENSIONS))
    return found.check.similarity if policy and policy.rule_for(of).measure == "cosine" else None


def _gauges(found: EventView, cosine: float | None) -> dict[str, Any]:
    check, decision = found.check, found.decision
    if check is None or decision is None:
        return {"confidence_gauge": None, "score_gauge": None, "measured": None}
    measured = check.score if cosine is None else cosine
    return {
        "measured": measured,
        "confidence_gauge": words.confidence_gauge(found.event.geo_p, decision.conf_threshold),
        "score_gauge": words.score_gauge(measured, decision.sim_threshold),
    }


@router.get("/events/{event_id}/json")
def show_json(session: auth.Session, viewer: auth.Viewer, event_id: uuid.UUID) -> JSONResponse:
    """What the API answers, for someone who has a session and no key."""
    answer = api_events.seen_by(session, viewer, event_views.get(session, viewer.project_id, event_id))
    if answer["review"] and not review_page.may_know_why(viewer):
        answer["review"]["kind"] = None
    return JSONResponse(answer)


@router.get("/events/{event_id}/state")
def show_state(session: auth.Session, viewer: auth.Viewer, event_id: uuid.UUID) -> JSONResponse:
    """What a waiting page asks until something changed."""
    return JSONResponse({"state": event_views.get(session, viewer.project_id, event_id).state})


@router.get("/media/{event_id}/{number}")
def show_picture(
    request: Request, session: auth.Session, viewer: auth.Viewer, store: deps.Blobs, event_id: uuid.UUID, number: int
) -> Response:
    """The re-encoded copy, never the bytes that were sent; checked against the viewer's project on every request.

    Refused as a page of its own: a picture opened as a document would run in our origin if a browser ever
    misread it.
    """
    images = event_views.get(session, viewer.project_id, event_id).event.images
    data = store.get_display(viewer.project_id, images[number]) if 0 <= number < len(images) else None
    if data is None or request.headers.get("sec-fetch-dest") == "document":
        raise errors.NotFound("There is no such picture, or it has not been decoded yet.")
    headers = {
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Content-Disposition": f'inline; filename="{event_id}-{number}.webp"',
        "Cache-Control": "private, max-age=600",
    }
    return Response(data, media_type="image/webp", headers=headers)
