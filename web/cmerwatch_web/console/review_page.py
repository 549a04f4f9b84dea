"""One item as its reviewer sees it: the evidence, the form with what was typed, and who holds it."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import access, blindness, blobs, errors, event_views, models, review_leases, reviews
from cmerwatch.event_views import EventView
from cmerwatch_web import charts
from cmerwatch_web.console import pages, passages, review_form, review_queue, review_text, words
from cmerwatch_web.console.review_form import Draft


def show(
    request: Request,
    session: orm.Session,
    viewer: access.Principal,
    store: blobs.BlobStore,
    item_id: uuid.UUID,
    draft: Draft | None = None,
    refused: errors.CmerwatchError | None = None,
) -> Response:
    """The page of one item, also of one that somebody else holds. Raises NotFound for another project's.

    A refusal is shown above the form, which keeps the draft; without a draft the form starts as the reviewer left it
    when they undid their answer, else empty. With blind reviews nothing of the checker's is on the page until the item
    is answered, for whomever.
    """
    item = _item(session, viewer, item_id)
    found = event_views.get(session, viewer.project_id, item.event_id)
    held = next((one for one in reviews.held(session, viewer) if one.item.id == item_id), None)
    is_blind = item.state != "done" and blindness.is_on(session, viewer.project_id)
    if draft is None:
        undone = review_queue.taken_back(session, viewer, item_id)
        draft = review_form.of_review(undone) if undone is not None else Draft()
    return pages.render(
        request,
        "review.html",
        refused.status if refused else 200,
        viewer=viewer,
        item=item,
        lease=held.lease if held else None,
        seconds=seconds_left(session, held.lease) if held else 0,
        draft=draft.beside(found.body.output),
        sentences=review_text.sentences(found.body.output, found.check.claims if found.check else (), draft.spans),
        problem=problem(refused, draft, viewer) if refused else None,
        standing=None if held else _standing(session, viewer, item),
        can_take=held is None and _can_take(session, viewer, item),
        ahead=review_queue.pictures_ahead(session, viewer.project_id) if held else [],
        mine=review_queue.mine_today(session, viewer),
        undoable=review_queue.undoable(session, viewer),
        earlier=_earlier(session, viewer, item),
        found=found,
        pictures=[store.get_display(viewer.project_id, sha256) is not None for sha256 in found.event.images],
        **(_blind(viewer, found) if is_blind else _evidence(session, item, found)),
        **_choices(),
    )


def _choices() -> dict[str, Any]:
    return {
        "verdicts": review_form.VERDICTS,
        "error_types": review_form.ERROR_TYPES,
        "skip_reasons": review_form.SKIP_REASONS,
        "most": reviews.MAX_TEXT,
    }


def _item(session: orm.Session, viewer: access.Principal, item_id: uuid.UUID) -> models.ReviewItem:
    found = sa.select(models.ReviewItem).where(
        models.ReviewItem.id == item_id, models.ReviewItem.project_id == viewer.project_id
    )
    item = session.scalar(found.execution_options(populate_existing=True))
    if item is None:
        raise errors.NotFound(f"There is no review item {item_id} in this project.")
    return item


def output(session: orm.Session, viewer: access.Principal, item_id: uuid.UUID) -> str:
    """What the item is about. Raises NotFound."""
    return event_views.get(session, viewer.project_id, _item(session, viewer, item_id).event_id).body.output


def _blind(viewer: access.Principal, found: EventView) -> dict[str, Any]:
    """The text with its sentences, which are but places to mark, and whether the verdict will count as blind."""
    claims = found.check.claims if found.check else ()
    return {
        "is_blind": True,
        "is_bound": blindness.binds(viewer),
        "stretches": review_text.weave(found.body.output, review_text.untinted(claims)),
    }


def _evidence(session: orm.Session, item: models.ReviewItem, found: EventView) -> dict[str, Any]:
    body, check = found.body, found.check
    unsure = review_text.unsure(body.output, body.tokens, body.logprobs)
    key = (item.event_id, item.checker_id, item.policy_version)
    decision = session.get(models.DecisionRow, key) or found.decision
    return {
        "is_blind": False,
        "reasons": item.reasons,
        "check": check,
        "opinions": _opinions(found),
        "judge_says": words.judge(found.judgement),
        "stretches": review_text.weave(body.output, check.claims if check else (), unsure or ()),
        "unplaced": passages.strip(body.tokens, body.logprobs) if unsure is None else [],
        "decision": decision,
        "fit": _fit(found),
        "confidence_gauge": decision and words.confidence_gauge(found.event.geo_p, decision.conf_threshold),
        "score_gauge": decision and check and words.score_gauge(check.score, decision.sim_threshold),
        "confidence_status": words.CONFIDENCE_STATUS.get(found.event.confidence_status, found.event.confidence_status),
    }


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge said of one sentence, beside what the checker did; neither is reckoned into the other."""

    claim: passages.Claim
    p_yes: float


