"""Every route, for every role and scope, on an object of another project: a new route without a line here fails.

The expectations follow from the table alone: 401 without a credential, 403 for an action that the role or scope lacks,
404 for another project's object, and anything else only where it is allowed and one's own.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, ids, models, policies, settings
from cmerwatch_web import app as web
from tests.web import seeded

LEASE = str(uuid.uuid4())
HOLDING: dict[str, Any] = {"lease_token": LEASE}
PASSING = HOLDING | {"reason": "test"}
VERDICT = HOLDING | {"verdict": "correct"}
QUIET = {"reason": "test", "seconds": 3600}

# Route: the action it needs (one of several: "a|b"; "" for anybody), and a body that is well formed.
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "GET /openapi.json": ("", {}),
    "GET /healthz": ("", {}),
    "GET /readyz": ("", {}),
    "GET /metrics": ("", {}),
    "GET /static/{name}": ("", {}),
    "GET /sign-in": ("", {}),
    "POST /sign-in": ("", {}),
    "GET /sign-in/{token}": ("", {}),
    "POST /sign-in/{token}": ("", {}),
    "GET /invitation/{token}": ("", {}),
    "POST /invitation/{token}": ("", {}),
    "POST /sign-out": ("", {}),
    "POST /sink/{project}/{kind}": ("", {}),  # a receiver, which only the demo has
    # The API
    "POST /v1/events": ("ingest", {}),
    "GET /v1/events": ("read", {}),
    "GET /v1/events/{event_id}": ("read", {}),
    "POST /v1/images/missing": ("ingest", {"sha256": []}),
    "PUT /v1/images/{sha256}": ("ingest", {}),
    "GET /v1/cmer": ("read", {}),
    "GET /v1/ledger": ("read", {}),
    "GET /v1/policies": ("read|policies", {}),
    "GET /v1/policies/{version}": ("read|policies", {}),
    "POST /v1/policies/{version}/redecide": ("policies", {}),
    "DELETE /v1/policies/{version}/redecide": ("policies", {}),
    "POST /v1/policies": ("policies", {"rules": [{"sim_threshold": 0.1}]}),
    "POST /v1/policies/preview": ("read|policies", {"rules": [{}]}),
    "POST /v1/reviews/next": ("review", {}),
    "GET /v1/reviews/held": ("review", {}),
    "POST /v1/reviews/{item}/hold": ("review", {}),
    "POST /v1/reviews/{item}/heartbeat": ("review", HOLDING),
    "POST /v1/reviews/{item}/verdict": ("review", VERDICT),
    "POST /v1/reviews/{item}/skip": ("review", PASSING),
    "POST /v1/reviews/{item}/escalate": ("review", PASSING),
    "POST /v1/reviews/{item}/release": ("review", HOLDING),
    "POST /v1/reviews/{item}/undo": ("review", {}),
    "GET /v1/alert-rules": ("read|alerts", {}),
    "POST /v1/alert-rules": ("alerts", {}),
    "POST /v1/alert-rules/backtest": ("read|alerts", {}),
    "GET /v1/alert-rules/{rule}": ("read|alerts", {}),
    "PATCH /v1/alert-rules/{rule}": ("alerts", {"name": "x"}),
    "DELETE /v1/alert-rules/{rule}": ("alerts", {}),
    "GET /v1/deliveries": ("read|alerts", {}),
    "GET /v1/alerts": ("read|alerts", {}),
    "GET /v1/alerts/{alert}": ("read|alerts", {}),
    "GET /v1/silences": ("read|alerts", {}),
    "POST /v1/silences": ("silence", QUIET),
    "DELETE /v1/silences/{silence}": ("silence", {}),
    "GET /v1/channels": ("alerts", {}),
    "POST /v1/channels": ("alerts", {}),
    "GET /v1/channels/{channel}": ("alerts", {}),
    "PATCH /v1/channels/{channel}": ("alerts", {"name": "x"}),
    "DELETE /v1/channels/{channel}": ("alerts", {}),
    "POST /v1/channels/{channel}/rotate-secret": ("alerts", {}),
    "POST /v1/channels/{channel}/test": ("alerts", {}),
    # The console
    "POST /project": ("read", {"slug": "stranger"}),
    "GET /": ("read", {}),
    "GET /events": ("read", {}),
    "GET /events/{event_id}": ("read", {}),
    "GET /events/{event_id}/json": ("read", {}),
    "GET /events/{event_id}/state": ("read", {}),
    "GET /media/{event_id}/{number}": ("read", {}),
    "GET /ledger": ("read", {}),
    "GET /quarantine": ("read", {}),
    "POST /quarantine/replay": ("operate", {}),
    "GET /review": ("review", {}),
    "GET /review/state": ("review", {}),
    "GET /review/history": ("review", {}),
    "GET /review/escalated": ("lead", {}),
    "GET /review/figures": ("lead", {}),
    "POST /review/next": ("review", {}),
    "GET /review/{item_id}": ("review", {}),
    "POST /review/{item_id}/hold": ("review", {}),
    "POST /review/{item_id}/resume": ("review", {}),
    "POST /review/{item_id}/verdict": ("review", VERDICT),
    "POST /review/{item_id}/skip": ("review", PASSING),
    "POST /review/{item_id}/escalate": ("review", PASSING),
    "POST /review/{item_id}/undo": ("review", {}),
    "POST /review/{item_id}/give-back": ("review", HOLDING),
    "POST /review/{item_id}/heartbeat": ("review", HOLDING),
    "GET /alerts": ("read", {}),
    "GET /alerts/ended": ("read", {}),
    "GET /alerts/rules": ("read", {}),
    "GET /alerts/rules/new": ("alerts", {}),
    "GET /alerts/rules/{rule}": ("alerts", {}),
    "POST /alerts/rules": ("alerts", {}),
    "POST /alerts/rules/{rule}": ("alerts", {}),
    "POST /alerts/rules/{rule}/switch": ("alerts", {"turn": "on"}),
    "POST /alerts/rules/{rule}/delete": ("alerts", {}),
    "GET /alerts/silences": ("read", {}),
    "POST /alerts/silences": ("silence", {}),
    "POST /alerts/silences/{silence}/end": ("silence", {}),
    "GET /alerts/{alert}": ("read", {}),
    "POST /alerts/{alert}/silence": ("silence", {"reason": "test"}),
    "GET /settings": ("read", {}),
    "GET /settings/account": ("read", {}),
    "POST /settings/account/password": ("read", {}),
    "POST /settings/account/sessions/end-others": ("read", {}),
    "POST /settings/account/sessions/{handle}/end": ("read", {}),
    "GET /settings/keys": ("admin", {}),
    "POST /settings/keys": ("admin", {}),
    "POST /settings/keys/{key_id}/revoke": ("admin", {}),
    "GET /settings/people": ("admin", {}),
    "POST /settings/people": ("admin", {}),
    "POST /settings/people/invitations/withdraw": ("admin", {"login": "nobody"}),
    "POST /settings/people/{user_id}/link": ("admin", {}),
    "POST /settings/people/{user_id}/role": ("admin", {"role": "viewer"}),
    "POST /settings/people/{user_id}/disable": ("admin", {}),
    "POST /settings/people/{user_id}/enable": ("admin", {}),
    "POST /settings/people/{user_id}/remove": ("admin", {}),
    "GET /settings/audit": ("admin", {}),
    "GET /settings/reviews": ("lead", {}),
    "POST /settings/reviews": ("lead", {"seen": "blind"}),
    "GET /settings/policies": ("read", {}),
    "GET /settings/policies/edit": ("policies", {}),
    "POST /settings/policies/edit": ("policies", {"based_on": "1"}),
    "POST /settings/policies/redecide": ("policies", {}),
    "POST /settings/policies/redecide/cancel": ("policies", {}),
    "GET /settings/channels": ("alerts", {}),
    "POST /settings/channels": ("alerts", {}),
    "POST /settings/channels/{channel}": ("alerts", {}),
    "POST /settings/channels/{channel}/test": ("alerts", {}),
    "POST /settings/channels/{channel}/enable": ("alerts", {}),
    "POST /settings/channels/{channel}/disable": ("alerts", {}),
    "POST /settings/channels/{channel}/delete": ("alerts", {}),
    "POST /settings/channels/{channel}/rotate": ("alerts", {}),
    "GET /sink": ("read", {}),
}
NAMELESS = ("POST /project",)  # names another project's object in its body
# Shown again, with a sign-in, instead of being sent to the front door.
SAVES_WHAT_WAS_TYPED = tuple(f"POST /review/{{item_id}}/{act}" for act in ("resume", "verdict", "skip", "escalate"))
OF_NOBODY = ("PUT /v1/images/{sha256}",)  # a hash is nobody's: whoever sends its bytes may


@pytest.fixture
def app(configured: Callable[..., settings.Settings], session: orm.Session) -> fastapi.FastAPI:
    """With every page there is: the sink is the demo's only."""
    return web.create_app(configured(demo_sink=True))


