"""A real server process on a free port, a real Chromium, and a record of everything the browser complained about."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from cmerwatch import access, blobs, db, partitions, policies
from cmerwatch.embedded import children
from tests import stack
from tests.conftest import SECRET
from tests.web import seeded

START_SECONDS = 60


@dataclass(frozen=True)
class Site:
    """A running console and a project of this test's own in it, with one user."""

    url: str
    project_id: uuid.UUID
    user_id: uuid.UUID
    login: str
    store: blobs.BlobStore

    def link(self) -> str:
        """A fresh one-time link for the user."""
        with db.transaction() as session:
            return f"{self.url}/sign-in/{access.create_sign_in_link(session, self.user_id)}"

    def key(self, *scopes: str) -> str:
        with db.transaction() as session:
            return access.create_key(session, self.project_id, "test", scopes)

    def lay(self, count: int, judge: seeded.Judge | None = None, **details: Any) -> str:
        """Lay events, and their checks by `judge`; returns the id of the last."""
        with db.transaction() as session:
            made = [seeded.event(session, self.store, self.project_id, **details) for _ in range(count)]
            if judge is not None:
                seeded.check(session, judge)
        return str(made[-1])

    def check(self, judge: seeded.Judge) -> None:
        with db.transaction() as session:
            seeded.check(session, judge)


# Module, not session: Playwright's event loop counts as running while it is open, and no other test of this process
# could use asyncio.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Skipped without one; in CI its absence is a failure."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        said = "there is no chromium on the PATH: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(f"BROWSER TESTS DID NOT RUN: {said}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Server:
    url: str
    engine: sa.Engine
    data: Path


@pytest.fixture(scope="module")
def server(servers: stack.Shared, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The web process as `cmerwatch web` starts it, on a database of its own; one for all tests of a module."""
    home, port = tmp_path_factory.mktemp("site"), children.free_port()
    url, database = f"http://127.0.0.1:{port}", servers.clone(f"site_{worker_id}")
    engine = db.configure(database)
    partitions.ensure_ahead(engine)
    channels = {"ALLOW_PRIVATE_TARGETS": "127.0.0.0/8", "DEMO_SINK": "true"}  # as the demo has them
    values = {"DATABASE_URL": database, "PUBLIC_URL": url, "DATA_DIR": str(home / "data")}
    process = _serve(port, home, values | channels)
    try:
        _wait(url, process, home / "web.log")
        yield Server(url, engine, home / "data")
    finally:
        process.terminate()
        process.wait(15)
        engine.dispose()
        servers.drop(f"site_{worker_id}")


@pytest.fixture
def site(server: Server) -> Site:
    db.SessionLocal.configure(bind=server.engine, join_transaction_mode="conditional_savepoint")
    name = f"p{uuid.uuid4().hex[:8]}"
    with db.transaction() as session:
        project = access.create_project(session, name)
        policies.ensure_default(session, project.id)
        user = access.create_user(session, project.id, f"ada-{name}", "Ada", "viewer", password="correct horse battery")
        return Site(server.url, project.id, user.id, user.login, blobs.FolderStore(server.data / "blobs"))


def _serve(port: int, home: Path, values: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "cmerwatch_web.app:create_app", "--port", str(port)]
    named = {f"CMERWATCH_{name}": value for name, value in values.items()}
    environment = os.environ | named | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["CMERWATCH_SECRET_KEY"] = SECRET
    with (home / "web.log").open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=1).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)  # there is nothing but the port to wait on
        else:
            return
    pytest.fail(f"the web process did not answer:\n{log.read_text()[-2000:]}")


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the browser's console said at warning level or above, and uncaught errors: none, in every test."""
    said: list[str] = []
    yield said
    assert said == []


Opener = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, complaints: list[str]) -> Iterator[Opener]:
    """`open_page(java_script_enabled=False)`: a page in a context of its own, listened to."""
    contexts: list[BrowserContext] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text}")

    def make(**options: Any) -> Page:
        context = chromium.new_context(**options)
        context.set_default_timeout(20_000)
        context.on("console", listen)
        context.on("weberror", lambda error: complaints.append(f"uncaught: {error.error}"))
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def signed_in(site: Site, open_page: Opener) -> Callable[..., Page]:
    """A page that has signed in by a one-time link and stands on the front page."""

    def make(**options: Any) -> Page:
        page = open_page(**options)
        page.goto(site.link())
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{site.url}/")
        return page

    return make
