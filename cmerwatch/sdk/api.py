"""The module-level calls: one client for the process, made by `init` or, from the environment, by first use."""

import os
import threading
from typing import TypeVar, Unpack

from cmerwatch.sdk import hooks
from cmerwatch.sdk.client import Client
from cmerwatch.sdk.config import Options
from cmerwatch.sdk.counts import Stats
from cmerwatch.sdk.events import Fields
from cmerwatch.sdk.scope import Capture, Context, Dimensions

T = TypeVar("T")

context = Context

_client: Client | None = None
_lock = threading.RLock()


def init(api_key: str | None = None, server_url: str | None = None, **options: Unpack[Options]) -> Client:
    """Argument before environment (`CMERWATCH_API_KEY`, `CMERWATCH_SERVER_URL`) before default. Without a key one
    warning is logged and nothing is recorded. A second call replaces the client; what the first holds is sent."""
    global _client
    with _lock:
        if _client is not None:
            _client.retire()
        _client = Client(api_key, server_url, **options)
        return _client


def record(**given: Unpack[Fields]) -> str:
    """Queues one event and answers its id at once; see `Client.record`."""
    return _current().record(**given)


def capture(**given: Unpack[Fields]) -> Capture:
    """A `with` block that records one event when it ends well; see `Client.capture`."""
    return _current().capture(**given)


def wrap(client: T, *, request_logprobs: bool = False, **dimensions: Unpack[Dimensions]) -> T:
    """Records each answer about pictures that `client` (OpenAI, AsyncOpenAI, or one of their subclasses) gives, and
    returns the same object. A `context` around a call beats the `dimensions` given here.

    request_logprobs: asks for `logprobs` where the app does not; a server that refuses them is asked again without,
    once for each address and model. Without it no request is altered.
    """
    hooks.wrap(client, _current, dimensions, request_logprobs)
    return client


def flush(timeout: float = 5.0) -> bool:
    """True when everything recorded before the call is settled; waits up to `timeout` seconds."""
    return True if _client is None else _client.flush(timeout)


def shutdown(timeout: float = 2.0) -> bool:
    """Sends what it can within `timeout` seconds and takes no more events. Exit does this by itself."""
    return True if _client is None else _client.shutdown(timeout)


def stats() -> Stats:
    """What became of the events of this process."""
    return _current().stats()


def _current() -> Client:
    if _client is not None:
        return _client
    with _lock:
        return _client if _client is not None else init()


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