def _opinions(found: EventView) -> list[Opinion]:
    said = words.opinions(found)
    claims = passages.claims(found.check.claims) if found.check else []
    return [Opinion(claim, said[claim.number]) for claim in claims if claim.number in said]


def _fit(found: EventView) -> str | None:
    """The score in words; the same sentence whatever it is, so that it does not tell why the item was chosen."""
    if found.check is None or found.check.score is None:
        return None
    who = "The output" if len(found.check.claims) < 2 else f"The weakest of {len(found.check.claims)} sentences"
    return f"{who} fits the picture better than {charts.percent(found.check.score)} of matching outputs do."


def _earlier(session: orm.Session, viewer: access.Principal, item: models.ReviewItem) -> list[reviews.Act]:
    """Why an item was escalated, for the lead who decides; everybody else judges without knowing of others."""
    if item.state != "escalated" or not viewer.may("lead"):
        return []
    return [act for act in review_queue.acts(session, viewer.project_id, item.event_id) if not act.is_undone]


def seconds_left(session: orm.Session, lease: reviews.Lease) -> int:
    now: dt.datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    return max(0, int((lease.expires_at - now).total_seconds()))


def _standing(session: orm.Session, viewer: access.Principal, item: models.ReviewItem) -> str:
    if item.state == "escalated" and _can_take(session, viewer, item):
        return "This item was escalated, and no lead holds it now."
    return standing(review_leases.lost(session, viewer, item.id), viewer)


def _can_take(session: orm.Session, viewer: access.Principal, item: models.ReviewItem) -> bool:
    is_open = item.state != "done" and (item.state != "escalated" or viewer.may("lead"))
    return is_open and _is_free(session, item)


def _is_free(session: orm.Session, item: models.ReviewItem) -> bool:
    """By the database's clock, which the leases are measured with."""
    return item.lease_until is None or item.lease_until <= session.scalars(sa.select(sa.func.now())).one()


def may_know_why(viewer: access.Principal) -> bool:
    """Whether an item was flagged or drawn at random: for leads, and for whoever will not be the one to judge it."""
    return viewer.may("lead") or not viewer.may("review")


def card(session: orm.Session, viewer: access.Principal, item: models.ReviewItem) -> dict[str, Any]:
    """What the event's own page says of its review; who said what is for leads."""
    is_lead = viewer.may("lead")
    can_take = viewer.may("review") and _can_take(session, viewer, item)
    is_kept = blindness.keeps(session, viewer, item)
    said = {"done": "", "escalated": "Escalated: it waits for a lead.", "open": "It waits in the queue."}
    return {
        "kind": item.kind if may_know_why(viewer) else None,
        "acts": [] if is_kept else review_queue.acts(session, viewer.project_id, item.event_id),
        "is_named": is_lead,
        "can_take": can_take,
        "said": said.get(
            item.state, "A reviewer is looking at it now." if not _is_free(session, item) else said["open"]
        ),
        "verdicts": review_form.VERDICTS,
        "error_types": review_form.ERROR_TYPES,
    }


# Refusals and standings in the page's words: the core's speak of calls, here there are buttons.


def problem(refused: errors.CmerwatchError, draft: Draft, viewer: access.Principal) -> str:
    if isinstance(refused, errors.LeaseLost):
        return f"{standing(refused, viewer)} Nothing was stored; what you typed is still here."
    if draft.verdict == "correct" and refused.details.get("field") == "error_types":
        return "You chose Correct and an error type. Take the error type away, or choose another verdict."
    if draft.verdict == "correct" and refused.details.get("field") == "spans":
        return "You chose Correct and marked words as wrong. Take the marks away, or choose another verdict."
    if refused.details.get("field") == "reason":
        return f"{refused.message} Nothing was stored."
    return f"{refused.message} Nothing was stored; what you typed is still here."


def standing(lost: errors.CmerwatchError, viewer: access.Principal) -> str:
    """Who has an item that this reviewer does not hold, and until when."""
    state, holder = lost.details.get("state"), lost.details.get("holder")
    if state == "expired":
        return f"Your time on this item ended at {_clock(lost.details['until'])}, and nobody has taken it since."
    if state == "open":
        return "You do not hold this item, and nobody else does."
    if state == "done" and lost.details.get("at"):
        who = "You, in this tab or another," if viewer.actor == f"user:{holder}" else holder
        return f"{who} answered this item at {_clock(lost.details['at'])}."
    return lost.message


def _clock(value: str) -> str:
    return f"{dt.datetime.fromisoformat(value).astimezone(dt.UTC):%H:%M:%S} UTC"
