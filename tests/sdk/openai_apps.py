"""What apps send: pictures, messages and the ways to make a call with the real client."""

import base64
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest

from tests.sdk.model_server import ModelServer

JPEG = b"\xff\xd8\xff\xe0" + b"picture" * 4000
PNG = b"\x89PNG\r\n\x1a\n" + b"other" * 40
Messages = list[Any]


def data_uri(data: bytes = JPEG) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def picture(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_uri()}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def asking(words: str = "What is this?") -> Messages:
    return [user(text(words), picture())]


def sync_client(server: ModelServer, **options: Any) -> openai.OpenAI:
    return server.closing(openai.OpenAI(api_key="sk-test", base_url=server.url, max_retries=0, **options))


def async_client(server: ModelServer, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="sk-test", base_url=server.url, max_retries=0, **options)


class Seen(pydantic.BaseModel):
    """What `parse` makes of the answer."""

    shape: str


def dumped(value: Any) -> Any:
    """The app's result as JSON, so that two can be compared."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


Sync = Callable[[openai.OpenAI, dict[str, Any]], Any]


def create(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.chat.completions.create(**request))


def stream(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return [dumped(chunk) for chunk in client.chat.completions.create(**request, stream=True)]


def stream_in_with(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    with client.chat.completions.create(**request, stream=True) as chunks:
        return [dumped(chunk) for chunk in chunks]


def next_by_next(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    chunks = client.chat.completions.create(**request, stream=True)
    found = []
    while (chunk := next(chunks, None)) is not None:
        found.append(dumped(chunk))
    return found


def helper(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    with client.chat.completions.stream(**request) as events:
        return [event.type for event in events], dumped(events.get_final_completion())


def parse(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.chat.completions.parse(**request))


def beta(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.beta.chat.completions.parse(**request))


def raw(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    response = client.chat.completions.with_raw_response.create(**request)
    assert response.parse() is response.parse()
    return response.text, dumped(response.parse())


def raw_parse(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.chat.completions.with_raw_response.parse(**request).parse())


def raw_stream(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    response = client.chat.completions.with_raw_response.create(**request, stream=True)
    return [dumped(chunk) for chunk in response.parse()]


def streaming_response(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    with client.chat.completions.with_streaming_response.create(**request) as response:
        return dumped(response.parse())


def raw_of_the_client(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.with_raw_response.chat.completions.create(**request).parse())


def with_options(client: openai.OpenAI, request: dict[str, Any]) -> Any:
    return dumped(client.with_options(timeout=20).with_options(timeout=10).chat.completions.create(**request))


SYNC: list[Sync] = [
    create, stream, stream_in_with, next_by_next, helper, parse, beta, raw, raw_parse, raw_stream,
    streaming_response, raw_of_the_client, with_options,
]  # fmt: skip


async def acreate(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    return dumped(await client.chat.completions.create(**request))


async def astream(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    return [dumped(chunk) async for chunk in await client.chat.completions.create(**request, stream=True)]


async def astream_in_with(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    async with await client.chat.completions.create(**request, stream=True) as chunks:
        return [dumped(chunk) async for chunk in chunks]


async def ahelper(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    async with client.chat.completions.stream(**request) as events:
        return [event.type async for event in events], dumped(await events.get_final_completion())


async def aparse(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    return dumped(await client.chat.completions.parse(**request))


async def araw(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    response = await client.chat.completions.with_raw_response.create(**request)
    return response.text, dumped(response.parse())


async def araw_stream(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    response = await client.chat.completions.with_raw_response.create(**request, stream=True)
    return [dumped(chunk) async for chunk in response.parse()]


async def astreaming_response(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    async with client.chat.completions.with_streaming_response.create(**request) as response:
        return dumped(await response.parse())


async def awith_options(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    return dumped(await client.with_options(timeout=10).chat.completions.create(**request))


ASYNC = [
    acreate, astream, astream_in_with, ahelper, aparse, araw, araw_stream, astreaming_response, awith_options,
]  # fmt: skip


def run(way: Any, client: Any, request: dict[str, Any]) -> Any:
    """One call in its way, sync or async; the client is closed behind an async one, whose loop ends."""
    if way in SYNC:
        return way(client, request)

    async def inside() -> Any:
        async with client:
            return await way(client, request)

    import asyncio

    return asyncio.run(inside())


def client_for(way: Any, models: ModelServer) -> Any:
    return sync_client(models) if way in SYNC else async_client(models)


def request(**options: Any) -> dict[str, Any]:
    return {"model": "toy-vlm", "messages": asking(), **options}


def raised_by(client: Any) -> list[BaseException]:
    """The error of a call and those it came from."""
    with pytest.raises(openai.OpenAIError) as raised:
        create(client, request())
    chain: list[BaseException] = []
    error: BaseException | None = raised.value
    while error is not None:
        chain.append(error)
        error = error.__context__
    return chain
