"""Settings, reviews: what reviewers see before their verdict."""

from __future__ import annotations

from typing import Annotated

import fastapi
from fastapi import Depends, Form
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, blindness, errors
from cmerwatch_web.console import auth, pages, settings

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/reviews"
SEEN = {
    "everything": ("everything", "tints, scores, thresholds, reasons and the judge's opinion beside the output"),
    "blind": ("only the picture and the text", "what the checker said comes after the verdict"),
}
DONE = {
    "everything": "Reviewers see everything, from their next page on.",
    "blind": "Reviews are blind, from the next item that somebody takes.",
}

Lead = Annotated[access.Principal, Depends(auth.allowed("lead"))]


@router.get(PATH)
def show_visibility(request: Request, session: auth.Session, viewer: Lead) -> Response:
    return pages.render(
        request,
        "settings_reviews.html",
        viewer=viewer,
        seen=SEEN,
        now="blind" if blindness.is_on(session, viewer.project_id) else "everything",
        done=settings.done(request, DONE),
    )


@router.post(PATH)
def change_visibility(session: auth.Session, viewer: Lead, seen: Annotated[str, Form(max_length=20)] = "") -> Response:
    if seen not in SEEN:
        raise errors.Invalid(f"`seen` must be one of {', '.join(SEEN)}.", field="seen")
    blindness.change(session, viewer, seen == "blind")
    return settings.back(PATH, seen)
