"""What is said once for many events: `context` for a block of code, `capture` for one event."""

import contextlib
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from cmerwatch.sdk import events
from cmerwatch.sdk.counts import log
from cmerwatch.sdk.events import Fields

if TYPE_CHECKING:
    from cmerwatch.sdk.client import Client


class Dimensions(TypedDict, total=False):
    endpoint: str | None
    prompt_type: str | None
    customer: str | None
    model: str | None
    model_version: str | None
    environment: str | None
    request_id: str | None
    trace_id: str | None


NAMES = frozenset(Dimensions.__annotations__)
SETTABLE = (
    "output",
    "logprobs",
    "tokens",
    "confidence",
    "confidence_status",
    "model",
    "model_version",
    "prompt_type",
    "response_id",
    "metadata",
)
NOTHING: dict[str, Any] = {}
_current: ContextVar[dict[str, Any]] = ContextVar("cmerwatch_context", default=NOTHING)


def current() -> dict[str, Any]:
    return _current.get()


# Set while an answer is being recorded from outside, and hooks are to record nothing. A list, emptied when the
# recording ends: a task started meanwhile keeps its copy of the context for as long as it runs.
Recording = list[bool]
recording: ContextVar[Recording | None] = ContextVar("cmerwatch_recording", default=None)


def begin_recording() -> tuple[Recording, Token[Recording | None]]:
    mark = [True]
    return mark, recording.set(mark)


def end_recording(begun: tuple[Recording, Token[Recording | None]]) -> None:
    begun[0].clear()
    with contextlib.suppress(ValueError):  # as in Context
        recording.reset(begun[1])


def known(dimensions: Mapping[str, Any], caller: str) -> dict[str, Any]:
    """Those that are dimensions and are given; one warning names the others."""
    unknown = dimensions.keys() - NAMES
    if unknown:
        log.warning("cmerwatch: %s() has no dimension named %s; it is ignored", caller, ", ".join(sorted(unknown)))
    return {name: value for name, value in dimensions.items() if value is not None and name in NAMES}


class Context:
    """Dimensions for every event recorded inside a `with` or `async with` block; the inner block wins."""

    def __init__(self, **dimensions: Unpack[Dimensions]) -> None:
        self._own = known(dimensions, "context")
        self._tokens: list[Token[dict[str, Any]]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_current.set({**_current.get(), **self._own}))
        return self

    def __exit__(self, *error: object) -> None:
        # An async generator may be closed from another task, where there is nothing to take back.
        with contextlib.suppress(ValueError, IndexError):
            _current.reset(self._tokens.pop())

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()


class Capture:
    """One event in the making. An exception in the block passes through; the event is then not sent."""

    output: str | None
    logprobs: Any
    tokens: Any
    confidence: float | None
    confidence_status: str | None
    model: str | None
    model_version: str | None
    prompt_type: str | None
    response_id: str | None
    metadata: dict[str, Any] | None

    def __init__(self, client: "Client", given: Fields) -> None:
        self._client = client
        self._recording: list[tuple[Recording, Token[Recording | None]]] = []
        for name in SETTABLE:
            setattr(self, name, None)
        self._given = given
        self.event_id = str(given.get("event_id") or events.new_id())

    def __enter__(self) -> Self:
        self._recording.append(begin_recording())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_recording(self._recording.pop())
        if kind is not None:
            self._client.drop("exception")
            return
        fields: dict[str, Any] = {**self._given, "event_id": self.event_id}
        for name in SETTABLE:
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        self._client.record(**fields)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
