"""A migrated database per worker, rolled back per test; and a committed one for tests that need several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, blobs, db, models, partitions, policies, settings
from tests import stack

# Tests run side by side, and torch takes every core in each of them: spinning on one another's cores made a test of
# 12 seconds last 300. Read when torch is imported, by child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: how long an example takes on a busy machine says nothing about the code.
hypothesis.settings.register_profile("cmerwatch", deadline=None)
hypothesis.settings.load_profile("cmerwatch")

SECRET = "test-secret-key-of-more-than-32-characters"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> stack.Shared:
    return stack.shared(tmp_path_factory)


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., settings.Settings]]:
    """Settings of this test alone; call it with overrides to change some."""
    monkeypatch.setenv("CMERWATCH_SECRET_KEY", SECRET)
    monkeypatch.setenv("CMERWATCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("CMERWATCH_CHECKER", "demo")
    settings.current.cache_clear()

    def change(**overrides: object) -> settings.Settings:
        for name, value in overrides.items():
            monkeypatch.setenv(f"CMERWATCH_{name.upper()}", str(value))
        settings.current.cache_clear()
        return settings.current()

    yield change
    settings.current.cache_clear()


@pytest.fixture(scope="session")
def engine(servers: stack.Shared, worker_id: str) -> Iterator[sa.Engine]:
    url = servers.clone(f"rolled_back_{worker_id}")
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    yield engine
    engine.dispose()
    servers.drop(f"rolled_back_{worker_id}")


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[orm.Session]:
    """Everything any SessionLocal does in this test happens in one transaction that is rolled back at its end."""
    with engine.connect() as connection:
        outer = connection.begin()
        db.SessionLocal.configure(bind=connection, join_transaction_mode="create_savepoint")
        with db.SessionLocal() as session:
            yield session
        db.SessionLocal.configure(bind=engine, join_transaction_mode="conditional_savepoint")
        outer.rollback()


@pytest.fixture
def committed(servers: stack.Shared, request: pytest.FixtureRequest, worker_id: str) -> Iterator[str]:
    """The URL of a database of this test's own, for tests that need true concurrency; SessionLocal is bound to it."""
    name = f"own_{worker_id}_{abs(hash(request.node.nodeid)) % 10**8}"
    url = servers.clone(name)
    engine = db.configure(url)
    partitions.ensure_ahead(engine)
    yield url
    engine.dispose()
    servers.drop(name)


@pytest.fixture
def project(session: orm.Session) -> models.Project:
    made = access.create_project(session, "acme")
    policies.ensure_default(session, made.id)
    session.commit()
    return made


@pytest.fixture
def stranger(session: orm.Session) -> models.Project:
    """Another project, which must never see anything of the first."""
    made = access.create_project(session, "stranger")
    policies.ensure_default(session, made.id)
    session.commit()
    return made


@pytest.fixture
def blob_store(tmp_path: Path) -> blobs.BlobStore:
    return blobs.FolderStore(tmp_path / "data" / "blobs")
