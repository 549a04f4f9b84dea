"""The queue: bounded, oldest dropped first, and every event accounted for."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch.sdk import media
from cmerwatch.sdk.counts import Counts
from cmerwatch.sdk.pending import Item, Pending
from tests.stack import wait_until


def queue(max_bytes: int = 1000, max_events: int = 10) -> tuple[Pending, Counts]:
    counts = Counts()
    return Pending(max_bytes, max_events, counts), counts


def put(pending: Pending, name: str, size: int = 10) -> Item:
    item = Item(size, lambda: {"name": name}, 0.0)
    assert pending.put(item) == ""
    return item


def names(pending: Pending) -> list[Any]:
    taken = []
    while (item := pending.take(timeout=0)) is not None:
        taken.append(item.late()["name"])
    return taken


def test_the_oldest_go_when_bytes_run_out() -> None:
    pending, counts = queue(max_bytes=30)
    for name in "abcde":
        put(pending, name)
    assert names(pending) == ["c", "d", "e"]
    assert counts.snapshot(0, 0).dropped == {"queue_full": 2}


def test_the_oldest_go_when_there_are_too_many() -> None:
    pending, counts = queue(max_events=2)
    for name in "abc":
        put(pending, name)
    assert names(pending) == ["b", "c"]
    assert counts.snapshot(0, 0).dropped == {"queue_full": 1}


def test_an_event_larger_than_the_queue_pushes_nobody_out() -> None:
    pending, _ = queue(max_bytes=30)
    put(pending, "a")
    assert pending.put(Item(31, dict, 0.0)) == "too_large"
    assert names(pending) == ["a"]


def test_a_busy_sending_thread_leaves_a_little_over_the_limit_and_no_more() -> None:
    pending, counts = queue(max_bytes=30)
    for name in "abcde" * 20:
        put(pending, name)
    assert 30 < pending._bytes <= 60, "the limit and as much again, for small queues"
    assert names(pending) == ["c", "d", "e"]
    assert counts.snapshot(0, 0).dropped == {"queue_full": 97}


def test_a_thread_that_collects_is_woken_only_by_a_queue_that_fills_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pending, _ = queue(max_bytes=1000)
    woken: list[str] = []
    monkeypatch.setattr(pending._news, "notify", lambda: woken.append("woken"))
    taken: list[Item | None] = []
    thread = threading.Thread(target=lambda: taken.append(pending.take(timeout=60)))
    thread.start()
    wait_until(lambda: pending._wake_above == 250)
    put(pending, "small")
    assert woken == []
    thread.join(10)
    assert [item.late() for item in taken if item] == [{"name": "small"}], "it looks by itself"
    pending._wake_above = 250  # as while it waits for more
    put(pending, "large", 300)
    put(pending, "another", 300)
    assert woken == ["woken"]


def test_an_idle_thread_is_woken_by_the_first_event() -> None:
    pending, _ = queue()
    taken: list[Item | None] = []
    thread = threading.Thread(target=lambda: taken.append(pending.take(timeout=None)))
    thread.start()
    wait_until(lambda: pending._wake_above == 0)
    put(pending, "first")
    thread.join(10)
    assert len(taken) == 1


def test_what_is_being_sent_still_counts_against_the_limit() -> None:
    pending, _ = queue(max_bytes=20)
    put(pending, "sending")
    assert pending.take(timeout=0) is not None
    put(pending, "a")
    put(pending, "b")
    assert names(pending) == ["b"]


def test_unsent_events_return_to_the_head_in_their_order() -> None:
    pending, _ = queue()
    for name in "abc":
        put(pending, name)
    batch = [item for _ in range(2) if (item := pending.take(timeout=0))]
    pending.put_back(batch)
    assert names(pending) == ["a", "b", "c"]


def test_an_event_that_grows_when_it_is_read_makes_room_for_itself() -> None:
    pending, counts = queue(max_bytes=100)
    for name in "abc":
        put(pending, name)
    first = pending.take(timeout=0)
    assert first is not None
    pending.resize(first, 85)
    assert pending.load == (2, 95)
    assert counts.snapshot(0, 0).dropped == {"queue_full": 1}


def test_flush_waits_for_events_that_are_being_sent() -> None:
    pending, _ = queue()
    item = put(pending, "a")
    pending.take(timeout=0)
    assert not pending.flush(0.0)
    waiter = threading.Thread(target=pending.settle, args=(item,))
    waiter.start()
    assert pending.flush(10)
    waiter.join()


def test_an_abandoned_queue_drops_what_comes_back_to_it() -> None:
    pending, counts = queue()
    for name in "ab":
        put(pending, name)
    sending = pending.take(timeout=0)
    assert sending is not None
    pending.abandon("shutdown")
    pending.put_back([sending])
    assert pending.load == (0, 0)
    assert counts.snapshot(0, 0).dropped == {"shutdown": 2}
    assert pending.put(Item(1, dict, 0.0)) == "shutdown"
    assert pending.take(timeout=None) is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 60)),
        st.tuples(st.sampled_from(["take", "put_back", "put_last", "settle"]), st.just(0)),
        st.tuples(st.just("resize"), st.integers(1, 60)),
    ),
    max_size=60,
)


@given(steps)
def test_every_event_is_waiting_or_being_sent_or_settled_or_dropped(steps: list[tuple[str, int]]) -> None:
    pending, counts = queue(max_bytes=100, max_events=5)
    submitted = settled = 0
    sending: list[Item] = []
    for step, size in steps:
        if step == "put":
            put(pending, "x", size)
            submitted += 1
        elif step == "take" and (item := pending.take(timeout=0)):
            sending.append(item)
        elif sending and step in ("put_back", "put_last"):
            pending.put_back([sending.pop()], last=step == "put_last")
        elif sending and step == "settle":
            pending.settle(sending.pop())
            settled += 1
        elif sending and step == "resize":
            pending.resize(sending[-1], size)
        events, weight = pending.load
        dropped = counts.snapshot(0, 0).dropped.get("queue_full", 0)
        assert events == submitted - settled - dropped
        in_flight = sum(item.size for item in sending)
        assert weight <= max(100, in_flight)
        assert events <= max(5, len(sending))
    left = names(pending)
    assert len(left) + len(sending) == pending.load[0]


def test_an_address_given_in_a_dict_weighs_what_it_holds() -> None:
    assert media.weigh({"url": "data:image/png;base64," + "A" * 100_000}) > 100_000
    assert media.weigh({"sha256": "0" * 64}) < 1000