def served(app: fastapi.FastAPI) -> set[str]:
    def walk(routes: Iterable[Any]) -> Iterator[str]:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                yield from walk(inner.routes)
            else:
                yield from (f"{method} {route.path}" for method in route.methods - {"HEAD"})

    return set(walk(app.routes))


def test_every_route_has_its_line_and_every_line_its_route(app: fastapi.FastAPI) -> None:
    found = served(app)
    assert sorted(found - set(ROUTES)) == [], "say here which action they need"
    assert sorted(set(ROUTES) - found) == []


@pytest.fixture
def foreign(session: orm.Session, blob_store: blobs.BlobStore, stranger: models.Project) -> dict[str, str]:
    """One of everything that an address can name, all in a project that none of the askers belongs to."""
    eve = access.create_user(session, stranger.id, "eve", "Eve", "admin")
    event = seeded.event(session, blob_store, stranger.id)
    seeded.check(session, seeded.scored(0.1, 0.001))
    item = session.scalars(sa.select(models.ReviewItem.id)).one()
    policies.create(session, stranger.id, [{"sim_threshold": 0.2}], "user:eve")
    rule, silence, channel, alert = (ids.uuid7() for _ in range(4))
    laid = {
        "alert_rules": {"id": rule, "name": "x", "kind": "threshold", "severity": "warning"},
        "silences": {"id": silence, "reason": "x", "created_by": "user:eve"},
        "channels": {"id": channel, "name": "x", "kind": "slack"},
        "alerts": {"id": alert, "rule_id": rule, "rule_name": "x", "severity": "warning", "slice_key": "", "slice": {}},
    }
    for table, values in laid.items():
        lay(session, table, {"project_id": stranger.id} | values)
    key = access.create_key(session, stranger.id, "x", ["read"]).split("_")[1]
    cookie = access.open_console_session(session, eve.id)
    session.commit()
    return {
        "event_id": str(event),
        "item": str(item),
        "item_id": str(item),
        "rule": str(rule),
        "silence": str(silence),
        "channel": str(channel),
        "alert": str(alert),
        "key_id": key,
        "user_id": str(eve.id),
        "handle": access.token_hash(access.token_hash(cookie).hex()).hex()[:16],
        "version": "2",
        "number": "0",
        "sha256": "0" * 64,
        "name": "x",
        "token": "x",
    }


