"""Who may do what: no key, wrong keys, wrong scopes, and nothing of one project through the key of another."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models
from cmerwatch_web import deps
from tests.stack import wait_until
from tests.web.conftest import KeyMaker
from tests.web.wire import Headers, event, named, png, sha256

# What each refusal says; that no route at all is left out is test_who_may_what.py's.
ROUTES = [
    ("POST", "/v1/events", "ingest"),
    ("POST", "/v1/images/missing", "ingest"),
    ("PUT", f"/v1/images/{'0' * 64}", "ingest"),
    ("GET", "/v1/events", "read"),
    ("GET", f"/v1/events/{uuid.UUID(int=0)}", "read"),
    ("GET", "/v1/cmer", "read"),
    ("GET", "/v1/ledger", "read"),
    ("POST", "/v1/reviews/next", "review"),
    ("GET", "/v1/reviews/held", "review"),
    *(
        ("POST", f"/v1/reviews/{uuid.UUID(int=0)}/{call}", "review")
        for call in ("hold", "heartbeat", "verdict", "skip", "escalate", "release", "undo")
    ),
]


@pytest.mark.parametrize("method, path, scope", ROUTES)
@pytest.mark.parametrize(
    "authorization, says",
    [
        (None, "No API key"),
        ("", "No API key"),
        ("Basic YTpi", "No API key"),
        ("Bearer", "No API key"),
        ("Bearer hello", "does not look like"),
        ("Bearer cmw_abcdefgh_" + "x" * 38, "mistyped"),
        ("Bearer cmw_\xe9_" + "x" * 38, ""),
    ],
)
def test_without_a_known_key_every_route_answers_401(
    http: TestClient, method: str, path: str, scope: str, authorization: str | None, says: str
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = http.request(method, path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthenticated"
    assert says in answer.json()["error"]["message"]
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_well_formed_key_that_nobody_made_is_unknown(http: TestClient, ingest: Headers, session: orm.Session) -> None:
    session.execute(sa.delete(models.ApiKey))
    session.commit()
    answer = http.post("/v1/events", json={}, headers=ingest)
    assert (answer.status_code, "not known" in answer.text) == (401, True)


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
def test_a_revoked_or_expired_key_ends_within_seconds(
    http: TestClient, read: Headers, session: orm.Session, column: str
) -> None:
    assert http.get("/v1/events", headers=read).status_code == 200
    session.execute(sa.update(models.ApiKey).values({column: dt.datetime.now(dt.UTC)}))
    session.commit()
    wait_until(lambda: http.get("/v1/events", headers=read).status_code == 401, deps.KEY_SECONDS + 4)


@pytest.mark.parametrize("method, path, scope", ROUTES)
def test_a_key_of_another_scope_is_told_which_it_lacks(
    http: TestClient, key: KeyMaker, method: str, path: str, scope: str
) -> None:
    other = "read" if scope == "ingest" else "ingest"
    answer = http.request(method, path, headers=key(other, "admin"))
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"
    assert answer.json()["error"]["details"]["scope"] == scope
    assert repr(scope) in answer.json()["error"]["message"]


@pytest.fixture
def foreign(key: KeyMaker, stranger: models.Project) -> Headers:
    return key("ingest", "read", of=stranger)


def test_another_projects_event_is_not_there(http: TestClient, ingest: Headers, foreign: Headers) -> None:
    made = http.post("/v1/events", json=event(), headers=ingest).json()["results"][0]["id"]
    answer = http.get(f"/v1/events/{made}", headers=foreign)
    absent = http.get(f"/v1/events/{uuid.UUID(int=7)}", headers=foreign)
    assert (answer.status_code, absent.status_code) == (404, 404)
    assert answer.json()["error"]["code"] == absent.json()["error"]["code"] == "not_found"


def test_lists_rates_and_ledger_are_of_ones_own_project(http: TestClient, ingest: Headers, foreign: Headers) -> None:
    http.post("/v1/events", json=event(event_id="e1"), headers=ingest)
    assert http.get("/v1/events", headers=foreign).json()["rows"] == []
    assert http.get("/v1/events?event_id=e1", headers=foreign).json()["rows"] == []
    assert http.get("/v1/cmer", headers=foreign).json()["rows"] == []
    assert http.get("/v1/ledger", headers=foreign).json()["totals"]["accepted"] == 0


def test_a_picture_uploaded_by_one_project_is_unknown_to_another(
    http: TestClient, ingest: Headers, foreign: Headers
) -> None:
    picture = png()
    assert http.put(f"/v1/images/{sha256(picture)}", content=picture, headers=ingest).status_code == 200
    asked = {"sha256": [sha256(picture)]}
    assert http.post("/v1/images/missing", json=asked, headers=ingest).json() == {"missing": []}
    assert http.post("/v1/images/missing", json=asked, headers=foreign).json() == {"missing": asked["sha256"]}
    answer = http.post("/v1/events", json=event(images=[named(picture)]), headers=foreign)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "image_unknown")


def test_two_projects_may_use_one_event_id(http: TestClient, ingest: Headers, foreign: Headers) -> None:
    ids = {
        http.post("/v1/events", json=event(event_id="e1"), headers=who).json()["results"][0]["id"]
        for who in (ingest, foreign)
    }
    assert len(ids) == 2


def test_the_key_never_comes_back(http: TestClient, session: orm.Session, project: models.Project) -> None:
    made = access.create_key(session, project.id, "test", ["read"])
    session.commit()
    answer = http.get("/v1/events?limit=0", headers={"Authorization": f"Bearer {made}"})
    assert answer.status_code == 422
    assert made not in answer.text
