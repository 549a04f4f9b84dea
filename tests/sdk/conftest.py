"""A loopback server and clients that end with their test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cmerwatch
from cmerwatch.sdk import api
from cmerwatch.sdk.hooks import openai as openai_hook
from cmerwatch.sdk.testing import MemoryTransport
from tests.sdk.loopback import LoopbackServer
from tests.sdk.model_server import ModelServer

MakeClient = Callable[..., cmerwatch.Client]
Recorded = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "SERVER_URL", "ENVIRONMENT", "ENABLED", "SAMPLE_RATE", "DEBUG"):
        monkeypatch.delenv(f"CMERWATCH_{name}", raising=False)


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    server = LoopbackServer()
    yield server
    server.stop()


@pytest.fixture
def make_client(server: LoopbackServer) -> Iterator[MakeClient]:
    clients: list[cmerwatch.Client] = []

    def make(**options: object) -> cmerwatch.Client:
        options = {"api_key": "cmw_test", "server_url": server.url, "flush_interval": 0.01, "debug": True, **options}
        clients.append(cmerwatch.Client(**options))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.shutdown(0.0)
        if client._thread is not None:
            client._thread.join(10)


@pytest.fixture
def client(make_client: MakeClient) -> cmerwatch.Client:
    return make_client()


@pytest.fixture
def models() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    """The process's own client, recording into memory; called, it answers the events so far."""
    memory = MemoryTransport()
    cmerwatch.init(transport=memory, flush_interval=0.001)

    def events() -> list[dict[str, Any]]:
        assert cmerwatch.flush(10)
        return memory.events

    yield events
    cmerwatch.shutdown(10)
    api._client = None
    openai_hook._without_logprobs.clear()
