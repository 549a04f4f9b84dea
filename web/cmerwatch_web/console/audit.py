"""The audit log as a page: who changed what and when, with filters."""

from __future__ import annotations

from urllib.parse import urlencode

import fastapi
from starlette.requests import Request
from starlette.responses import Response

from cmerwatch import audits
from cmerwatch_web.console import auth, pages

router = fastapi.APIRouter(route_class=pages.Page)

PATH = "/settings/audit"


@router.get(PATH)
def show_log(
    request: Request, session: auth.Session, viewer: auth.Admin, action: str = "", actor: str = "", cursor: str = ""
) -> Response:
    action, actor = pages.storable(action), pages.storable(actor)
    page = audits.find(session, viewer.project_id, action, actor, cursor)
    older = {"action": action, "actor": actor, "cursor": page.next_cursor or ""}
    return pages.render(
        request,
        "settings_audit.html",
        viewer=viewer,
        entries=page.entries,
        called=audits.names(session, viewer.project_id, page.entries),
        refused=audits.refused_sign_ins(session, viewer.project_id) if not cursor else [],
        actions=audits.actions(session, viewer.project_id),
        actors=audits.actors(session, viewer.project_id),
        action=action,
        actor=actor,
        is_first=not cursor,
        newest=f"{PATH}?{urlencode({'action': action, 'actor': actor})}",
        older=page.next_cursor and f"{PATH}?{urlencode(older)}",
    )
