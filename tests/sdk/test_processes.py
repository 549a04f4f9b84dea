"""Imports, forks and exits, each in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.sdk.loopback import LoopbackServer, Reply

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, sys, threading
import cmerwatch

def record(name):
    return cmerwatch.record(image=name.encode(), prompt="p", output="A circle.", endpoint="/d", event_id=name)
"""


def run(script: str, server: LoopbackServer | None = None, prelude: str = PRELUDE) -> str:
    """The standard output of a script that ends with 0; its standard error must be free of tracebacks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CMERWATCH_")}
    environment["PYTHONPATH"] = str(ROOT)
    if server is not None:
        environment |= {"CMERWATCH_API_KEY": "cmw_test", "CMERWATCH_SERVER_URL": server.url}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", prelude + textwrap.dedent(script)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def arrivals(server: LoopbackServer) -> list[str]:
    return sorted(event["event_id"] for request in server.posts() for event in request.events)


def test_importing_loads_the_standard_library_alone_and_no_network_code() -> None:
    script = """
    import sys
    before = set(sys.modules)
    import cmerwatch, cmerwatch.sdk.testing
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    print(sorted(new - sys.stdlib_module_names - {"cmerwatch"}))
    print(sorted({"ssl", "http", "socket", "email", "asyncio", "urllib"} & new))
    print(sorted(name for name in sys.modules if name.startswith("cmerwatch.") and ".sdk" not in name))
    """
    assert run(script, prelude="").splitlines() == ["[]", "[]", "[]"]


def test_importing_and_init_start_no_thread(server: LoopbackServer) -> None:
    script = """
    cmerwatch.init()
    print(threading.active_count())
    record("first")
    print(threading.active_count())
    """
    assert run(script, server).split() == ["1", "2"]


def test_the_sending_thread_imports_nothing_because_a_fork_would_leave_its_import_locked(
    server: LoopbackServer,
) -> None:
    server.script.append(Reply(503, headers={"Retry-After": "Mon, 23 Nov 2026 00:00:00 GMT"}))
    script = """
    cmerwatch.init(flush_interval=0.001)
    before = set(sys.modules)
    cmerwatch.record(image=b"x" * 40_000, prompt="p", output="cut \\ud83d", endpoint="/d", logprobs=[-0.1])
    assert cmerwatch.flush(10)
    print(sorted(set(sys.modules) - before))
    """
    assert run(script, server) == "[]\n"


def test_what_waits_at_exit_is_sent(server: LoopbackServer) -> None:
    run("for n in range(20): record(f'event {n}')", server)
    assert len(arrivals(server)) == 20


def test_an_event_recorded_after_the_last_moment_does_no_harm(server: LoopbackServer) -> None:
    prelude = """
import atexit
atexit.register(lambda: record("too late"))
"""
    run("record('in time')", server, prelude=prelude + PRELUDE)
    assert arrivals(server) == ["in time"]


def test_a_first_event_in_an_exit_handler_does_no_harm(server: LoopbackServer) -> None:
    prelude = """
import atexit
atexit.register(lambda: record("first and last"))
"""
    run("", server, prelude=prelude + PRELUDE)


@pytest.mark.parametrize("hooks", [True, False], ids=["with fork hooks", "without fork hooks, as under uWSGI"])
def test_parent_and_child_each_send_their_own_events_once(hooks: bool, server: LoopbackServer) -> None:
    prelude = PRELUDE
    if not hooks:
        prelude = "import os\nimport threading\nos.register_at_fork = lambda **hooks: None\n" + PRELUDE
    script = """
    cmerwatch.init(flush_interval=0.5)
    record("parent, before")
    assert cmerwatch.flush(10)
    record("parent, queued at the fork")
    child = os.fork()
    if child == 0:
        record("child")
        sent = cmerwatch.flush(10)
        os._exit(0 if sent and cmerwatch.stats().sent == 1 else 1)
    record("parent, after")
    assert os.waitpid(child, 0)[1] == 0
    assert cmerwatch.flush(10)
    assert cmerwatch.stats().sent == 3
    """
    run(script, server, prelude)
    assert arrivals(server) == ["child", "parent, after", "parent, before", "parent, queued at the fork"]


def test_a_fork_at_any_moment_leaves_a_child_that_can_record(server: LoopbackServer) -> None:
    script = """
    cmerwatch.init(flush_interval=0.001)
    stop = threading.Event()
    def work():
        n = 0
        while not stop.is_set():
            n += 1
            record(f"{threading.current_thread().name} {n}")
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    for n in range(20):
        child = os.fork()
        if child == 0:
            record(f"child {n}")
            os._exit(0 if cmerwatch.flush(20) else 1)
        assert os.waitpid(child, 0)[1] == 0, n
    stop.set()
    for thread in threads: thread.join()
    assert cmerwatch.flush(20)
    """
    run(script, server)
    names = arrivals(server)
    assert len(names) == len(set(names)), "nothing is sent by two processes"
    assert {f"child {n}" for n in range(20)} <= set(names)


def test_a_process_ends_by_itself_with_the_server_down() -> None:
    script = """
    cmerwatch.init("cmw_key", "http://127.0.0.1:9")
    for n in range(10): record(f"event {n}")
    """
    run(script)


def test_a_forked_child_draws_other_ids_than_its_parent() -> None:
    script = """
    from cmerwatch.sdk import events
    events.new_id()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, events.new_id()[15:].encode())
        os._exit(0)
    os.wait()
    assert os.read(read, 100).decode() != events.new_id()[15:]
    """
    run(script)


def test_an_app_that_seeds_its_random_numbers_does_not_repeat_ids() -> None:
    script = """
    import random
    from cmerwatch.sdk import events
    drawn = set()
    for _ in range(2):
        random.seed(42)
        drawn.add(events.new_id()[15:])
    assert len(drawn) == 2
    """
    run(script)
