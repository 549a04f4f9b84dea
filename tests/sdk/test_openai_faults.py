"""Whatever of the hook fails, the app gets what it would have got without it."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cmerwatch
from cmerwatch.sdk import api, client, events, pending, scope
from cmerwatch.sdk.hooks import calls, chat, streams
from cmerwatch.sdk.hooks import openai as openai_hook
from cmerwatch.sdk.testing import MemoryTransport
from tests.sdk import openai_apps as apps
from tests.sdk.model_server import Behaviour, ModelServer
from tests.sdk.openai_apps import asking, async_client, sync_client

Step = tuple[Any, str]
# What runs around the app's own call and holds the guards; everything it calls is a step that may fail.
SHELL = {"attempt", "failed", "_passed", "_finish_all"}
WAYS = [apps.create, apps.stream_in_with, apps.helper, apps.raw, apps.raw_stream, apps.with_options]
ASYNC_WAYS = [apps.acreate, apps.astream, apps.astreaming_response]
REQUEST: dict[str, Any] = {"model": "toy-vlm", "messages": asking()}


def _functions(owner: Any) -> Iterator[Step]:
    for name, value in vars(owner).items():
        generated = name.startswith("__") and name != "__init__"  # a dataclass's
        if isinstance(value, FunctionType) and not generated and name not in SHELL:
            yield owner, name


def _steps() -> list[Step]:
    found: list[Step] = [
        (client.Client, "take"), (client.Client, "drop"), (scope, "current"), (events, "glance"),
        (pending.Pending, "put"), (pending.Item, "__init__"),
    ]  # fmt: skip
    for module in (openai_hook, streams, calls, chat):
        found += [step for step in _functions(module) if getattr(*step).__module__ == module.__name__]
        for one in vars(module).values():
            if inspect.isclass(one) and one.__module__ == module.__name__:
                found += _functions(one)
    return found


STEPS = _steps()


def _name(step: Step) -> str:
    return f"{step[0].__name__.rpartition('.')[2]}.{step[1]}"


class Fault:
    """Makes one function raise at its n-th call, or, with -1, at each."""

    def __init__(self, patch: pytest.MonkeyPatch, step: Step, at: int = -1) -> None:
        self.reached = 0
        native = getattr(*step)

        def failing(*given: Any, **options: Any) -> Any:
            self.reached += 1
            if at in (-1, self.reached - 1):
                raise ZeroDivisionError("a bug of ours")
            return native(*given, **options)

        patch.setattr(*step, failing)


def results(models: ModelServer, prepare: Callable[[Any], Any]) -> list[Any]:
    """What an app gets from one client in every way."""
    with prepare(sync_client(models)) as one:
        found = [way(one, REQUEST) for way in WAYS]

    async def ask() -> list[Any]:
        async with prepare(async_client(models)) as other:
            return [await way(other, REQUEST) for way in ASYNC_WAYS]

    return found + asyncio.run(ask())


@pytest.fixture
def quiet() -> Iterator[MemoryTransport]:
    """As in production: errors of ours are counted, not raised."""
    memory = MemoryTransport()
    cmerwatch.init(transport=memory, flush_interval=0.001, debug=False)
    yield memory
    cmerwatch.shutdown(10)
    api._client = None
    openai_hook._without_logprobs.clear()
    scope.recording.set(None)  # one of the faults leaves it on


@pytest.mark.parametrize("step", STEPS, ids=_name)
def test_the_app_gets_the_same_results_whichever_step_fails(
    step: Step, models: ModelServer, quiet: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(models, lambda client: client)
    asked = len(models.requests)
    Fault(monkeypatch, step)
    assert results(models, lambda client: cmerwatch.wrap(client, endpoint="/describe")) == expected
    assert models.requests[asked:] == models.requests[:asked]
    cmerwatch.flush(10)
    assert all(event["output"] == "A red circle." for event in quiet.events)


@pytest.mark.parametrize("step", STEPS, ids=_name)
def test_a_refusal_of_logprobs_never_reaches_the_app_whichever_step_fails(
    step: Step, models: ModelServer, quiet: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.behaviour = Behaviour(logprobs="refused")
    with sync_client(models) as plain:
        expected = [way(plain, REQUEST) for way in (apps.create, apps.stream)]
    Fault(monkeypatch, step)
    for way, result in zip((apps.create, apps.stream), expected, strict=True):
        openai_hook._without_logprobs.clear()
        with cmerwatch.wrap(sync_client(models), request_logprobs=True) as client:
            assert way(client, REQUEST) == result


def test_most_steps_are_on_the_way_of_these_calls(
    models: ModelServer, quiet: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above would pass with steps nobody takes."""
    faults = {_name(step): Fault(monkeypatch, step, at=10**9) for step in STEPS}
    results(models, lambda client: cmerwatch.wrap(client, endpoint="/describe"))
    unused = {name for name, fault in faults.items() if not fault.reached}
    # Only for logprobs refused, out of range or absent, and for a chunk that could not be read.
    assert unused <= {"Client.drop", "Hook._ask_for_logprobs", "Request.gives_up_logprobs", "chat._repair",
                      "chat._thoughts", "chat.confidence", "openai._count_unparsed", "Reading.abort"}  # fmt: skip


@given(step=st.sampled_from(STEPS), at=st.integers(0, 12), way=st.sampled_from(WAYS))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_step_that_fails_once_leaves_no_event_with_a_hole(
    step: Step, at: int, way: Any, models: ModelServer, quiet: MemoryTransport
) -> None:
    quiet.clear()
    scope.recording.set(None)
    with sync_client(models) as plain, pytest.MonkeyPatch.context() as patch:
        expected = way(plain, {**REQUEST, "logprobs": True})
        Fault(patch, step, at)
        with cmerwatch.wrap(sync_client(models), endpoint="/describe") as client:
            assert way(client, {**REQUEST, "logprobs": True}) == expected
    assert cmerwatch.flush(10)
    for event in quiet.events:
        assert event["output"] == "A red circle."
        assert event["tokens"] == ["A", " red", " circle", "."]
        assert event["metadata"]["finish_reason"] == "stop"
