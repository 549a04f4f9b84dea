"""The one-machine stack: Postgres, broker, web and workers as child processes on 127.0.0.1."""

from cmerwatch.embedded.broker import Redis
from cmerwatch.embedded.broker import program as redis_program
from cmerwatch.embedded.children import Child, Stopped, free_port
from cmerwatch.embedded.folder import DataFolder, secret
from cmerwatch.embedded.postgres import Postgres
from cmerwatch.embedded.stack import Process, Server, Stack

__all__ = [
    "Child",
    "DataFolder",
    "Postgres",
    "Process",
    "Redis",
    "Server",
    "Stack",
    "Stopped",
    "free_port",
    "redis_program",
    "secret",
]
