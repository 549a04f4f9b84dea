"""The policy in force, its history, and a form that says what a change would have flagged before it is saved."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import fastapi
from fastapi import Depends
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, cmer_series, errors, models, policies, policy_preview, redecide, withheld
from cmerwatch.policy_preview import Estimate
from cmerwatch_web.console import auth, pages, policy_form, settings
from cmerwatch_web.console.policy_form import Row
from cmerwatch_web.console.settings import Problem

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/policies"
DONE = {
    "saved": "The new version is in force. Outputs checked from now on are judged by it; what was counted stays.",
    "cancelled": "Deciding history again is stopped. What was decided stays readable under its version; charts show "
    "history as it was decided before. Started again, it goes on from there.",
    "again": "The new version is in force, and history is decided again under it: a worker begins within seconds.",
}

Editor = Annotated[access.Principal, Depends(auth.allowed("policies"))]
Fields = Annotated[dict[str, Any], Depends(settings.form_fields)]


@dataclass(frozen=True, slots=True)
class Version:
    row: models.PolicyVersion
    changes: list[policy_form.Change]


@dataclass(frozen=True, slots=True)
class Draft:
    """The form as it stands: what was typed, and which version it started from."""

    rows: list[Row]
    based_on: int
    decides_again: bool = False
    added: int | None = None  # the row that was just added, where typing goes on


@router.get(PATH)
def show_policies(request: Request, session: auth.Session, viewer: auth.Viewer) -> Response:
    rows = policies.versions(session, viewer.project_id, limit=51)
    checker = cmer_series.current_checker(session, viewer.project_id)
    again = redecide.progress(session, viewer.project_id)
    rules = policy_form.rows_of(rows[0].rules) if rows else []
    earlier = [*rows[1:], None]
    history = [
        Version(row, policy_form.changes(before.rules if before else [], row.rules))
        for row, before in zip(rows, earlier, strict=True)
    ]
    return pages.render(
        request,
        "settings_policies.html",
        viewer=viewer,
        current=rows[0] if rows else None,
        rules=rules,
        uses_auto=any(row.sim == "auto" for row in rules),
        history=history[:50],
        again=again,
        may_decide_again=bool(rows) and rows[0].version > 1 and _may_decide_again(again, rows[0].version),
        checker=checker,
        misfit=policies.misfit(rows[0].version, rows[0].rules, checker) if rows else None,
        n_withheld=withheld.count(session, viewer.project_id),
        done=settings.done(request, DONE),
    )


def _may_decide_again(again: Mapping[int, redecide.Progress], version: int) -> bool:
    """Not while any runs, and not twice under one version."""
    is_done = version in again and again[version].finished_at is not None
    return not is_done and not any(job.is_running for job in again.values())


@router.get(PATH + "/edit")
def show_form(request: Request, session: auth.Session, viewer: Editor) -> Response:
    newest = policies.versions(session, viewer.project_id, limit=1)[0]
    return _form(request, session, viewer, Draft(policy_form.rows_of(newest.rules), newest.version))


def _form(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    draft: Draft,
    problem: Problem | None = None,
    preview: list[Estimate] | None = None,
) -> Response:
    checker = cmer_series.current_checker(session, viewer.project_id)
    may_use_cosine = checker is not None and checker.logit_scale is not None and checker.logit_bias is None
    shows_measure = may_use_cosine or any(row.measure != "score" for row in draft.rows)
    return pages.render(
        request,
        "settings_policy_edit.html",
        problem.status if problem else 200,
        viewer=viewer,
        draft=draft,
        decides_again=draft.decides_again,
        problem=problem and replace(problem, message=policy_form.worded(problem.message, shows_measure)),
        preview=preview,
        total=sum(preview, policy_preview.NOTHING) if preview else None,
        presets=policy_form.PRESETS,
        absent=policy_form.ABSENT,
        shows_measure=shows_measure,
        checker=checker,
    )


@router.post(PATH + "/edit")
def change_form(request: Request, session: auth.Session, viewer: Editor, fields: Fields) -> Response:
    """One form, several buttons: another row, a row less, a preview, or save."""
    draft = Draft(policy_form.read(fields), _version(fields), fields.get("history") == "again")
    act, _, what = str(fields.get("do", "")).partition(":")
    if act == "add":
        row = policy_form.with_preset(what) or Row()
        at = policy_form.place(draft.rows)
        rows = [*draft.rows[:at], row, *draft.rows[at:]]
        return _form(request, session, viewer, replace(draft, rows=rows, added=at))
    if act == "remove":
        kept = [row for number, row in enumerate(draft.rows) if str(number) != what]
        return _form(request, session, viewer, replace(draft, rows=kept))
    if act == "save":
        return _save(request, session, viewer, draft)
    return _preview(request, session, viewer, draft)


def _version(fields: dict[str, Any]) -> int:
    text = str(fields.get("based_on", ""))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise errors.Invalid("The form does not say which version it started from; open it again.", field="based_on")
    return int(text)


def _preview(request: Request, session: orm.Session, viewer: access.Principal, draft: Draft) -> Response:
    with settings.attempt(session) as problem:
        preview = _estimates(session, viewer, policy_form.rules_of(draft.rows))
    return _form(request, session, viewer, draft, problem, None if problem else preview)


def _estimates(session: orm.Session, viewer: access.Principal, rules: Sequence[dict[str, Any]]) -> list[Estimate]:
    checker = cmer_series.current_checker(session, viewer.project_id)
    policies.require_meaning(rules, checker)
    end = dt.datetime.now(dt.UTC)
    checker_id = checker.id if checker else None
    return policy_preview.estimate(session, viewer.project_id, checker_id, rules, end - policy_preview.WINDOW, end)


def _save(request: Request, session: orm.Session, viewer: access.Principal, draft: Draft) -> Response:
    with settings.attempt(session) as problem:
        rules = policy_form.rules_of(draft.rows)
        policies.require_meaning(rules, cmer_series.current_checker(session, viewer.project_id))
        before = policies.version(session, viewer.project_id, draft.based_on).rules
        made = policies.create(session, viewer.project_id, rules, viewer.actor, draft.based_on)
        if not policy_form.changes(before, rules):  # after it, which refuses a form older than the version in force
            raise errors.Invalid("Nothing is different from the version in force, so there is nothing to save.")
        if draft.decides_again:
            redecide.start(session, viewer.project_id, made, viewer.actor)
    if problem:
        return _form(request, session, viewer, draft, problem)
    access.audit(session, viewer.actor, "policy.create", f"version {made}", viewer.project_id, rules=len(rules))
    if draft.decides_again:
        access.audit(session, viewer.actor, "policy.redecide", f"version {made}", viewer.project_id)
    return settings.back(PATH, "again" if draft.decides_again else "saved")


@router.post(PATH + "/redecide/cancel")
def cancel_deciding(session: auth.Session, viewer: Editor) -> Response:
    version = redecide.cancel(session, viewer.project_id)
    access.audit(session, viewer.actor, "policy.redecide_cancel", f"version {version}", viewer.project_id)
    return settings.back(PATH, "cancelled")


@router.post(PATH + "/redecide")
def decide_again(session: auth.Session, viewer: Editor) -> Response:
    """History under the version in force, for who saved it without."""
    newest = policies.versions(session, viewer.project_id, limit=1)[0].version
    redecide.start(session, viewer.project_id, newest, viewer.actor)
    access.audit(session, viewer.actor, "policy.redecide", f"version {newest}", viewer.project_id)
    return settings.back(PATH, "again")
