"""The one-machine stack: real child processes, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis as redis_client

from cmerwatch import embedded, errors
from cmerwatch.embedded import broker, children
from tests.stack import wait_until

REPOSITORY = Path(__file__).parents[2]


def make_postgres(folder: Path) -> embedded.Postgres:
    return embedded.Postgres(folder / "postgres", folder / "secrets" / "pg", folder / "pg.log", fsync=False)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[embedded.Postgres]:
    server = make_postgres(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[embedded.Redis]:
    program = embedded.redis_program()
    assert program is not None
    server = embedded.Redis(tmp_path / "redis", tmp_path / "redis.log", program)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie nobody has reaped yet has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_postgres_is_version_18_durable_and_closed_to_those_without_its_password(
    postgres: embedded.Postgres,
) -> None:
    assert run(postgres.url(), "SHOW server_version_num")[0][0] > "180000"  # type: ignore[operator]
    assert run(postgres.url(), "SHOW synchronous_commit") == [("on",)]
    assert run(postgres.url(), "SHOW listen_addresses") == [("127.0.0.1",)]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url().replace(postgres.password, "guess"))


def test_what_models_wrote_does_not_reach_the_postgres_log(postgres: embedded.Postgres) -> None:
    run(postgres.url(), "CREATE TABLE t (a text CHECK (a <> 'a private sentence'))")
    with pytest.raises(psycopg.errors.CheckViolation):
        run(postgres.url(), "INSERT INTO t VALUES ('a private sentence')")
    log = postgres.child.log.read_text()
    assert "violates check constraint" in log
    assert "private" not in log


def test_a_killed_postgres_starts_again_with_its_data_on_the_same_port(postgres: embedded.Postgres) -> None:
    run(postgres.url(), "CREATE TABLE kept AS SELECT 7 AS n")
    before = postgres.pid
    postgres.kill()
    postgres.start()
    assert postgres.pid != before
    assert run(postgres.url(), "SELECT n FROM kept") == [(7,)]


def test_a_start_ends_the_postgres_that_a_killed_parent_left_behind(
    postgres: embedded.Postgres, tmp_path: Path
) -> None:
    run(postgres.url(), "CREATE TABLE kept AS SELECT 7 AS n")
    second = make_postgres(tmp_path)
    try:
        second.start()
        assert not postgres.child.is_running
        assert run(second.url(), "SELECT n FROM kept") == [(7,)]
    finally:
        second.stop()


def test_a_stale_pid_file_naming_another_program_is_no_obstacle_and_that_program_is_left_alone(
    postgres: embedded.Postgres,
) -> None:
    postgres.kill()
    pid_file = postgres.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    postgres.start()
    assert run(postgres.url(), "SELECT 1") == [(1,)]


def test_no_folder_above_the_database_is_opened_and_those_beside_it_stay_closed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    above = [closed, *closed.parents]
    before = [path.stat().st_mode for path in above]
    folder = embedded.DataFolder(closed / "data")
    folder.open()
    server = embedded.Postgres(folder.path / "postgres", folder.path / "secrets" / "pg", folder.log("pg"), fsync=False)
    try:
        server.start()
    finally:
        server.stop()
        folder.close()
    assert [path.stat().st_mode for path in above] == before
    for name in ("blobs", "secrets", "logs", "redis", "broker", "postgres"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o700, name
    assert stat.S_IMODE((folder.path / "secrets" / "pg").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.log("pg").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_postgres_never_runs_as_root(postgres: embedded.Postgres) -> None:
    assert Path(f"/proc/{postgres.pid}").stat().st_uid != 0
    assert postgres.data.stat().st_uid != 0


def test_a_data_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = embedded.DataFolder(tmp_path / "data"), embedded.DataFolder(tmp_path / "data")
    first.open()
    with pytest.raises(errors.StartRefused, match=rf"in use by the running process {os.getpid()}\."):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_data_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/below")):
        with pytest.raises(errors.StartRefused, match=rf"^{path} cannot hold the data: .* Choose another --data-dir"):
            embedded.DataFolder(path).open()


def test_the_only_stack_running_below_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CMERWATCH_DATA_DIR")
    up, demo = (embedded.DataFolder(Path(".cmerwatch") / name) for name in ("up", "demo"))
    assert embedded.running_folder() is None
    demo.open()
    assert embedded.running_folder() == Path(".cmerwatch/demo")
    up.open()
    assert embedded.running_folder() is None
    demo.close()
    assert embedded.running_folder() == Path(".cmerwatch/up")
    up.close()


def test_a_secret_is_made_once_even_by_two_at_once(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(2)

    def read() -> None:
        barrier.wait()
        found.append(embedded.secret(tmp_path / "secrets" / "name"))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == embedded.secret(tmp_path / "secrets" / "name")
    assert len(found[0]) >= 40
    assert os.listdir(tmp_path / "secrets") == ["name"]


def test_redis_keeps_nothing_evicts_nothing_and_asks_for_its_password(redis: embedded.Redis) -> None:
    with redis.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    with (
        redis_client.Redis.from_url(f"redis://127.0.0.1:{redis.port}", retry=None) as stranger,
        pytest.raises(redis_client.AuthenticationError),
    ):
        stranger.ping()


def test_a_killed_redis_starts_again_empty_on_the_same_port(redis: embedded.Redis) -> None:
    url = redis.url
    with redis.client() as client:
        client.set("hint", "1")
    redis.kill()
    redis.start()
    assert redis.url == url
    with redis.client() as client:
        assert client.get("hint") is None


def test_redis_takes_another_port_when_the_first_was_taken_meanwhile(redis: embedded.Redis, tmp_path: Path) -> None:
    second = embedded.Redis(tmp_path / "second", tmp_path / "second.log", redis.server)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", second.port))
        try:
            second.start()
            assert second.port != squatter.getsockname()[1]
            assert second.is_answering()
        finally:
            second.stop()


def test_postgres_takes_another_port_when_the_first_was_taken_meanwhile(tmp_path: Path) -> None:
    server = make_postgres(tmp_path)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", server.port))
        try:
            server.start()
            assert server.port != squatter.getsockname()[1]
        finally:
            server.stop()


def test_without_any_redis_server_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    broker.program.cache_clear()
    try:
        assert broker.program() is None
    finally:
        broker.program.cache_clear()


def child(tmp_path: Path, code: str, **options: object) -> embedded.Child:
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return embedded.Child("child", argv, tmp_path / "child.log", **options)  # type: ignore[arg-type]


def test_a_child_that_ends_while_starting_is_reported_with_its_last_words(tmp_path: Path) -> None:
    broken = child(tmp_path, "raise SystemExit('no such checkpoint')")
    with pytest.raises(errors.StartRefused, match="child ended while starting: no such checkpoint"):
        broken.start_ready(lambda: False, 20)


def test_a_child_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    slow = child(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(errors.StartRefused, match="not ready after"):
        slow.start_ready(lambda: False, 0.3)
    assert not slow.is_running


def test_stop_ends_a_child_that_ignores_the_request_and_what_it_left_in_its_session(tmp_path: Path) -> None:
    grandchild_file = tmp_path / "grandchild"
    stubborn = child(
        tmp_path,
        f"""
        import pathlib, signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = subprocess.Popen(["sleep", "600"])
        pathlib.Path({str(grandchild_file)!r}).write_text(f"{{left.pid}}\\n")
        time.sleep(600)
        """,
        grace_seconds=0.2,
    )
    stubborn.start_ready(lambda: grandchild_file.exists() and grandchild_file.read_text().endswith("\n"), 20)
    stubborn.stop()
    assert stubborn.process is not None
    assert stubborn.process.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(int(grandchild_file.read_text())))


PARENT = """
import os, sys
from pathlib import Path
from cmerwatch.embedded import Child, Process, Stack

