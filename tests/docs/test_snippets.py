"""Every snippet in README and docs runs as it stands, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from cmerwatch import access, db, policies
from tests import processes
from tests.sdk.model_server import ModelServer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _snippets(language: str) -> list[object]:
    return [
        pytest.param(body, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (found, body) in enumerate(FENCE.findall(page.read_text()))
        if found == language
    ]


@pytest.fixture
def server(committed: str, configured: object) -> Iterator[tuple[str, str]]:
    """A real web process and a key of its own project."""
    with db.transaction() as session:
        project = access.create_project(session, "docs")
        policies.ensure_default(session, project.id)
        key = access.create_key(session, project.id, "docs", ["ingest", "read"])
    with processes.web(committed) as url:
        yield url, key


def _environment(server: tuple[str, str]) -> dict[str, str]:
    return os.environ | {"CMERWATCH_SERVER_URL": server[0], "CMERWATCH_API_KEY": server[1]}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that answers as OpenAI's does, where its client looks for one."""
    server = ModelServer()
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    yield
    server.stop()


def _stored(server: tuple[str, str]) -> list[dict[str, object]]:
    answer = httpx2.get(f"{server[0]}/v1/events", headers={"Authorization": f"Bearer {server[1]}"})
    rows: list[dict[str, object]] = answer.json()["rows"]
    return rows


@pytest.mark.parametrize("snippet", _snippets("python"))
@pytest.mark.usefixtures("model")
def test_a_python_snippet_runs_as_it_stands(snippet: str, server: tuple[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", snippet],
        cwd=ROOT,
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "cmerwatch.wrap(" in snippet:
        [row] = _stored(server)
        assert row["endpoint"] == "/describe"


def _shell_snippets() -> list[object]:
    """`make` lines are run by CI itself and by tests/path/test_demo.py; exports are the fixture's."""
    return [p for p in _snippets("sh") if "curl" in p.values[0]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("snippet", _shell_snippets())
def test_a_curl_snippet_works_by_copy_and_paste(snippet: str, server: tuple[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet],
        cwd=ROOT,
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert '"accepted"' in done.stdout
    assert len(_stored(server)) == 1


def test_the_readmes_three_lines_of_sdk_deliver_an_event(server: tuple[str, str]) -> None:
    snippets = [body for found, body in FENCE.findall((ROOT / "README.md").read_text()) if found == "python"]
    [snippet] = [body for body in snippets if "cmerwatch.record(" in body]
    subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, env=_environment(server), check=True, timeout=60)
    [row] = _stored(server)
    assert row["endpoint"] == "/describe"


def test_the_readmes_first_sentence_says_what_it_is() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.strip()]
    assert lines[1].startswith("cmerwatch watches what your vision-language app says about images")


def test_every_picture_and_page_that_docs_link_to_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
