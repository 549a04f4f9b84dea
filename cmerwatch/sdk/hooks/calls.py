"""One watched call, from its request to the events of its answer. Nothing here may reach the app as an error."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
    """The way from the app's calls into our code: what raises there is counted, and None comes back."""
    try:
        return work(*given)
    except Exception as error:
        failed(settings, error)
        return None


def failed(settings: Settings, error: Exception) -> None:
    """For an `except` of one's own, where a call of `attempt` would take too long."""
    settings.client().swallow(error)


class Call:
    """One request that shows pictures. `status` says why there is no confidence, should none come. Times are those of
    the performance counter, in seconds."""

    settings: Settings
    begun: float
    first_at = 0.0  # when the first chunk of a stream came
    ended_at = 0.0
    pictures: list[str]  # their addresses
    words: list[str]  # the prompt, in pieces
    around: dict[str, Any]  # the context of the call
    parameters: tuple[Any, ...]
    status = "unsupported_by_provider"

    def ask(self, body: dict[str, Any]) -> bool:
        """Takes what an event needs of the request, and copies no text; False when it shows no picture."""
        asked = chat.question(body)
        if asked is None:
            return False
        self.pictures, self.words = asked
        self.around = scope.current()  # of now: a stream may end in another context, or none
        self.parameters = (body.get("temperature"), body.get("top_p"), body.get("seed"))
        return True

    def record(self, reply: chat.Reply, start_thread: bool = True) -> None:
        """One event for each choice that says something. Only references are taken here."""
        client = self.settings.client()
        size = 0
        for text in self.words:
            size += 4 * len(text)  # the most bytes of a character
        for url in self.pictures:
            size += len(url) if url.isascii() else 4 * len(url)
        for answer in reply.answers.values():
            output = "".join(answer.text) or "".join(answer.refusal)
            if not output or output.isspace():  # it called a tool, or was cut off before the first word
                client.drop("no_output")
                continue
            own = 4 * len(output) + chat.TOKEN_BYTES * len(answer.tokens)
            client.take(partial(self._fields, reply, answer, output), size + own, start_thread)

    def _fields(self, reply: chat.Reply, answer: chat.Answer, output: str) -> dict[str, Any]:
        """What takes some reading: the sending thread's work."""
        measured = chat.confidence(answer, output) if answer.logprobs else None
        fields: dict[str, Any] = {
            "model": _name(reply.told.get("model")),
            **self.settings.dimensions,
            **self.around,
            "response_id": _name(reply.told.get("id")),
            "images": [{"url": url} for url in self.pictures],
            "prompt": "\n".join(self.words) or None,
            "output": output,
            "metadata": chat.plain(self._told(reply, answer)),
        }
        if measured is None:
            return {**fields, "confidence_status": "error" if answer.logprobs else self.status}
        tokens, logprobs = measured
        return {**fields, "confidence_status": "present", "tokens": tokens, "logprobs": logprobs}

    def _ms(self, at: float) -> int:
        return round((at - self.begun) * 1000)

    def _told(self, reply: chat.Reply, answer: chat.Answer) -> Iterator[tuple[str, Any]]:
        yield "latency_ms", self._ms(self.ended_at)
        if self.first_at:
            # The reason to finish is the last thing a model says; reading on from there is up to the app.
            yield from (("stream", True), ("stream_complete", answer.finish_reason is not None))
            yield "first_chunk_ms", self._ms(self.first_at)
        usage = reply.told.get("usage")
        yield "choice", answer.index
        yield "finish_reason", answer.finish_reason
        yield "system_fingerprint", reply.told.get("system_fingerprint")
        yield "prompt_tokens", getattr(usage, "prompt_tokens", None)
        yield "completion_tokens", getattr(usage, "completion_tokens", None)
        if answer.refusal and not answer.text:
            yield "refused", True
        yield from zip(chat.PARAMETERS, self.parameters, strict=True)


def _name(given: Any) -> str | None:
    return given[:NAME_LENGTH] if isinstance(given, str) else None
