"""What reviewers see before their verdict: everything, or the picture and the text alone, so that a true rate estimated
from their verdicts is not drawn towards what the checker said."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, errors, models

# Of fewer outputs a rate tells too much of each: a slice can be narrowed to one output, whose rate is its verdict.
FEWEST = 50


def is_on(session: orm.Session, project_id: uuid.UUID) -> bool:
    """Whether this project's reviews are blind now."""
    since = sa.select(models.Project.blind_since).where(models.Project.id == project_id)
    return session.scalar(since) is not None


def change(session: orm.Session, principal: access.Principal, blind: bool) -> None:
    """Leases from here on are blind, or are not; what says so already stays as it is."""
    project = session.get_one(models.Project, principal.project_id, with_for_update=True, populate_existing=True)
    if blind == (project.blind_since is not None):
        return
    since = session.scalars(sa.select(sa.func.clock_timestamp())).one() if blind else None
    project.blind_since = since
    access.audit(
        session, principal.actor, "review.visibility", "project", principal.project_id, blind="yes" if blind else "no"
    )


def binds(principal: access.Principal) -> bool:
    """Whether blind reviews keep the checker's word from this person on every page and in every answer.

    Who watches the numbers too (leads, engineers, admins) needs them at work, and a viewer judges nothing: a blind
    page asks leads and engineers to judge unaided, and their verdicts do not count as blind.
    """
    actions = access.ROLE_ACTIONS.get(principal.role or "", frozenset())
    return "review" in actions and not actions & {"lead", "alerts"}


def keeps(session: orm.Session, principal: access.Principal, item: models.ReviewItem | None) -> bool:
    """Whether what the checker said of an event is kept from this person now; `item` is the event's, where it has one.

    Without an item as well: it may still come, and flagged, drawn and unseen events must look alike.
    """
    is_answered = item is not None and item.state == "done"
    return binds(principal) and not is_answered and is_on(session, principal.project_id)


def fewest(session: orm.Session, principal: access.Principal) -> int:
    """Of how many outputs a rate must be to be shown to this person: FEWEST where single outputs are kept, else 0."""
    return FEWEST if keeps(session, principal, None) else 0


def require_previews(session: orm.Session, principal: access.Principal) -> None:
    """Raises Forbidden for people who are kept blind: of one output, what another threshold or rule would have done
    says what its score is."""
    if keeps(session, principal, None):
        raise errors.Forbidden("Reviews are blind in this project: reviewers are given no previews of rules.")
