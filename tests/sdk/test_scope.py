"""Dimensions said once for many events, and one event made in a block."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import cmerwatch
from cmerwatch.sdk.testing import MemoryTransport


@pytest.fixture
def memory() -> Iterator[MemoryTransport]:
    transport = MemoryTransport()
    cmerwatch.init(transport=transport, flush_interval=0.001)
    yield transport
    assert cmerwatch.shutdown(10)


def event(**fields: Any) -> Any:
    return {"image": b"picture", "prompt": "p", "output": "A circle.", **fields}


def sent(memory: MemoryTransport) -> list[dict[str, Any]]:
    assert cmerwatch.flush(10)
    return memory.events


def test_the_inner_context_wins_and_ends_with_its_block(memory: MemoryTransport) -> None:
    with cmerwatch.context(endpoint="/describe", customer="acme"):
        with cmerwatch.context(customer="other", prompt_type="count"):
            cmerwatch.record(**event())
        cmerwatch.record(**event())
        cmerwatch.record(**event(customer="own"))
    inner, outer, own = sent(memory)
    assert (inner["customer"], inner["prompt_type"], inner["endpoint"]) == ("other", "count", "/describe")
    assert (outer["customer"], "prompt_type" in outer) == ("acme", False)
    assert own["customer"] == "own"


def test_tasks_that_run_at_once_keep_their_own_context(memory: MemoryTransport) -> None:
    async def handle(customer: str) -> None:
        async with cmerwatch.context(endpoint="/describe", customer=customer):
            await asyncio.sleep(0)
            cmerwatch.record(**event(output=customer))

    async def serve() -> None:
        await asyncio.gather(*(handle(f"customer {n}") for n in range(20)))

    asyncio.run(serve())
    assert all(one["customer"] == one["output"] for one in sent(memory))
    assert len(memory.events) == 20


def test_an_async_generator_closed_from_another_task_does_no_harm(memory: MemoryTransport) -> None:
    async def stream() -> Any:
        with cmerwatch.context(endpoint="/stream"):
            yield 1
            yield 2

    async def serve() -> None:
        generator = stream()
        await asyncio.create_task(generator.__anext__())
        await asyncio.create_task(generator.aclose())

    asyncio.run(serve())


def test_an_unknown_dimension_is_named_and_ignored(memory: MemoryTransport, caplog: pytest.LogCaptureFixture) -> None:
    dimensions: Any = {"endpoint": "/describe", "costumer": "acme"}
    with cmerwatch.context(**dimensions):
        cmerwatch.record(**event())
    assert "costumer" in caplog.text
    assert "costumer" not in sent(memory)[0]


def test_capture_records_what_the_block_set(memory: MemoryTransport) -> None:
    with cmerwatch.capture(image=b"picture", prompt="p", endpoint="/describe", customer="acme") as ev:
        ev.output = "A circle."
        ev.logprobs = [-0.1, -0.2]
        ev.tokens = ["A", " circle."]
        ev.model, ev.model_version = "toy", "2"
    (one,) = sent(memory)
    assert one["event_id"] == ev.event_id
    assert (one["output"], one["logprobs"], one["tokens"]) == ("A circle.", [-0.1, -0.2], ["A", " circle."])
    assert (one["model"], one["model_version"], one["customer"]) == ("toy", "2", "acme")


def test_capture_works_in_async_code(memory: MemoryTransport) -> None:
    async def answer() -> None:
        async with cmerwatch.capture(image=b"picture", endpoint="/describe") as ev:
            await asyncio.sleep(0)
            ev.output = "A circle."

    asyncio.run(answer())
    assert sent(memory)[0]["output"] == "A circle."


def test_an_exception_in_the_block_passes_through_and_nothing_is_sent(memory: MemoryTransport) -> None:
    def answer() -> None:
        with cmerwatch.capture(image=b"picture", endpoint="/describe") as ev:
            ev.output = "half an answ"
            raise KeyError("the app's own")

    with pytest.raises(KeyError, match="the app's own"):
        answer()
    assert sent(memory) == []
    assert cmerwatch.stats().dropped == {"exception": 1}


def test_a_block_that_sets_no_output_is_counted(memory: MemoryTransport) -> None:
    with cmerwatch.capture(image=b"picture", endpoint="/describe"):
        pass
    assert sent(memory) == []
    assert cmerwatch.stats().dropped == {"invalid": 1}


def test_the_memory_transport_holds_pictures_as_bytes(memory: MemoryTransport) -> None:
    for _ in range(2):
        cmerwatch.record(**event(endpoint="/describe"))
        assert cmerwatch.flush(10)
    assert [one["images"][0]["data"] for one in memory.events] == [b"picture", b"picture"]
    memory.clear()
    assert memory.events == []
