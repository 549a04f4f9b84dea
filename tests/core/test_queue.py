"""Hints to workers: they may be lost, late or refused, and no caller ever notices."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import kombu.exceptions
import pytest

from cmerwatch import embedded, queue
from cmerwatch.settings import Settings, read
from tests.stack import wait_until


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Redis]:
    folder = tmp_path_factory.mktemp("redis")
    program = embedded.redis_program()
    assert program is not None
    server = embedded.Redis(folder / "redis", folder / "redis.log", program)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def on_redis(redis: embedded.Redis, tmp_path: Path) -> Settings:
    with redis.client() as client:
        client.flushall()
    return read(redis_url=redis.url, data_dir=tmp_path)


@pytest.fixture
def on_folder(tmp_path: Path) -> Settings:
    return read(redis_url="", data_dir=tmp_path)


@pytest.fixture(params=["redis", "folder"])
def settings(request: pytest.FixtureRequest) -> Settings:
    chosen: Settings = request.getfixturevalue(f"on_{request.param}")
    return chosen


@pytest.fixture
def start() -> Iterator[Callable[[Settings], None]]:
    yield queue.configure
    queue.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks and rests that pass soon, so that tests need not wait out the real ones."""
    monkeypatch.setattr(queue, "MARK_SECONDS", 0.1)
    monkeypatch.setattr(queue, "BREAKER_SECONDS", 0.05)


def waiting(settings: Settings) -> int:
    return queue.marks(settings).waiting("check")


def fetch(settings: Settings) -> tuple[str, Any]:
    """Take one hint as a worker would: the task's name and its arguments."""
    app = celery.Celery("test-worker", set_as_current=False)
    app.conf.update(queue.celery_config(settings))
    with app.connection_for_read() as connection, connection.SimpleQueue("check") as messages:
        message = messages.get(timeout=10)
        message.ack()
        assert message.content_type == "application/json"
        return message.headers["task"], message.payload[0]


def test_a_hint_reaches_the_workers_broker_and_says_the_stage_alone(
    settings: Settings, start: Callable[[Settings], None]
) -> None:
    start(settings)
    queue.hint("check")
    assert fetch(settings) == (queue.DRAIN, ["check"])


def test_hints_given_together_become_one(settings: Settings, start: Callable[[Settings], None]) -> None:
    start(settings)
    for _ in range(100):
        queue.hint("check")
    wait_until(lambda: waiting(settings) > 0)
    # One more may follow for those given after the first was on its way; that one waits for the mark.
    assert waiting(settings) == 1


def test_a_hint_after_a_drain_began_is_sent_without_waiting_for_the_mark(
    settings: Settings, start: Callable[[Settings], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MARK_SECONDS", 3600)
    start(settings)
    queue.hint("check")
    wait_until(lambda: waiting(settings) == 1)
    queue.marks(settings).clear("check")
    queue.hint("check")
    wait_until(lambda: waiting(settings) == 2)


@pytest.mark.usefixtures("quick")
def test_work_committed_while_anothers_mark_stands_is_hinted_when_it_passes(
    settings: Settings, start: Callable[[Settings], None]
) -> None:
    start(settings)
    assert queue.marks(settings).take("check")
    queue.hint("check")
    wait_until(lambda: waiting(settings) == 1)


@pytest.mark.usefixtures("quick")
def test_hints_nobody_fetches_do_not_pile_up(
    settings: Settings, start: Callable[[Settings], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MOST_WAITING", 3)
    start(settings)
    marks = queue.marks(settings)
    for expected in (1, 2, 3):
        marks.clear("check")
        queue.hint("check")
        wait_until(lambda expected=expected: waiting(settings) == expected)  # type: ignore[misc]
    marks.clear("check")
    assert queue._producer is not None
    queue._producer._send("check")
    assert waiting(settings) == 3


def test_a_redis_that_hangs_holds_no_caller(
    redis: embedded.Redis, on_redis: Settings, start: Callable[[Settings], None]
) -> None:
    start(on_redis)
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        for _ in range(2000):  # at one timeout each this would outlast the test's limit
            queue.hint("check")
    finally:
        os.kill(redis.pid, signal.SIGCONT)


@pytest.mark.usefixtures("quick")
def test_hints_go_on_by_themselves_after_redis_was_killed(
    redis: embedded.Redis, on_redis: Settings, start: Callable[[Settings], None], caplog: pytest.LogCaptureFixture
) -> None:
    start(on_redis)
    queue.hint("check")
    wait_until(lambda: waiting(on_redis) == 1)
    redis.kill()
    queue.hint("check")
    wait_until(lambda: "hints rest" in caplog.text)
    redis.start()

    def arrived() -> bool:
        queue.hint("check")
        return waiting(on_redis) > 0

    wait_until(arrived)


def test_after_a_failure_the_broker_is_left_alone_for_a_while(
    on_folder: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = queue.Producer(on_folder)
    tried: list[str] = []

    def refuse(stage: str) -> bool:
        tried.append(stage)
        raise kombu.exceptions.OperationalError("down")

    monkeypatch.setattr(producer._marks, "take", refuse)
    producer._send("check")
    producer._send("check")
    assert tried == ["check"]
    producer.close()


def test_a_stage_that_does_not_exist_is_a_mistake_of_the_caller(
    on_folder: Settings, start: Callable[[Settings], None]
) -> None:
    start(on_folder)
    with pytest.raises(ValueError, match="'chek' is no stage; known: check"):
        queue.hint("chek")


def test_without_configure_a_hint_is_silently_nothing() -> None:
    queue.close()
    queue.hint("check")


def test_producer_and_worker_speak_json_only_and_keep_no_results(settings: Settings) -> None:
    config = queue.celery_config(settings)
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"
    assert config["task_ignore_result"] is True
    assert "result_backend" not in config
    assert config["task_acks_late"] is False
    assert config["worker_prefetch_multiplier"] == 1
    assert config["worker_enable_remote_control"] is False


def test_the_folder_broker_is_closed_to_others(on_folder: Settings) -> None:
    queue.celery_config(on_folder)
    for name in ("messages", "control"):
        assert stat.S_IMODE((on_folder.data_dir / "broker" / name).stat().st_mode) == 0o700
