"""`cmerwatch up`: the same stack, empty, and a worker that is started again when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cmerwatch_worker
from cmerwatch import doctor
from tests.path.one_machine import REPOSITORY, Machine
from tests.stack import wait_until

pytestmark = pytest.mark.xdist_group("up")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("up") / "data", "up", CMERWATCH_CHECKER="demo")
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            assert made.end() == (0, "")


def is_well(machine: Machine) -> bool:
    return all(step.is_ok for step in doctor.examine(machine.ready["url"], machine.ready["api_key"]))


def worker_pid(machine: Machine) -> int | None:
    for pid in machine.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end between the list and the look
            if b"\0cmerwatch_worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def test_it_starts_with_a_project_and_no_events(running: Machine) -> None:
    assert running.rows("SELECT slug FROM projects") == [("default",)]
    assert running.call("/v1/ledger")["totals"]["accepted"] == 0
    assert is_well(running)


def test_keys_and_people_are_made_while_it_runs(running: Machine) -> None:
    def command(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "cmerwatch.cli", *arguments, "--data-dir", str(running.folder)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    command("project", "acme")
    key = command("key", "create", "--project", "acme")
    assert running.call("/v1/ledger", key=key)["totals"]["accepted"] == 0
    link = command("user", "create", "ann", "--project", "acme", "--role", "reviewer")
    assert link.startswith(running.ready["url"] + "/sign-in/")


def test_a_worker_that_is_killed_is_started_again_and_goes_on(running: Machine) -> None:
    before = worker_pid(running)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: worker_pid(running) not in (None, before))
    assert is_well(running)
    assert "worker ended with -9; starting it again" in running.said.read_text()


def test_a_database_that_is_killed_is_started_again_with_what_it_acknowledged(running: Machine) -> None:
    assert is_well(running)
    ((before,),) = running.rows("SELECT count(*) FROM events")
    pid_file = running.folder / "postgres" / "data" / "postmaster.pid"
    killed = int(pid_file.read_text().splitlines()[0])
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: pid_file.exists() and int(pid_file.read_text().splitlines()[0]) != killed)
    wait_until(lambda: is_well(running), 60)
    assert running.rows("SELECT count(*) FROM events")[0][0] > before


def test_production_refuses_the_demo_bundle_by_whatever_name(tmp_path: Path) -> None:
    bundle = Path(cmerwatch_worker.__file__).parent / "bundles" / "demo"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CMERWATCH_")}
    refused = subprocess.run(
        [sys.executable, "-m", "cmerwatch.cli", "up", "--port", "0", "--data-dir", str(tmp_path / "data")],
        env=plain | {"CMERWATCH_ENVIRONMENT": "production", "CMERWATCH_CHECKER": f"bundle:{bundle}"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "production refuses it" in refused.stderr
    assert "Traceback" not in refused.stderr
    # The refusal came after the stores were up: nothing of them may be left.
    wait_until(lambda: not (tmp_path / "data" / "postgres" / "data" / "postmaster.pid").exists())
