"""One watched call, from its request to the events of its answer. Nothing here may reach the app as an error."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cmerwatch.sdk import scope
from cmerwatch.sdk.client import Client
from cmerwatch.sdk.hooks import chat

T = TypeVar("T")

NAME_LENGTH = 200  # the server takes no longer names


@dataclass(frozen=True)
class Settings:
    """What `wrap` was told. `client` is asked at each call, so that `init` may come after `wrap`."""

    client: Callable[[], Client]
    dimensions: dict[str, str]
    request_logprobs: bool


def attempt(settings: Settings, work: Callable[..., T], *given: Any) -> T | None:
    """The only way from the app's calls into our code: what raises there is counted, and None comes back."""
    try:
        return work(*given)
    except Exception as error:
        settings.client().swallow(error)
        return None


class Call:
    """A request that shows pictures. `status` says why there is no confidence, should none come."""

    def __init__(self, settings: Settings, question: chat.Question, body: dict[str, Any], status: str) -> None:
        self.settings = settings
        self.status = status
        self._question = question
        # Of now: a stream may end in another context, or none.
        self._dimensions = {**settings.dimensions, **scope.current()}
        self._parameters = [(name, body.get(name)) for name in chat.PARAMETERS]  # the body holds all pictures so far
        self._begun = time.perf_counter()

    def elapsed_ms(self) -> int:
        return round((time.perf_counter() - self._begun) * 1000)

    def record(self, reply: chat.Reply, timing: dict[str, Any], start_thread: bool = True) -> None:
        """One event for each choice that says something. Only references are taken here."""
        client = self.settings.client()
        for answer in reply.answers.values():
            output = "".join(answer.text) or "".join(answer.refusal)
            if not output or output.isspace():  # it called a tool, or was cut off before the first word
                client.drop("no_output")
                continue
            size = self._question.size() + sys.getsizeof(output) + chat.TOKEN_BYTES * len(answer.tokens)
            client.take(functools.partial(self._fields, reply, answer, output, timing), size, start_thread)

    def _fields(self, reply: chat.Reply, answer: chat.Answer, output: str, timing: dict[str, Any]) -> dict[str, Any]:
        """What takes some reading: the sending thread's work."""
        measured = chat.confidence(answer, output) if answer.logprobs else None
        fields: dict[str, Any] = {
            "model": _name(reply.model),
            **self._dimensions,
            "response_id": _name(reply.response_id),
            "images": self._question.pictures,
            "prompt": self._question.prompt or None,
            "output": output,
            "metadata": chat.plain(self._told(reply, answer)) | timing,
        }
        if "stream" in timing:
            # The reason to finish is the last thing a model says; reading on from there is up to the app.
            fields["metadata"]["stream_complete"] = answer.finish_reason is not None
        if measured is None:
            return {**fields, "confidence_status": "error" if answer.logprobs else self.status}
        tokens, logprobs = measured
        return {**fields, "confidence_status": "present", "tokens": tokens, "logprobs": logprobs}

    def _told(self, reply: chat.Reply, answer: chat.Answer) -> Iterator[tuple[str, Any]]:
        yield "choice", answer.index
        yield "finish_reason", answer.finish_reason
        yield "system_fingerprint", reply.fingerprint
        yield "prompt_tokens", getattr(reply.usage, "prompt_tokens", None)
        yield "completion_tokens", getattr(reply.usage, "completion_tokens", None)
        if answer.refusal and not answer.text:
            yield "refused", True
        yield from self._parameters


def _name(given: Any) -> str | None:
    return given[:NAME_LENGTH] if isinstance(given, str) else None
