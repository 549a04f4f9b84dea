"""The page a reviewer lives in: one item at a time, answered by key, and the next one at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import fastapi
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmerwatch import access, errors, reviews
from cmerwatch_web import deps
from cmerwatch_web.console import auth, pages, review_form, review_lists, review_page

router = fastapi.APIRouter(route_class=pages.Page)


@router.post("/review/next")
def take_next(session: auth.Session, viewer: review_lists.Reviewer) -> Response:
    return _next(session, viewer)


def _next(session: orm.Session, viewer: access.Principal) -> Response:
    """To an item still held before a new one: after an undo there are two."""
    mine = reviews.held(session, viewer)
    found = mine[0] if mine else reviews.next_item(session, viewer)
    return _to(found.item.id) if found else RedirectResponse("/review", 303)


def _to(item_id: uuid.UUID) -> Response:
    return RedirectResponse(f"/review/{item_id}", 303)


@router.get("/review/{item_id}")
def show_item(
    request: Request, session: auth.Session, viewer: review_lists.Reviewer, store: deps.Blobs, item_id: uuid.UUID
) -> Response:
    return review_page.show(request, session, viewer, store, item_id)


@router.post("/review/{item_id}/hold")
def take(
    request: Request, session: auth.Session, viewer: review_lists.Reviewer, store: deps.Blobs, item_id: uuid.UUID
) -> Response:
    refused = _attempt(lambda: reviews.hold(session, viewer, item_id))
    if refused is not None:
        return review_page.show(request, session, viewer, store, item_id, refused=refused)
    return _to(item_id)


@router.post("/review/{item_id}/resume")
def take_again(
    request: Request,
    session: auth.Session,
    viewer: review_lists.Reviewer,
    store: deps.Blobs,
    item_id: uuid.UUID,
    form: review_form.Posted,
) -> Response:
    """Take the item and go on with what was typed; answered by the page itself, because nothing stores a draft."""
    refused = _attempt(lambda: reviews.hold(session, viewer, item_id))
    return review_page.show(request, session, viewer, store, item_id, review_form.read(form), refused)


@router.post("/review/{item_id}/verdict")
def give_verdict(
    request: Request,
    session: auth.Session,
    viewer: review_lists.Reviewer,
    store: deps.Blobs,
    item_id: uuid.UUID,
    form: review_form.Posted,
) -> Response:
    draft = review_form.read(form).beside(review_page.output(session, viewer, item_id))
    token = review_form.token(form)
    refused = _attempt(lambda: reviews.submit(session, viewer, item_id, token, draft.answer()))
    if refused is not None:
        return review_page.show(request, session, viewer, store, item_id, draft, refused)
    return _next(session, viewer)


@router.post("/review/{item_id}/skip")
def skip(
    request: Request,
    session: auth.Session,
    viewer: review_lists.Reviewer,
    store: deps.Blobs,
    item_id: uuid.UUID,
    form: review_form.Posted,
) -> Response:
    draft, token = review_form.read(form), review_form.token(form)
    refused = _attempt(lambda: reviews.skip(session, viewer, item_id, token, draft.skip_reason))
    if refused is not None:
        return review_page.show(request, session, viewer, store, item_id, draft, refused)
    return _next(session, viewer)


@router.post("/review/{item_id}/escalate")
def escalate(
    request: Request,
    session: auth.Session,
    viewer: review_lists.Reviewer,
    store: deps.Blobs,
    item_id: uuid.UUID,
    form: review_form.Posted,
) -> Response:
    draft, token = review_form.read(form), review_form.token(form)
    refused = _attempt(lambda: reviews.escalate(session, viewer, item_id, token, draft.reason))
    if refused is not None:
        return review_page.show(request, session, viewer, store, item_id, draft, refused)
    return _next(session, viewer)


@router.post("/review/{item_id}/undo")
def undo(session: auth.Session, viewer: review_lists.Reviewer, item_id: uuid.UUID) -> Response:
    reviews.undo(session, viewer, item_id)
    return _to(item_id)


@router.post("/review/{item_id}/give-back")
def give_back(
    session: auth.Session, viewer: review_lists.Reviewer, item_id: uuid.UUID, form: review_form.Posted
) -> Response:
    """Leave: whoever gave the item back does not want the next one now. That the lease is over already is as well."""
    _attempt(lambda: reviews.give_back(session, viewer, item_id, review_form.token(form)))
    return RedirectResponse("/review", 303)


@router.post("/review/{item_id}/heartbeat")
def renew(
    session: auth.Session, viewer: review_lists.Reviewer, item_id: uuid.UUID, form: review_form.Posted
) -> JSONResponse:
    """What the page's script asks every minute while somebody is looking."""
    try:
        lease = reviews.heartbeat(session, viewer, item_id, review_form.token(form))
    except errors.NotFound:
        raise
    except errors.CmerwatchError as error:
        return JSONResponse({"lost": review_page.standing(error)}, 409)
    return JSONResponse({"seconds": review_page.seconds_left(session, lease)})


def _attempt(act: Callable[[], object]) -> errors.CmerwatchError | None:
    """The refusal of an act, for the page to show beside what was typed. Acts refuse before they change anything.

    Raises what no page of the item can be made for: it is not this project's, or the database is away.
    """
    try:
        act()
    except (errors.NotFound, errors.Unavailable):
        raise
    except errors.CmerwatchError as error:
        return error
    return None
