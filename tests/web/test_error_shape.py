"""Every route refuses in one shape, and no answer tells what failed inside."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm
from starlette.requests import ClientDisconnect

from cmerwatch import blobs, models
from cmerwatch_web import errors
from tests.web.conftest import KeyMaker
from tests.web.wire import Headers, event, png, sha256

SECRET_TEXT = "a sentence that must never leave"


def api_routes(app: fastapi.FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route of the API, as its own description lists them."""
    return [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]


def is_shape(body: Any) -> bool:
    error = body.get("error", {})
    return (
        set(body) == {"error"}
        and set(error) == {"code", "message", "details"}
        and re.fullmatch(r"[a-z_]+", error["code"]) is not None
        and error["message"].endswith(".")
        and isinstance(error["details"], dict)
    )


def test_the_description_lists_the_routes_of_the_contract(app: fastapi.FastAPI) -> None:
    assert set(api_routes(app)) >= {
        ("POST", "/v1/events"),
        ("GET", "/v1/events"),
        ("GET", "/v1/events/{event_id}"),
        ("POST", "/v1/images/missing"),
        ("PUT", "/v1/images/{sha256}"),
        ("GET", "/v1/cmer"),
        ("GET", "/v1/ledger"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_every_route_refuses_in_one_shape(app: fastapi.FastAPI, http: TestClient, key: KeyMaker) -> None:
    keys: list[Headers] = [{}, {"Authorization": "Bearer nonsense"}, key("admin"), key("ingest", "read")]
    refused = 0
    for method, path in api_routes(app):
        for name in ("nonsense", str(uuid.UUID(int=0)), "0" * 64):
            address = re.sub(r"\{\w+\}", name, path)
            for headers in keys:
                for query in ("", "?nonsense=1&limit=x&from=x&bucket=x"):
                    answer = http.request(method, address + query, headers=headers, content=b"\x00nonsense")
                    if answer.status_code >= 400:
                        refused += 1
                        assert is_shape(answer.json()), (method, address, answer.status_code, answer.text)
                    assert answer.status_code < 500, (method, address, answer.text)
    assert refused > 100


@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("DELETE", "/v1/events", 405, "method_not_allowed"),
        ("PATCH", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/cmer", 405, "method_not_allowed"),
    ],
)
def test_wrong_addresses_and_methods_are_refused_in_the_same_shape(
    http: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert is_shape(answer.json())


class BrokenStore(blobs.FolderStore):
    """Fails in a way nobody foresaw, with text in its message."""

    def put(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        raise RuntimeError(SECRET_TEXT)


def test_what_nobody_foresaw_answers_500_and_tells_nothing(
    app: fastapi.FastAPI, http: TestClient, ingest: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    app.state.blobs = BrokenStore(app.state.settings.blob_dir)
    answer = http.post("/v1/events", json=event(output=SECRET_TEXT), headers=ingest)
    assert answer.status_code == 500
    assert is_shape(answer.json())
    assert answer.json()["error"]["code"] == "internal"
    assert "Content-Security-Policy" in answer.headers
    assert "RuntimeError" in caplog.text  # what failed, and where
    assert "test_error_shape.py" in caplog.text
    for told in (answer.text, caplog.text):
        assert SECRET_TEXT not in told.replace("raise RuntimeError(SECRET_TEXT)", "")
    assert "Traceback" not in answer.text


def test_a_database_error_tells_neither_statement_nor_values(
    http: TestClient, ingest: Headers, session: orm.Session, caplog: pytest.LogCaptureFixture
) -> None:
    session.execute(sa.text("ALTER TABLE work ADD CONSTRAINT odd CHECK (endpoint <> 'chat')"))
    session.commit()
    answer = http.post("/v1/events", json=event(output=SECRET_TEXT), headers=ingest)
    assert answer.status_code == 500
    assert is_shape(answer.json())
    for told in (answer.text, caplog.text):
        assert SECRET_TEXT not in told
        assert "Failing row" not in told
    assert "INSERT" not in answer.text


def test_refusals_are_not_logged_with_what_was_sent(
    http: TestClient, ingest: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    http.post("/v1/events", json=event(output=SECRET_TEXT, confidence=SECRET_TEXT), headers=ingest)
    http.post("/v1/events", json=event(output=SECRET_TEXT), headers=ingest)
    http.post("/v1/events", content=SECRET_TEXT, headers=ingest)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("cmerwatch", "sqlalchemy"))]
    assert not any(SECRET_TEXT in message for message in ours)


@pytest.mark.parametrize("path", ["/healthz", "/v1/events", "/v1/nowhere", "/metrics", "/openapi.json", "/sign-in"])
def test_every_answer_carries_the_security_headers(http: TestClient, path: str) -> None:
    headers = http.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert ("script-src 'self'" in policy) == headers["Content-Type"].startswith("text/html")


def test_https_is_insisted_on_only_where_the_public_address_has_it(
    app: fastapi.FastAPI, http: TestClient, configured: Any
) -> None:
    from cmerwatch_web.app import create_app

    assert "Strict-Transport-Security" not in http.get("/healthz").headers
    secure = TestClient(create_app(configured(public_url="https://cmerwatch.example")))
    assert secure.get("/healthz").headers["Strict-Transport-Security"] == "max-age=31536000"


def test_a_rejected_row_of_a_batch_has_the_inside_of_the_same_shape(http: TestClient, ingest: Headers) -> None:
    batch = {"events": [event(), event(confidence=2)]}
    error = http.post("/v1/events", json=batch, headers=ingest).json()["results"][1]["error"]
    assert is_shape({"error": error})


def test_nothing_of_a_picture_is_stored_when_its_row_cannot_be(
    http: TestClient, ingest: Headers, session: orm.Session
) -> None:
    session.execute(sa.text("ALTER TABLE images ADD CONSTRAINT odd CHECK (size_bytes < 10)"))
    session.commit()
    assert http.put(f"/v1/images/{sha256(png())}", content=png(), headers=ingest).status_code == 500
    assert session.query(models.Image).count() == 0


def test_a_client_that_hangs_up_while_sending_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def left(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    async def never(*message: Any) -> Any:
        pytest.fail("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/v1/events"}
    asyncio.run(errors.LastResort(left)(scope, never, never))
    assert caplog.records == []
