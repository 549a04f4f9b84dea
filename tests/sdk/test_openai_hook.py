"""What is recorded of the calls that the real `openai` client makes."""

import asyncio
import gc
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

import cmerwatch
from cmerwatch.sdk import api
from cmerwatch.sdk.testing import MemoryTransport
from tests.sdk import openai_apps as apps
from tests.sdk.model_server import Behaviour, ModelServer, Say
from tests.sdk.openai_apps import (
    JPEG,
    PNG,
    asking,
    async_client,
    client_for,
    picture,
    raised_by,
    request,
    sync_client,
    text,
    user,
)

Recorded = Callable[[], list[dict[str, Any]]]
WAYS = [*apps.SYNC, *apps.ASYNC]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_call_is_recorded_once_and_answers_as_without_the_hook(
    way: Any, models: ModelServer, recorded: Recorded
) -> None:
    plain, watched = client_for(way, models), client_for(way, models)
    cmerwatch.wrap(watched, endpoint="/describe")
    expected = apps.run(way, plain, request(logprobs=True))
    assert apps.run(way, watched, request(logprobs=True)) == expected
    assert models.requests[0] == models.requests[1], "the request is not altered"
    [event] = recorded()
    assert event["output"] == "A red circle."
    assert event["prompt"] == "What is this?"
    assert [image["data"] for image in event["images"]] == [JPEG]
    assert event["tokens"] == ["A", " red", " circle", "."]
    assert event["logprobs"] == [-0.25, -0.5, -0.125, -0.0625]
    assert event["confidence_status"] == "present"
    assert event["endpoint"] == "/describe"
    assert event["model"] == "toy-vlm-2026-11-01", "the model that answered, not the alias that was asked for"
    assert event["response_id"] == "chatcmpl-1"
    assert event["metadata"]["finish_reason"] == "stop"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_that_was_prepared_before_wrapping_is_recorded_too(
    way: Any, models: ModelServer, recorded: Recorded
) -> None:
    client = client_for(way, models)
    client.with_raw_response.chat.completions.create  # noqa: B018  (fills the client's caches)
    client.chat.completions.with_raw_response.create  # noqa: B018
    client.chat.completions.with_streaming_response.create  # noqa: B018
    client.beta.chat.completions.create  # noqa: B018
    apps.run(way, cmerwatch.wrap(client, endpoint="/describe"), request())
    assert len(recorded()) == 1


def test_the_same_object_comes_back_with_its_type(models: ModelServer) -> None:
    client = sync_client(models)
    assert cmerwatch.wrap(client) is client
    assert type(client) is openai.OpenAI


def test_wrapping_twice_records_once_with_the_later_settings(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(cmerwatch.wrap(sync_client(models), endpoint="/old"), endpoint="/new")
    apps.create(client, request())
    assert [event["endpoint"] for event in recorded()] == ["/new"]


def test_another_client_is_left_alone(models: ModelServer, recorded: Recorded) -> None:
    cmerwatch.wrap(sync_client(models), endpoint="/describe")
    apps.create(sync_client(models), request())
    assert recorded() == []


def test_azure_clients_are_recorded(models: ModelServer, recorded: Recorded) -> None:
    root = models.url.removesuffix("/v1")
    azure = openai.AzureOpenAI(api_key="k", azure_endpoint=root, api_version="2026-01-01", max_retries=0)
    client = cmerwatch.wrap(models.closing(azure))
    client.chat.completions.create(model="my-deployment", messages=asking())
    assert "/deployments/my-deployment/" in models.paths[0]
    [event] = recorded()
    assert event["model"] == "toy-vlm-2026-11-01"


def test_without_an_endpoint_events_are_filed_under_the_calls_name(models: ModelServer, recorded: Recorded) -> None:
    apps.create(cmerwatch.wrap(sync_client(models)), request())
    assert recorded()[0]["endpoint"] == "chat.completions"


def test_dimensions_come_from_wrap_and_a_context_beats_them(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models), endpoint="/describe", prompt_type="describe", customer="nobody")
    with cmerwatch.context(customer="acme", request_id="req-7"):
        apps.create(client, request())
    [event] = recorded()
    assert event.items() >= {"endpoint": "/describe", "prompt_type": "describe", "customer": "acme"}.items()
    assert event["request_id"] == "req-7"