def lay(session: orm.Session, table: str, values: dict[str, Any]) -> None:
    """A row with what must be there filled in by type: this test is about whose it is, not about what it says."""
    columns = models.Base.metadata.tables[table].columns
    filled: dict[str, Any] = {
        "TIMESTAMP": sa.func.now(),
        "DATETIME": sa.func.now(),
        "INTEGER": 1,
        "DOUBLE": 0.5,
        "TEXT": "x",
        "VARCHAR": "x",
        "UUID": uuid.uuid4(),
        "BLOB": b"x",
        "JSONB": {},
        "BOOLEAN": True,
        "ARRAY": [],
    }
    for column in columns:
        missing = column.name not in values and not column.nullable and column.server_default is None
        if missing and column.default is None:
            values[column.name] = filled[type(column.type).__name__.upper().replace("LARGEBINARY", "BLOB")]
    session.execute(sa.insert(models.Base.metadata.tables[table]).values(values))


def guarded() -> list[tuple[str, tuple[str, dict[str, Any]]]]:
    return [(route, line) for route, line in ROUTES.items() if line[0]]


Ask = Callable[[str], int]


def asker(http: TestClient, foreign: dict[str, str], is_api: bool) -> Ask:
    def ask(route: str) -> int:
        method, path = route.split(" ")
        address = re.sub(r"\{(\w+)\}", lambda found: foreign[found.group(1)], path)
        body = ROUTES[route][1]
        if method in ("GET", "DELETE"):
            return http.request(method, address).status_code
        if is_api or method == "PATCH":
            return http.request(
                method, address, content=json.dumps(body), headers={"content-type": "application/json"}
            ).status_code
        return http.request(method, address, data=body).status_code

    return ask


