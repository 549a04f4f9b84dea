"""Around the reviewing itself: what waits, what was said lately, and what only a lead can settle."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import fastapi
from fastapi import Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmerwatch import access, errors, review_figures, reviews
from cmerwatch_web.console import auth, pages, review_form, review_queue

router = fastapi.APIRouter(route_class=pages.Page)

SHOWN = 100


def reviewer(viewer: auth.Viewer) -> access.Principal:
    """Raises Forbidden with whom to ask: a viewer who followed a link should know why nothing happens."""
    if not viewer.may("review"):
        raise errors.Forbidden(
            f"Reviewing needs the role reviewer, lead, engineer or admin in {viewer.project_slug}; yours is "
            f"{viewer.role}. Ask an admin of this project."
        )
    return viewer


Reviewer = Annotated[access.Principal, Depends(reviewer)]


@router.get("/review")
def show_queue(request: Request, session: auth.Session, viewer: Reviewer) -> Response:
    """On with the item held; else what waits, and a button: opening a page must take nothing from others."""
    if mine := reviews.held(session, viewer):
        return RedirectResponse(f"/review/{mine[0].item.id}", 303)
    counts = reviews.counts(session, viewer.project_id)
    resting = review_queue.resting(session, viewer)
    return pages.render(
        request,
        "review_queue.html",
        viewer=viewer,
        counts=counts,
        resting=resting,
        waiting=counts.open - resting,
        mine=review_queue.mine_today(session, viewer),
        undoable=review_queue.undoable(session, viewer),
        freed=review_queue.first_freed(session, viewer.project_id),
        audit_rate=request.app.state.settings.audit_rate,
        verdicts=review_form.VERDICTS,
        error_types=review_form.ERROR_TYPES,
    )


@router.get("/review/state")
def show_state(session: auth.Session, viewer: Reviewer) -> JSONResponse:
    """What an empty queue asks until something came."""
    waits = reviews.counts(session, viewer.project_id).open > review_queue.resting(session, viewer)
    return JSONResponse({"state": "waiting" if waits else "empty"})


@router.get("/review/history")
def show_history(request: Request, session: auth.Session, viewer: Reviewer) -> Response:
    """One's own acts; a lead sees everybody's, or those of one person."""
    is_lead = viewer.may("lead")
    everybody = is_lead and request.query_params.get("who") != "me"
    acts = reviews.recent(session, viewer.project_id, None if everybody else viewer.user_id, SHOWN)
    since = dt.datetime.now(dt.UTC) - reviews.UNDO_WITHIN
    return pages.render(
        request,
        "review_history.html",
        viewer=viewer,
        acts=acts,
        undoable=review_queue.last_on_each(acts, viewer, since),
        everybody=everybody,
        is_lead=is_lead,
        outputs=review_queue.outputs(session, viewer.project_id, [act.review.event_id for act in acts]),
        checked=review_queue.checked(session, viewer.project_id, [act.review.event_id for act in acts]),
        verdicts=review_form.VERDICTS,
        error_types=review_form.ERROR_TYPES,
        shown=SHOWN,
    )


@router.get("/review/escalated")
def show_escalated(request: Request, session: auth.Session, viewer: Reviewer) -> Response:
    access.authorize(viewer, "lead")
    items = review_queue.escalated(session, viewer.project_id)
    return pages.render(
        request,
        "review_escalated.html",
        viewer=viewer,
        items=[(item, review_queue.acts(session, viewer.project_id, item.event_id)) for item in items],
        outputs=review_queue.outputs(session, viewer.project_id, [item.event_id for item in items]),
        verdicts=review_form.VERDICTS,
        error_types=review_form.ERROR_TYPES,
        shown=review_queue.ESCALATED,
    )


@router.get("/review/figures")
def show_figures(request: Request, session: auth.Session, viewer: Reviewer) -> Response:
    """How long things wait and how fast they are answered: for leads, and of nobody by name."""
    access.authorize(viewer, "lead")
    counts, days = reviews.counts(session, viewer.project_id), review_figures.days(session, viewer.project_id)
    return pages.render(request, "review_figures.html", viewer=viewer, counts=counts, days=days)
