"""What carries events to a server. Kept apart from HTTP, so that importing cmerwatch loads no network code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Unreachable(Exception):
    """No answer came back; the message is the kind of failure. `connected` tells a server that was reached and
    then broke off from one that was not there."""

    def __init__(self, message: str, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


@dataclass(frozen=True)
class Answer:
    status: int
    body: dict[str, Any] = field(default_factory=dict)
    retry_after: float | None = None


class Transport(Protocol):
    """What carries events: HTTP, or memory in an app's own tests. Raises Unreachable."""

    def send(self, events: Sequence[bytes], images: Mapping[str, bytes]) -> Answer:
        """events: one JSON object each; images: bytes by sha256."""
        ...

    def missing(self, hashes: Sequence[str]) -> Answer: ...

    def close(self) -> None: ...

    def forked(self) -> None:
        """Runs in the child: let go of what belongs to the parent, and talk to nobody about it."""
        ...