def wrong(ask: Ask, may: frozenset[str], is_api: bool) -> list[str]:
    """Every route that did not answer as its line says."""
    found = []
    for route, (action, _) in guarded():
        if route.split(" ")[1].startswith("/v1") != is_api:
            continue
        status = ask(route)
        is_foreign = ("{" in route or route in NAMELESS) and route not in OF_NOBODY
        if not any(one in may for one in action.split("|")):
            expected = status == 403
        elif is_foreign:
            expected = status == 404
        else:
            expected = status not in (401, 403, 404) and status < 500
        if not expected:
            found.append(f"{route}: {status}")
    return found


@pytest.mark.parametrize("role", models.ROLES)
def test_each_role_may_do_what_its_actions_say_and_never_reaches_another_project(
    app: fastapi.FastAPI,
    session: orm.Session,
    project: models.Project,
    foreign: dict[str, str],
    role: str,
) -> None:
    user = access.create_user(session, project.id, role, role, role)
    cookie = access.open_console_session(session, user.id)
    session.commit()
    browser = TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})
    found = wrong(asker(browser, foreign, False), access.ROLE_ACTIONS[role], False)
    assert not found, "; ".join(found)


@pytest.mark.parametrize("scope", access.SCOPES)
def test_each_scope_may_do_what_its_actions_say_and_never_reaches_another_project(
    app: fastapi.FastAPI, session: orm.Session, project: models.Project, foreign: dict[str, str], scope: str
) -> None:
    lead = access.create_user(session, project.id, "lead", "Lead", "lead") if scope == "review" else None
    made = access.create_key(session, project.id, "x", [scope], lead.id if lead else None)
    session.commit()
    client = TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {made}"})
    assert wrong(asker(client, foreign, True), access.SCOPE_ACTIONS[scope], True) == []


def test_without_a_credential_nothing_but_the_door_opens(app: fastapi.FastAPI, foreign: dict[str, str]) -> None:
    anyone = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
    for route, _ in guarded():
        is_api = route.split(" ")[1].startswith("/v1")
        expected = 401 if is_api or route in SAVES_WHAT_WAS_TYPED else 303
        assert asker(anyone, foreign, is_api)(route) == expected, route
        anyone.cookies.clear()


def test_no_list_shows_anything_of_another_project(
    app: fastapi.FastAPI, session: orm.Session, project: models.Project, foreign: dict[str, str]
) -> None:
    user = access.create_user(session, project.id, "ada", "Ada", "admin")
    made = access.create_key(session, project.id, "x", ["read", "admin"])
    cookie = access.open_console_session(session, user.id)
    session.commit()
    browser = TestClient(app, raise_server_exceptions=False, cookies={"cmw": cookie})
    client = TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {made}"})
    theirs = {name: value for name, value in foreign.items() if len(value) > 6 and name != "sha256"}
    assert len(theirs) > 8
    lists = [route.removeprefix("GET ") for route, _ in guarded() if route.startswith("GET ") and "{" not in route]
    shown = {path: (client if path.startswith("/v1") else browser).get(path).text for path in lists}
    assert {(path, name) for path, text in shown.items() for name, value in theirs.items() if value in text} == set()
    assert [path for path, text in shown.items() if "stranger" in text] == []


def test_no_form_of_another_site_is_taken(
    app: fastapi.FastAPI, session: orm.Session, project: models.Project, foreign: dict[str, str]
) -> None:
    """A new page cannot forget it: whatever an admin's browser is made to send from elsewhere is refused."""
    user = access.create_user(session, project.id, "ada", "Ada", "admin")
    cookie = access.open_console_session(session, user.id)
    session.commit()
    elsewhere = {"sec-fetch-site": "cross-site"}
    browser = TestClient(
        app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie}, headers=elsewhere
    )
    pages = [
        route for route in ROUTES if route.startswith("POST /") and not route.startswith(("POST /v1", "POST /sink"))
    ]
    ask = asker(browser, foreign, False)
    assert {route: status for route in pages if (status := ask(route)) != 403} == {}
    assert len(pages) > 30


def test_a_cookie_opens_no_api_and_a_key_opens_no_page(
    console: TestClient, http: TestClient, read: dict[str, str]
) -> None:
    assert console.get("/v1/cmer").status_code == 401
    assert http.get("/events", headers=read, follow_redirects=False).status_code == 303
