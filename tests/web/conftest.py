"""The real app on the test's own database session, and keys to talk to it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fastapi
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models, settings
from cmerwatch_web import app as web

KeyMaker = Callable[..., dict[str, str]]


@pytest.fixture
def app(configured: Callable[..., settings.Settings], session: orm.Session) -> fastapi.FastAPI:
    """Not started: its start would connect to another database than the one this test rolls back."""
    return web.create_app(configured())


@pytest.fixture
def http(app: fastapi.FastAPI) -> TestClient:
    """Without a key. A 500 is an answer like any other here."""
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def key(session: orm.Session, project: models.Project) -> KeyMaker:
    """`key("read")` makes the headers of a key of that scope; `key("read", of=stranger)` of another project."""

    def make(*scopes: str, of: models.Project | None = None) -> dict[str, str]:
        made = access.create_key(session, (of or project).id, "test", scopes)
        session.commit()
        return {"Authorization": f"Bearer {made}"}

    return make


@pytest.fixture
def ingest(key: KeyMaker) -> dict[str, str]:
    return key("ingest")


@pytest.fixture
def read(key: KeyMaker) -> dict[str, str]:
    return key("read")


@pytest.fixture
def stored(session: orm.Session, tmp_path: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """How much of everything is stored now: rows of the tables that ingest writes, and blobs on disk."""
    tables = (models.Event, models.EventBody, models.IngestKey, models.Image, models.Work)

    def count() -> dict[str, int]:
        session.expire_all()
        counts = {table.__tablename__: session.query(table).count() for table in tables}
        files = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
        return counts | {"blobs": len(files)}

    return count


@pytest.fixture
def user(session: orm.Session, project: models.Project) -> models.User:
    made = access.create_user(session, project.id, "ada", "Ada", "viewer", password="correct horse battery")
    session.commit()
    return made


@pytest.fixture
def console(app: fastapi.FastAPI, session: orm.Session, user: models.User) -> TestClient:
    """A browser in which `user` is signed in; it does not follow redirects."""
    cookie = access.open_console_session(session, user.id)
    session.commit()
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})