folder = Path(sys.argv[1])
CHILD = '''
import pathlib, signal, sys
def end(*_):
    with open(sys.argv[1] + "/order", "a") as file:
        file.write(sys.argv[2] + chr(10))
    raise SystemExit
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], sys.argv[2] + ".up").touch()
while True:
    signal.pause()
'''
stack = Stack()
with stack.running():
    for name in ("postgres", "broker", "worker", "web"):
        child = Child(name, [sys.executable, "-c", CHILD, str(folder), name], folder / f"{name}.log")
        stack.start(Process(child, (folder / f"{name}.up").exists))
        (folder / f"{name}.pid").write_text(str(child.pid))
    (folder / "ready").touch()
    stack.watch()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=REPOSITORY)
    try:
        wait_until((tmp_path / "ready").exists)
        yield running
    finally:
        running.kill()
        running.wait()


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*.pid")]


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_stack_stops_in_the_opposite_order_and_exits_0(
    parent: subprocess.Popen[bytes], tmp_path: Path, request_to_stop: signal.Signals
) -> None:
    parent.send_signal(request_to_stop)
    assert parent.wait(20) == 0
    assert (tmp_path / "order").read_text().split() == ["web", "worker", "broker", "postgres"]
    assert not any(is_alive(pid) for pid in pids(tmp_path))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the next start cleans up")
def test_no_child_outlives_a_parent_that_was_killed(parent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert all(is_alive(pid) for pid in pids(tmp_path))
    parent.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def test_a_child_that_crashes_is_started_again(parent: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "worker.up").unlink()
    os.kill(int((tmp_path / "worker.pid").read_text()), signal.SIGKILL)
    wait_until((tmp_path / "worker.up").exists)
    assert parent.poll() is None


def test_a_child_that_crashes_at_every_start_does_not_bring_the_others_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch.embedded.stack.RESTART_SECONDS", 0.05)
    said: list[str] = []
    well = child(tmp_path, "import time; time.sleep(600)")
    broken = child(tmp_path, "raise SystemExit(3)")
    stack = embedded.Stack(said.append)
    with stack.running():
        stack.start(embedded.Process(well, lambda: True))
        stack.start(embedded.Process(broken, lambda: True))
        stack.watch(until=lambda: len(said) >= 3)
        assert well.is_running
        assert all("ended with 3; starting it again" in line for line in said)
    assert not well.is_running


def test_a_server_that_refuses_to_start_again_is_tried_until_it_does(
    redis: embedded.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch.embedded.stack.RESTART_SECONDS", 0.05)
    said: list[str] = []
    stack = embedded.Stack(said.append)
    stack.servers.append(redis)
    started, redis.server = redis.server, Path("/nowhere/redis-server")
    redis.kill()
    stack.watch(until=lambda: any("redis ended while starting" in line for line in said))
    redis.server = started
    stack.watch(until=redis.is_answering)


def test_a_request_to_stop_during_a_slow_start_is_heard(tmp_path: Path) -> None:
    stack = embedded.Stack()
    slow = child(tmp_path, "import time; time.sleep(600)")
    reached_the_end = False
    with stack.running():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        stack.start(embedded.Process(slow, lambda: False))
        reached_the_end = True
    assert not reached_the_end
    assert not slow.is_running


def test_a_program_that_takes_the_name_of_a_running_one_is_seen_by_its_command_line() -> None:
    assert "python" in children.command_of(os.getpid())
    assert children.command_of(2**22 + 1) == ""
