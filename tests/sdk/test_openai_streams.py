"""How streams end, and what is recorded of those that end early."""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

import cmerwatch
from cmerwatch.sdk import api
from cmerwatch.sdk.hooks import calls, streams
from cmerwatch.sdk.hooks import openai as openai_hook
from tests.sdk import openai_apps as apps
from tests.sdk.model_server import Behaviour, ModelServer, Say
from tests.sdk.openai_apps import asking, async_client, request, sync_client
from tests.sdk.test_processes import run

Recorded = Callable[[], list[dict[str, Any]]]


def begin(client: openai.OpenAI) -> openai.Stream[Any]:
    return client.chat.completions.create(model="m", messages=asking(), stream=True, logprobs=True)


async def abegin(client: openai.AsyncOpenAI) -> openai.AsyncStream[Any]:
    return await client.chat.completions.create(model="m", messages=asking(), stream=True, logprobs=True)


@pytest.fixture
def client(models: ModelServer) -> openai.OpenAI:
    return cmerwatch.wrap(sync_client(models), endpoint="/describe")


def partial(event: dict[str, Any]) -> None:
    """The event of a stream of which the first two chunks were read: the role, and two tokens."""
    assert event["output"] == "A red"
    assert event["tokens"] == ["A", " red"]
    assert event["logprobs"] == [-0.25, -0.5]
    assert event["metadata"]["stream_complete"] is False
    assert "finish_reason" not in event["metadata"]


def test_streams_keep_their_native_types(client: openai.OpenAI, models: ModelServer, recorded: Recorded) -> None:
    with begin(client) as stream:
        assert type(stream) is openai.Stream

    async def main() -> None:
        async with cmerwatch.wrap(async_client(models)) as client, await abegin(client) as stream:
            assert type(stream) is openai.AsyncStream

    asyncio.run(main())


def test_a_stream_read_to_its_end_is_recorded_at_once(client: openai.OpenAI, recorded: Recorded) -> None:
    stream = begin(client)
    for _ in stream:
        pass
    [event] = recorded()
    assert event["metadata"]["stream_complete"] is True
    stream.close()
    del stream
    gc.collect()
    assert len(recorded()) == 1, "and never again"


@pytest.mark.parametrize("close", [openai.Stream.close, lambda stream: stream.response.close()])
def test_a_stream_closed_half_way_is_recorded_as_incomplete(
    close: Any, client: openai.OpenAI, recorded: Recorded
) -> None:
    stream = begin(client)
    next(stream), next(stream)
    close(stream)
    partial(*recorded())
    assert stream.response.is_closed


def test_leaving_the_with_block_half_way_records_what_was_read(client: openai.OpenAI, recorded: Recorded) -> None:
    with begin(client) as stream:
        next(stream), next(stream)
    partial(*recorded())


def test_leaving_the_helpers_with_block_half_way_records_what_was_read(
    client: openai.OpenAI, recorded: Recorded
) -> None:
    with client.chat.completions.stream(model="m", messages=asking(), logprobs=True) as helper:
        for event in helper:
            if event.type == "content.delta" and event.delta:
                break
    assert helper.current_completion_snapshot.choices[0].message.content == "A red"
    partial(*recorded())


def test_a_stream_abandoned_half_way_is_recorded_when_it_is_collected(
    client: openai.OpenAI, recorded: Recorded
) -> None:
    stream = begin(client)
    next(stream), next(stream)
    response = stream.response
    del stream
    gc.collect()
    partial(*recorded())
    response.close()


def test_an_error_of_the_app_half_way_passes_and_records_what_was_read(
    client: openai.OpenAI, recorded: Recorded
) -> None:
    def read() -> None:
        with begin(client) as stream:
            next(stream), next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    partial(*recorded())


def test_a_stream_of_which_nothing_was_read_leaves_no_event(client: openai.OpenAI, recorded: Recorded) -> None:
    begin(client).close()
    assert recorded() == []


