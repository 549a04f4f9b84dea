"""What one machine runs, in order: Postgres, broker, tables, worker, web; and what each child is told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import sqlalchemy as sa

from cmerwatch import db, errors, migrate, partitions, settings
from cmerwatch.embedded import broker
from cmerwatch.embedded.broker import Redis
from cmerwatch.embedded.children import Child, is_listening
from cmerwatch.embedded.folder import DataFolder
from cmerwatch.embedded.postgres import Postgres
from cmerwatch.embedded.stack import Process, Stack


@dataclasses.dataclass
class Machine:
    """The stores are up and migrated once `open` returns; `environment` is what every child is told."""

    stack: Stack
    folder: DataFolder
    engine: sa.Engine
    environment: Mapping[str, str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_worker(self) -> None:
        child = Child("worker", worker_command(), self.folder.log("worker"), self.environment, grace_seconds=20)
        # It says so once weights are loaded, just before it takes work.
        self.stack.start(Process(child, lambda: "checking with" in child.output()))

    def start_web(self) -> None:
        command = web_command("127.0.0.1", self.port)
        child = Child("web", command, self.folder.log("web"), self.environment)
        self.stack.start(Process(child, lambda: answers(f"{self.url}/healthz")))


def require_free(port: int, folder: DataFolder) -> None:
    """Before the folder is made, so that a refusal leaves none behind. A stack that runs on it is the better reason,
    and opening it says so."""
    if is_listening(port) and not folder.is_in_use:
        raise errors.StartRefused(f"Port {port} on 127.0.0.1 is taken. Choose another with --port.")


def open_machine(stack: Stack, folder: DataFolder, port: int, say: Callable[[str], None]) -> Machine:
    """Start the stores, bring the tables up to date, and point this process and its children at them."""
    say("starting Postgres")
    postgres = Postgres(folder.path / "postgres", folder.path / "secrets" / "postgres", folder.log("postgres"))
    stack.start(postgres)
    redis_url = _start_broker(stack, folder, say)
    folder.secret("secret_key")  # made now, so that children racing for it need not
    environment = os.environ | {
        "CMERWATCH_DATABASE_URL": postgres.url(),
        "CMERWATCH_REDIS_URL": redis_url,
        "CMERWATCH_DATA_DIR": str(folder.path),
        "CMERWATCH_SECRET_KEY_FILE": str(folder.path / "secrets" / "secret_key"),
        "CMERWATCH_PUBLIC_URL": os.environ.get("CMERWATCH_PUBLIC_URL", f"http://127.0.0.1:{port}"),
    }
    _keep(folder.path, environment)
    use(environment)
    say("bringing the tables up to date")
    migrate.upgrade(postgres.url())
    engine = db.configure(postgres.url(), pool_size=4)
    partitions.ensure_ahead(engine)
    return Machine(stack, folder, engine, environment, port)


def use(environment: Mapping[str, str]) -> None:
    """Point this process at a stack's stores, as its children are."""
    os.environ.update(environment)
    settings.current.cache_clear()


def environment_of(folder: Path) -> dict[str, str]:
    """What the stack that runs on this folder told its children. Raises StartRefused where none ever ran."""
    try:
        found: dict[str, str] = json.loads((folder / "secrets" / "environment.json").read_text())
    except FileNotFoundError:
        raise errors.StartRefused(
            f"No stack ever ran on {folder}. Start one: cmerwatch up --data-dir {folder}"
        ) from None
    return found


def _keep(folder: Path, environment: Mapping[str, str]) -> None:
    """So that `cmerwatch key` and `cmerwatch user` can reach the running stack: its port and password are its own."""
    ours = {name: value for name, value in environment.items() if name.startswith("CMERWATCH_")}
    descriptor = os.open(folder / "secrets" / "environment.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(ours, file)


def _start_broker(stack: Stack, folder: DataFolder, say: Callable[[str], None]) -> str:
    program = broker.program()
    if program is None:
        say("no redis-server here: hints go through a folder, which adds up to two seconds and changes nothing else")
        return ""
    redis = Redis(folder.path / "redis", folder.log("redis"), program)
    stack.start(redis)
    return redis.url


def web_command(host: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "cmerwatch_web.app:create_app", "--factory"]
    # No access log: the paths of sign-in links are secrets. No proxy headers: strangers may not say who they are.
    quiet = ["--no-access-log", "--no-server-header", "--no-proxy-headers"]
    return [*command, "--host", host, "--port", str(port), *quiet]


def worker_command() -> list[str]:
    return [sys.executable, "-m", "cmerwatch_worker"]


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def running_folder() -> Path | None:
    """The folder below .cmerwatch that a stack runs on now; None unless it is the only one."""
    running = [folder for folder in map(default_folder, ("up", "demo")) if DataFolder(folder).is_in_use]
    return running[0] if len(set(running)) == 1 else None


def default_folder(name: str) -> Path:
    """CMERWATCH_DATA_DIR where it is set; else a folder of that name below .cmerwatch."""
    chosen = os.environ.get("CMERWATCH_DATA_DIR")
    return Path(chosen) if chosen else Path(".cmerwatch") / name
