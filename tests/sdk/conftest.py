"""A loopback server and clients that end with their test."""

from collections.abc import Callable, Iterator

import pytest

import cmerwatch
from tests.sdk.loopback import LoopbackServer

MakeClient = Callable[..., cmerwatch.Client]


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
