"""The one-machine stack: Postgres, broker, web and workers as child processes on 127.0.0.1."""

from cmerwatch.embedded.broker import Redis
from cmerwatch.embedded.broker import program as redis_program
from cmerwatch.embedded.children import Child, Stopped, free_port, is_listening
from cmerwatch.embedded.folder import DataFolder, secret
from cmerwatch.embedded.machine import (
    Machine,
    default_folder,
    environment_of,
    open_machine,
    require_free,
    running_folder,
    use,
    web_command,
    worker_command,
)
from cmerwatch.embedded.postgres import Postgres
from cmerwatch.embedded.stack import Process, Server, Stack

__all__ = [
    "Child",
    "DataFolder",
    "Machine",
    "Postgres",
    "Process",
    "Redis",
    "Server",
    "Stack",
    "Stopped",
    "default_folder",
    "environment_of",
    "free_port",
    "is_listening",
    "open_machine",
    "redis_program",
    "require_free",
    "running_folder",
    "secret",
    "use",
    "web_command",
    "worker_command",
]
