"""The page a reviewer lives in: one item at a time, answered by key, and the next one at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import fastapi
from fastapi import Depends
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmerwatch import access, errors, models, reviews
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


@dataclass(frozen=True, slots=True)
class Desk:
    """One item before one reviewer, as its routes are given it."""

    request: Request
    session: auth.Session
    viewer: review_lists.Reviewer
    store: deps.Blobs
    item_id: uuid.UUID

    def show(self, draft: review_form.Draft | None = None, refused: errors.CmerwatchError | None = None) -> Response:
        return review_page.show(self.request, self.session, self.viewer, self.store, self.item_id, draft, refused)

    def act(self, act: Act, token: uuid.UUID, said: Any, draft: review_form.Draft) -> Response:
        """Say it and go on to the next item; refused, the same page again with everything that was typed."""
        refused = _attempt(lambda: act(self.session, self.viewer, self.item_id, token, said))
        return _next(self.session, self.viewer) if refused is None else self.show(draft, refused)


Act = Callable[[orm.Session, access.Principal, uuid.UUID, uuid.UUID, Any], object]
AtDesk = Annotated[Desk, Depends()]


@router.get("/review/{item_id}")
def show_item(desk: AtDesk) -> Response:
    return desk.show()


@router.post("/review/{item_id}/hold")
def take(desk: AtDesk) -> Response:
    refused = _attempt(lambda: reviews.hold(desk.session, desk.viewer, desk.item_id))
    return _to(desk.item_id) if refused is None else desk.show(refused=refused)


@router.post("/review/{item_id}/resume")
def take_again(desk: AtDesk, form: review_form.Posted) -> Response:
    """Take the item and go on with what was typed; answered by the page itself, because nothing stores a draft."""
    refused = _attempt(lambda: reviews.hold(desk.session, desk.viewer, desk.item_id))
    return desk.show(review_form.read(form), refused)


@router.post("/review/{item_id}/verdict")
def give_verdict(desk: AtDesk, form: review_form.Posted) -> Response:
    draft = review_form.read(form).beside(review_page.output(desk.session, desk.viewer, desk.item_id))
    return desk.act(_submit, review_form.token(form), draft, draft)


def _submit(
    session: orm.Session, viewer: access.Principal, item_id: uuid.UUID, token: uuid.UUID, draft: review_form.Draft
) -> models.Review:
    return reviews.submit(session, viewer, item_id, token, draft.answer())


@router.post("/review/{item_id}/skip")
def skip(desk: AtDesk, form: review_form.Posted) -> Response:
    draft = review_form.read(form)
    return desk.act(reviews.skip, review_form.token(form), draft.skip_reason, draft)


@router.post("/review/{item_id}/escalate")
def escalate(desk: AtDesk, form: review_form.Posted) -> Response:
    draft = review_form.read(form)
    return desk.act(reviews.escalate, review_form.token(form), draft.reason, draft)


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
        return JSONResponse({"lost": review_page.standing(error, viewer)}, 409)
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