def test_each_task_keeps_its_own_context(models: ModelServer, recorded: Recorded) -> None:
    async def ask(client: openai.AsyncOpenAI, customer: str) -> None:
        with cmerwatch.context(customer=customer):
            chunks = await client.chat.completions.create(**request(), stream=True)
        with cmerwatch.context(customer="somebody else"):
            async for _ in chunks:
                pass

    async def main() -> None:
        async with cmerwatch.wrap(async_client(models)) as client:
            await asyncio.gather(*(ask(client, f"customer {n}") for n in range(5)))

    asyncio.run(main())
    assert sorted(event["customer"] for event in recorded()) == [f"customer {n}" for n in range(5)]


def test_what_is_worth_knowing_of_the_call_is_in_the_metadata(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    apps.create(client, request(temperature=0.5, seed=7))
    apps.stream(client, request(stream_options={"include_usage": True}))
    whole, streamed = (event["metadata"] for event in recorded())
    assert whole.pop("latency_ms") >= 0
    assert whole == {
        "choice": 0,
        "finish_reason": "stop",
        "system_fingerprint": "fp-1",
        "prompt_tokens": 100,
        "completion_tokens": 4,
        "temperature": 0.5,
        "seed": 7,
    }
    assert 0 <= streamed["first_chunk_ms"] <= streamed["latency_ms"]
    assert streamed["stream_complete"] is True
    assert streamed["completion_tokens"] == 4


@pytest.mark.parametrize("way", [apps.create, apps.stream, apps.acreate, apps.astream])
def test_each_choice_is_an_event_with_its_own_tokens(way: Any, models: ModelServer, recorded: Recorded) -> None:
    other = Say(("Two", " blue", " squares"), (-1.0, -2.0, -3.0), finish_reason="length")
    models.behaviour = Behaviour(says=[Say(), other])
    apps.run(way, cmerwatch.wrap(client_for(way, models)), request(n=2, logprobs=True))
    first, second = recorded()
    assert (first["output"], second["output"]) == ("A red circle.", "Two blue squares")
    assert first["logprobs"] == [-0.25, -0.5, -0.125, -0.0625]
    assert second["logprobs"] == [-1.0, -2.0, -3.0]
    assert [event["metadata"]["choice"] for event in (first, second)] == [0, 1]
    assert second["metadata"]["finish_reason"] == "length"
    assert first["event_id"] != second["event_id"]
    assert first["response_id"] == second["response_id"] == "chatcmpl-1"


@pytest.mark.parametrize("way", [apps.create, apps.stream, apps.acreate, apps.astream])
def test_a_refusal_is_recorded_as_the_output(way: Any, models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(says=[Say(("I can", "not."), (-0.5, -0.25), refusal="I cannot.")])
    apps.run(way, cmerwatch.wrap(client_for(way, models)), request(logprobs=True))
    [event] = recorded()
    assert event["output"] == "I cannot."
    assert event["metadata"]["refused"] is True
    assert event["logprobs"] == [-0.5, -0.25]


@pytest.mark.parametrize("way", [apps.create, apps.stream, apps.acreate, apps.astream])
def test_an_answer_that_only_calls_a_tool_is_counted_and_not_recorded(
    way: Any, models: ModelServer, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    models.behaviour = Behaviour(says=[Say(tool_call=True, finish_reason="tool_calls")])
    apps.run(way, cmerwatch.wrap(client_for(way, models)), request())
    assert recorded() == []
    assert cmerwatch.stats().dropped == {"no_output": 1}
    assert caplog.messages == [], "tools are nothing to warn about"


def test_a_call_without_a_picture_is_not_recorded(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    apps.create(client, request(messages=[{"role": "user", "content": "Hello"}]))
    apps.stream(client, request(messages=[user(text("Hello"))]))
    assert recorded() == []
    assert cmerwatch.stats().dropped == {}


def test_an_address_is_recorded_as_an_address_and_not_fetched(models: ModelServer, recorded: Recorded) -> None:
    address = models.url + "/picture.jpg"
    apps.create(cmerwatch.wrap(sync_client(models)), request(messages=[user(text("?"), picture(address))]))
    assert recorded()[0]["images"] == [{"url": address}]
    assert models.paths == ["/v1/chat/completions"]


def test_a_file_named_in_a_message_is_never_read(models: ModelServer, recorded: Recorded, tmp_path: Any) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    client = cmerwatch.wrap(sync_client(models))
    for url in (str(secret), f"file://{secret}"):
        apps.create(client, request(messages=[user(picture(url))]))
    assert recorded() == []
    assert cmerwatch.stats().dropped == {"invalid": 2}


def test_several_pictures_of_one_turn_stay_together_in_order(models: ModelServer, recorded: Recorded) -> None:
    messages = [user(picture()), user(text("What differs?"), picture(apps.data_uri(PNG)))]
    apps.create(cmerwatch.wrap(sync_client(models)), request(messages=messages))
    [event] = recorded()
    assert [image["data"] for image in event["images"]] == [JPEG, PNG]


def test_the_messages_may_change_after_the_call(models: ModelServer, recorded: Recorded) -> None:
    messages: Any = asking()
    chunks = cmerwatch.wrap(sync_client(models)).chat.completions.create(model="m", messages=messages, stream=True)
    messages[0]["content"][0]["text"] = "Something else?"
    messages.append({"role": "user", "content": "And now?"})
    list(chunks)
    assert recorded()[0]["prompt"] == "What is this?"


def test_the_messages_may_change_while_the_answer_is_awaited(models: ModelServer, recorded: Recorded) -> None:
    """The hook reads what the library made of them, which is a copy."""
    messages: Any = asking()
    client = sync_client(models)
    native: Any = client.post

    def post(*given: Any, **options: Any) -> Any:
        messages[0]["content"].clear()
        return native(*given, **options)

    client.post = post  # type: ignore[method-assign]
    cmerwatch.wrap(client).chat.completions.create(model="m", messages=messages)
    [event] = recorded()
    assert event["prompt"] == "What is this?"
    assert event["images"][0]["data"] == JPEG


def test_messages_may_be_the_librarys_own_objects_and_any_iterable(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    first = client.chat.completions.create(model="m", messages=asking())
    follow_up = [*asking(), first.choices[0].message, {"role": "user", "content": "What colour is it?"}]
    client.chat.completions.create(model="m", messages=(message for message in follow_up))
    assert [event["prompt"] for event in recorded()] == ["What is this?", "What colour is it?"]
    assert all(event["images"][0]["data"] == JPEG for event in recorded())


@pytest.mark.parametrize("asked", [False, True])
def test_an_error_of_the_server_is_raised_as_it_was(asked: bool, models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(status=500)
    native = raised_by(sync_client(models))
    watched = raised_by(cmerwatch.wrap(sync_client(models), request_logprobs=asked))
    assert [(type(error), str(error)) for error in watched] == [(type(error), str(error)) for error in native]
    assert len(models.requests) == 2, "and nothing is tried again"
    assert recorded() == []


def test_an_explicit_capture_beats_the_hook_inside_of_it(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models), endpoint="/describe")
    with cmerwatch.capture(image=PNG, prompt="mine", endpoint="/mine") as ev:
        ev.output = client.chat.completions.create(**request()).choices[0].message.content
    apps.create(client, request())
    assert [event["endpoint"] for event in recorded()] == ["/mine", "/describe"]


def test_a_raw_response_that_is_never_parsed_works_and_is_counted(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    response = client.chat.completions.with_raw_response.create(**request())
    assert json.loads(response.text)["id"] == "chatcmpl-1"
    with client.chat.completions.with_streaming_response.create(**request()) as streamed:
        assert b"A red circle." in b"".join(streamed.iter_bytes())
    assert client.chat.completions.with_raw_response.create(**request()).parse().id == "chatcmpl-1"
    del response, streamed
    gc.collect()
    assert len(recorded()) == 1, "the parsed one"
    assert cmerwatch.stats().dropped == {"unparsed": 2}


def test_an_answer_without_choices_passes_as_it_is(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    for body in ({"error": {"message": "busy"}}, {"choices": None}, {"choices": []}, {"choices": [{}]}):
        models.behaviour = Behaviour(broken_body=body)
        assert client.chat.completions.create(**request()).to_dict() == body
    assert recorded() == []


def test_an_object_that_no_hook_knows_comes_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from unittest import mock

    for thing in (object(), mock.MagicMock(), None):
        caplog.clear()
        assert cmerwatch.wrap(thing) is thing
        assert len(caplog.messages) == 1
        assert type(thing).__qualname__ in caplog.messages[0]


def test_an_unknown_dimension_is_named_and_ignored(
    models: ModelServer, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    client = cmerwatch.wrap(sync_client(models), endpoint="/describe", colour="red")  # type: ignore[call-arg]
    assert "wrap() has no dimension named colour" in caplog.text
    apps.create(client, request())
    assert recorded()[0]["endpoint"] == "/describe"


def test_init_may_come_after_wrap(models: ModelServer, recorded: Recorded) -> None:
    client = cmerwatch.wrap(sync_client(models))
    later = MemoryTransport()
    cmerwatch.init(transport=later, flush_interval=0.001)
    apps.create(client, request())
    assert cmerwatch.flush(10)
    assert len(later.events) == 1
    assert recorded() == []


def test_without_a_key_the_client_works_and_nothing_is_kept(
    models: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api, "_client", None)
    client = cmerwatch.wrap(sync_client(models))
    with caplog.at_level(logging.WARNING, "cmerwatch"):
        for _ in range(2):
            assert apps.create(client, request())["id"] == "chatcmpl-1"
    assert len(caplog.messages) == 1
    apps.create(cmerwatch.wrap(sync_client(models), request_logprobs=True), request())
    assert all("logprobs" not in asked for asked in models.requests), "what is not recorded is not altered"
    assert cmerwatch.stats().queued_events == 0


def test_sampling_takes_all_choices_of_a_request_or_none(models: ModelServer, recorded: Recorded) -> None:
    models.behaviour = Behaviour(says=[Say(), Say(("No", "."), (-1.0, -1.0))])
    memory = MemoryTransport()
    cmerwatch.init(transport=memory, flush_interval=0.001, sample_rate=0.5)
    client = cmerwatch.wrap(sync_client(models))
    for n in range(12):
        with cmerwatch.context(request_id=f"request {n}"):
            apps.create(client, request(n=2))
    assert cmerwatch.flush(10)
    kept = [event["request_id"] for event in memory.events]
    assert 0 < len(kept) < 24
    assert all(kept.count(name) == 2 for name in kept)


class Stuck(MemoryTransport):
    """Takes the first batch and keeps the sending thread until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def send(self, events: Any, images: Any) -> Any:
        self.reached.set()
        assert self.go_on.wait(60)
        return super().send(events, images)


@pytest.fixture
def stuck(recorded: Recorded) -> Iterator[Stuck]:
    transport = Stuck()
    cmerwatch.init(transport=transport, flush_interval=0.001)
    cmerwatch.record(image=PNG, prompt="p", output="o", endpoint="/first")
    assert transport.reached.wait(10)
    yield transport
    transport.go_on.set()
    assert cmerwatch.flush(10)


def test_a_waiting_event_counts_what_it_keeps_in_memory(models: ModelServer, stuck: Stuck) -> None:
    models.behaviour = Behaviour(says=[Say(("x" * 1000, *["token "] * 500), (-0.5,) * 501)])
    before = cmerwatch.stats().queued_bytes
    apps.create(cmerwatch.wrap(sync_client(models)), request(logprobs=True))
    kept = cmerwatch.stats().queued_bytes - before
    assert kept >= len(apps.data_uri()) + 4000 + 500 * 50
    assert kept <= 2 * (len(apps.data_uri()) + 4000 + 500 * 50)


def test_a_waiting_event_keeps_no_picture_of_earlier_turns(models: ModelServer, stuck: Stuck) -> None:
    earlier = apps.data_uri(b"earlier" * 1000)
    answer = {"role": "assistant", "content": "A square."}
    client = cmerwatch.wrap(sync_client(models))
    apps.create(client, request(messages=[user(picture(earlier)), answer, *asking()]))
    assert cmerwatch.stats().queued_events == 2
    gc.collect()
    assert sys.getrefcount(earlier) == 2, "the variable's and the call's own"


def test_a_task_that_outlives_the_capture_it_began_in_is_recorded_again(
    models: ModelServer, recorded: Recorded
) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def later(client: openai.AsyncOpenAI) -> None:
            await ended.wait()
            await client.chat.completions.create(**request())

        async with cmerwatch.wrap(async_client(models), endpoint="/later") as client:
            with cmerwatch.capture(image=PNG, endpoint="/captured") as ev:
                ev.output = "mine"
                task = asyncio.create_task(later(client))
                await asyncio.sleep(0)
            ended.set()
            await task

    asyncio.run(main())
    assert [event["endpoint"] for event in recorded()] == ["/captured", "/later"]
