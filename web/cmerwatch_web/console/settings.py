"""The settings area: its sections, and what its pages share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import fastapi
from fastapi.responses import RedirectResponse
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import errors
from cmerwatch_web.console import auth, pages

router = fastapi.APIRouter(route_class=pages.Page)


@dataclass(frozen=True, slots=True)
class Section:
    """One page of the area; shown to those whose role allows `action`, which its route asks for too."""

    path: str
    label: str
    action: str


SECTIONS = (
    Section("/settings/policies", "Policies", "read"),
    Section("/settings/reviews", "Reviews", "lead"),
    Section("/settings/channels", "Channels", "alerts"),
    Section("/settings/keys", "Keys", "admin"),
    Section("/settings/people", "People", "admin"),
    Section("/settings/audit", "Audit log", "admin"),
    Section("/settings/account", "Your account", "read"),
)
pages.templates.env.globals["sections"] = SECTIONS


@dataclass
class Problem:
    """Why a form was not taken: a sentence, and the field to mend where one is known."""

    message: str = ""
    field: str = ""
    status: int = 200

    def __bool__(self) -> bool:
        return bool(self.message)

    def name_as(self, labels: Mapping[str, str]) -> None:
        """Names the form's fields as their labels do; the core names them as the API does."""
        for name, label in labels.items():
            told = re.sub(rf"^{re.escape(name)}(?= )", f"`{name}`", self.message)
            self.message = told.replace(f"`{name}`", f"“{label}”")


@contextmanager
def attempt(session: orm.Session | None = None) -> Iterator[Problem]:
    """Runs the block, in a savepoint where it writes; a refusal that the form can show undoes it and fills the
    Problem."""
    problem = Problem()
    try:
        with nullcontext() if session is None else session.begin_nested():
            yield problem
    except (errors.Invalid, errors.Conflict) as error:
        problem.message, problem.status = error.message, error.status
        problem.field = str(error.details.get("field", ""))


def back(path: str, done: str) -> Response:
    """To the page again by GET, so that a reload repeats nothing; `done` names the sentence it shows."""
    return RedirectResponse(f"{path}?done={done}", 303)


def done(request: Request, sentences: dict[str, str]) -> str | None:
    """What was just done, in words; None for a page that was simply opened."""
    return sentences.get(request.query_params.get("done", ""))


async def form_fields(request: Request) -> dict[str, Any]:
    """Every field of a posted form: the last value of each name, and all of them under `name[]`."""
    form = await request.form(max_fields=2000)
    found: dict[str, Any] = {}
    for name in form:
        texts = [value for value in form.getlist(name) if isinstance(value, str)]
        found[name], found[f"{name}[]"] = texts[-1] if texts else "", texts
    return found


@router.get("/settings")
def first_section(viewer: auth.Viewer) -> Response:
    return RedirectResponse(SECTIONS[0].path, 303)
