"""From an app that sends its picture as an address, through the hook and every process, to a scored event."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import cmerwatch
from cmerwatch import access, db, settings
from cmerwatch.sdk import api
from tests import processes, receiver, stack
from tests.core.test_outbound import certificate
from tests.receiver import answering
from tests.sdk.model_server import ModelServer
from tests.worker import images, process, stage

PICTURE = images.encoded(images.scene())


@pytest.fixture
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture(params=["http", "https"])
def pictures(
    request: pytest.FixtureRequest,
    committed: str,
    servers: stack.Shared,
    configured: Callable[..., settings.Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """Where a picture lies, with a signature as object stores append it."""
    tls = certificate(tmp_path, "localhost") if request.param == "https" else None
    with receiver.receiver(tls) as made:
        made.answer = answering(200, PICTURE, Content_Type="image/png")
        if tls:
            monkeypatch.setenv("SSL_CERT_FILE", os.fspath(tmp_path / "ca.pem"))
        configured(
            database_url=committed,
            redis_url=servers.redis_url(7),
            fetch_images=f"localhost:{made.port}",
            allow_private_targets=f"localhost:{made.port}",
            poll_seconds="600",  # hints alone carry it through
            decode_processes=1,
            audit_rate=0,
        )
        yield f"{request.param}://localhost:{made.port}/circle.png?X-Signature=very-secret"


@pytest.fixture
def key(pictures: str) -> str:
    project_id = stage.new_project()
    with db.transaction() as session:
        return access.create_key(session, project_id, "app", ("ingest", "read"))


@pytest.fixture
def app(model: ModelServer, key: str) -> Iterator[Callable[[str, str], None]]:
    """`app(server_url, picture_url)` asks the model about the picture, with recording on."""

    def ask(server_url: str, picture_url: str) -> None:
        cmerwatch.init(api_key=key, server_url=server_url, flush_interval=0.01)
        client = model.closing(openai.OpenAI(base_url=model.url, api_key="sk-test"))
        cmerwatch.wrap(client, endpoint="/describe")
        parts: Any = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": picture_url}},
        ]
        client.chat.completions.create(model="toy-vlm", logprobs=True, messages=[{"role": "user", "content": parts}])
        assert cmerwatch.flush(10)

    yield ask
    cmerwatch.shutdown(10)
    api._client = None


def test_an_openai_app_that_sends_addresses_gets_its_answers_scored(
    pictures: str, key: str, app: Callable[[str, str], None], committed: str, tmp_path: Path
) -> None:
    with (
        processes.web(committed, settings.current().redis_url) as url,
        process.worker(tmp_path / "log") as worker,
        httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http,
    ):
        worker.wait_ready()
        app(url, pictures)
        stack.wait_until(lambda: [row["state"] for row in http.get("/v1/events").json()["rows"]] == ["checked"], 30)
        [row] = http.get("/v1/events").json()["rows"]
        event = http.get(f"/v1/events/{row['id']}").json()
    assert event["check"]["outcome"] == "scored", event
    assert [claim["text"] for claim in event["check"]["claims"]] == ["A red circle."]
    assert len(event["images"]) == 1
    assert event["confidence"]["status"] == "present"
    assert "very-secret" not in str(event) + worker.said
