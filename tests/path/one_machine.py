"""The stack on one machine, run as a person runs it: the real command in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psycopg

from cmerwatch import embedded

REPOSITORY = Path(__file__).parents[2]


class Machine:
    """One data folder, and the `cmerwatch demo` or `up` that runs on it now."""

    def __init__(self, folder: Path, command: str, **environment: str) -> None:
        self.folder, self.command, self.environment = folder, command, environment
        self.said = folder.with_suffix(".err")
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("CMERWATCH_")}
        options = ["--port", "0", "--no-browser", "--json", "--data-dir", str(self.folder)]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cmerwatch.cli", self.command, *options],
                env=plain | self.environment,
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said.read_text()
        self.ready = json.loads(line)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; the exit status and what else stood on stdout."""
        assert self.process is not None
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        code, self.process = self.process.returncode, None
        return code, rest

    def call(self, path: str, body: Any = None, *, key: str | None = None) -> Any:
        request = urllib.request.Request(
            self.ready["url"] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key or self.ready['api_key']}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        url = embedded.environment_of(self.folder)["CMERWATCH_DATABASE_URL"]
        with psycopg.connect(url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def pids(self) -> set[int]:
        """Every process below the one we started: its children, whatever runs in their sessions, and theirs."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    found[int(stat.parent.name)] = (int(fields[1]), int(fields[3]))
        assert self.process is not None
        children = {pid for pid, (parent, _) in found.items() if parent == self.process.pid}
        return {pid for pid, (parent, session) in found.items() if session in children or parent in children}