def test_a_connection_that_breaks_raises_the_librarys_error_and_records_what_came(
    client: openai.OpenAI, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(break_after=2)
    errors = []
    for one in (sync_client(models), client):
        with pytest.raises(Exception, match=r"incomplete|[Cc]onnection") as raised:
            list(begin(one))
        errors.append(raised.value)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    partial(*recorded())


def test_a_server_that_hangs_half_way_times_out_as_without_the_hook(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(hang_after=2)
    client = cmerwatch.wrap(sync_client(models, timeout=0.2))
    stream = begin(client)
    next(stream), next(stream)
    assert models.hanging.wait(10)
    with pytest.raises(Exception, match=r"[Tt]imed? ?out"):
        next(stream)
    partial(*recorded())


def test_a_stream_the_server_cut_without_a_reason_to_finish_is_incomplete(
    client: openai.OpenAI, models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(says=[Say(finish_reason=None)])
    list(begin(client))
    [event] = recorded()
    assert event["output"] == "A red circle."
    assert event["metadata"]["stream_complete"] is False


def test_an_app_that_stops_at_the_reason_to_finish_has_read_everything(
    client: openai.OpenAI, recorded: Recorded
) -> None:
    with begin(client) as stream:
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    assert recorded()[0]["metadata"]["stream_complete"] is True


def test_an_async_stream_closed_half_way_is_recorded_as_incomplete(models: ModelServer, recorded: Recorded) -> None:
    async def main() -> None:
        async with cmerwatch.wrap(async_client(models)) as client:
            stream = await abegin(client)
            await anext(stream), await anext(stream)
            await stream.close()
            assert stream.response.is_closed

    asyncio.run(main())
    partial(*recorded())


def test_leaving_the_async_helper_half_way_records_what_was_read(models: ModelServer, recorded: Recorded) -> None:
    async def main() -> None:
        async with (
            cmerwatch.wrap(async_client(models)) as client,
            client.chat.completions.stream(model="m", messages=asking(), logprobs=True) as helper,
        ):
            async for event in helper:
                if event.type == "content.delta" and event.delta:
                    break

    asyncio.run(main())
    partial(*recorded())


def test_an_async_stream_abandoned_half_way_is_recorded_when_it_is_collected(
    models: ModelServer, recorded: Recorded
) -> None:
    async def main() -> None:
        async with cmerwatch.wrap(async_client(models)) as client:
            stream = await abegin(client)
            await anext(stream), await anext(stream)
            response = stream.response
            del stream
            gc.collect()
            partial(*recorded())
            await response.aclose()

    asyncio.run(main())
    assert len(recorded()) == 1


def test_a_task_cancelled_in_the_middle_of_a_stream_is_cancelled_and_recorded(
    models: ModelServer, recorded: Recorded
) -> None:
    models.behaviour = Behaviour(hang_after=2)

    async def main() -> None:
        async with cmerwatch.wrap(async_client(models)) as client:
            stream = await abegin(client)

            read = asyncio.Event()

            async def read_on() -> None:
                await anext(stream), await anext(stream)
                read.set()
                await anext(stream)

            task = asyncio.create_task(read_on())
            await read.wait()
            assert await asyncio.to_thread(models.hanging.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    partial(*recorded())


def test_a_response_is_left_as_it_was_once_its_stream_has_ended(client: openai.OpenAI, recorded: Recorded) -> None:
    stream = begin(client)
    assert "close" in vars(stream.response)
    list(stream)
    assert "close" not in vars(stream.response)


def test_an_abandoned_stream_is_freed_as_early_as_without_the_hook(
    client: openai.OpenAI, models: ModelServer, recorded: Recorded
) -> None:
    import weakref

    def left_after_reading(one: openai.OpenAI) -> bool:
        stream = begin(one)
        list(stream)
        left = weakref.ref(stream)
        del stream
        return left() is not None

    gc.disable()
    try:
        assert left_after_reading(client) == left_after_reading(sync_client(models))
    finally:
        gc.enable()


def test_a_stream_read_to_its_end_keeps_no_more_of_a_picture_than_without_the_hook(
    client: openai.OpenAI, models: ModelServer, recorded: Recorded
) -> None:
    def references(one: openai.OpenAI) -> int:
        shown = apps.data_uri(b"shown" * 1000)
        stream = one.chat.completions.create(model="m", messages=[apps.user(apps.picture(shown))], stream=True)
        list(stream)
        recorded()
        gc.collect()
        return sys.getrefcount(shown)

    assert references(client) == references(sync_client(models))
    assert len(recorded()) == 1


class Response:
    closed = 0

    def close(self) -> None:
        self.closed += 1


class EagerStream:
    """Closes its response when all bytes are there, before the last chunk is handed out."""

    def __init__(self, chunks: list[Any]) -> None:
        self.response = Response()
        self._iterator = self._read(chunks)

    def _read(self, chunks: list[Any]) -> Iterator[Any]:
        yield from chunks[:-1]
        self.response.close()
        yield chunks[-1]


def test_a_response_closed_by_the_library_before_its_last_chunk_loses_nothing(
    models: ModelServer, recorded: Recorded
) -> None:
    stream = EagerStream(list(begin(sync_client(models))))
    settings = calls.Settings(api._current, {"endpoint": "/describe"}, False)
    call = openai_hook.Request(settings, {})
    assert call.ask(request())
    streams.watch(stream, call)
    assert len(list(stream._iterator)) > 2
    [event] = recorded()
    assert event["output"] == "A red circle."
    assert event["metadata"]["stream_complete"] is True
    assert stream.response.closed == 1


STREAMING = """
import tempfile
kept = tempfile.TemporaryDirectory()  # it asks to be finalised at the exit, before cmerwatch does
import cmerwatch, openai, os, sys
from cmerwatch.sdk.testing import MemoryTransport
from tests.sdk.openai_apps import asking
cmerwatch.init(flush_interval=0.001)
client = cmerwatch.wrap(openai.OpenAI(api_key="k", base_url=os.environ["MODEL_URL"]), endpoint="/describe")
stream = client.chat.completions.create(model="m", messages=asking(), stream=True, logprobs=True)
next(stream), next(stream)
"""


def test_a_stream_still_open_at_the_exit_is_recorded(
    models: ModelServer, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_URL", models.url)
    run("", server, prelude=STREAMING)
    partial(*server.events.values())


def test_a_forked_child_leaves_the_parents_stream_to_the_parent(
    models: ModelServer, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_URL", models.url)
    script = """
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    stream.close()
    """
    run(script, server, prelude=STREAMING)
    partial(*server.events.values())


@pytest.mark.parametrize("way", [apps.stream, apps.next_by_next, apps.helper])
def test_a_stream_through_a_copy_with_other_options_is_recorded(
    way: Any, client: openai.OpenAI, recorded: Recorded
) -> None:
    way(client.with_options(timeout=5), {"model": "m", "messages": asking()})
    assert len(recorded()) == 1
