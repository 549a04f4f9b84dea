"""The `openai` package's clients, versions 2 and 3: sync and async, Azure, and any server by `base_url`.

`create`, `parse`, `stream`, their raw-response forms and the `beta` names all go through the client's own `post`.
That one method is replaced, on the one object: nothing global changes, and nothing can be recorded twice.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from cmerwatch.sdk import scope
from cmerwatch.sdk.hooks import chat, streams
from cmerwatch.sdk.hooks.calls import Call, Settings, attempt

PATH = "/chat/completions"
CLIENTS = frozenset({"OpenAI", "AsyncOpenAI"})
MARK = "_cmerwatch_hook"
REFUSED_WITH = frozenset({400, 403, 422})  # 403: OpenAI itself, for whole families of models
MOST_REMEMBERED = 1024

# (base_url, model) that refused logprobs. For the process: apps make clients as they please.
_without_logprobs: set[tuple[str, str]] = set()


def recognises(client: object) -> bool:
    """By the names of its classes, so that `openai` is not imported for it; a mock of a client is none."""
    return any(one.__module__.partition(".")[0] == "openai" and one.__name__ in CLIENTS for one in type(client).__mro__)


def watch(client: Any, settings: Settings) -> None:
    """Watching again changes the settings."""
    hook = vars(client).get(MARK)
    if hook is not None:
        hook.settings = settings
        return
    hook = Hook(client, settings)
    setattr(client, MARK, hook)
    client.post = (_async_post if inspect.iscoroutinefunction(client.post) else _post)(client.post, hook)
    for resource in _existing(client):
        resource._post = client.post
    client.copy = client.with_options = _watching_copies(client.copy, hook)


def _existing(client: Any) -> list[Any]:
    """The `chat.completions` that were used before; later ones take `post` as it is then. Not asked for by
    attribute: that would load `beta`, half a second of imports."""
    found = []
    for holder in (client, vars(client).get("beta")):
        chat_resource = vars(holder).get("chat") if holder is not None else None
        completions = vars(chat_resource).get("completions") if chat_resource is not None else None
        if completions is not None:
            found.append(completions)
    return found


def _watching_copies(native: Callable[..., Any], hook: "Hook") -> Callable[..., Any]:
    @functools.wraps(native)
    def copy(*given: Any, **options: Any) -> Any:
        made = native(*given, **options)
        attempt(hook.settings, watch, made, hook.settings)
        return made

    return copy


def _post(native: Callable[..., Any], hook: "Hook") -> Callable[..., Any]:
    @functools.wraps(native)
    def post(*given: Any, **options: Any) -> Any:
        request = attempt(hook.settings, hook.begin, given, options)
        if request is None:
            return native(*given, **options)
        recording = attempt(hook.settings, scope.begin_recording)
        again = False
        try:
            try:
                answer = native(*given, **request.options)
            except Exception as error:
                if request.options is options or attempt(hook.settings, request.gives_up_logprobs, error) is False:
                    raise
                again = True
            if again:  # outside of `except`, so that a second error stands for itself
                answer = native(*given, **options)
        finally:
            if recording is not None:
                attempt(hook.settings, scope.end_recording, recording)
        attempt(hook.settings, request.answered, answer)
        return answer

    return post


def _async_post(native: Callable[..., Awaitable[Any]], hook: "Hook") -> Callable[..., Awaitable[Any]]:
    @functools.wraps(native)
    async def post(*given: Any, **options: Any) -> Any:
        request = attempt(hook.settings, hook.begin, given, options)
        if request is None:
            return await native(*given, **options)
        recording = attempt(hook.settings, scope.begin_recording)
        again = False
        try:
            try:
                answer = await native(*given, **request.options)
            except Exception as error:
                if request.options is options or attempt(hook.settings, request.gives_up_logprobs, error) is False:
                    raise
                again = True
            if again:
                answer = await native(*given, **options)
        finally:
            if recording is not None:
                attempt(hook.settings, scope.end_recording, recording)
        attempt(hook.settings, request.answered, answer)
        return answer

    return post


class Hook:
    """What one client's calls have in common."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self.settings = settings
        self._client = client

    def begin(self, given: tuple[Any, ...], options: dict[str, Any]) -> "Request | None":
        """None for what is not recorded: other calls than chat, chat without a picture, and a call inside of one
        that is being recorded already."""
        body = options.get("body")
        if (given[0] if given else options.get("path")) != PATH or not isinstance(body, dict) or scope.recording():
            return None
        if not self.settings.client().enabled:
            return None
        question = chat.question(body.get("messages"))
        if question is None:
            return None
        return self._request(question, body, options)

    def _request(self, question: chat.Question, body: dict[str, Any], options: dict[str, Any]) -> "Request":
        extra = (options.get("options") or {}).get("extra_json")
        asked = body.get("logprobs") or (isinstance(extra, dict) and extra.get("logprobs"))
        status, place = "unsupported_by_provider" if asked else "not_requested", None
        if self.settings.request_logprobs and "logprobs" not in body and not asked:
            place = (str(self._client.base_url), str(body.get("model")))
            if place in _without_logprobs:
                status, place = "unsupported_by_model", None
            else:
                status, options = "unsupported_by_provider", {**options, "body": {**body, "logprobs": True}}
        return Request(Call(self.settings, question, body, status), options, place)


class Request:
    """`options` are the arguments to send; `place`, when logprobs were added to them, is where and for which model."""

    def __init__(self, call: Call, options: dict[str, Any], place: tuple[str, str] | None) -> None:
        self.call = call
        self.options = options
        self._place = place
        self._latency_ms: int | None = None

    def gives_up_logprobs(self, error: Any) -> bool:
        """False for an error that has nothing to do with the logprobs that were added."""
        refused = getattr(error, "status_code", None) in REFUSED_WITH and "logprobs" in str(error)
        if self._place is None or not refused:
            return False
        if len(_without_logprobs) >= MOST_REMEMBERED:
            _without_logprobs.clear()
        _without_logprobs.add(self._place)
        self.call.status = "unsupported_by_model"
        return True

    def answered(self, answer: Any) -> None:
        if self._latency_ms is None:  # a raw response comes by twice: as such, and once the app has parsed it
            self._latency_ms = self.call.elapsed_ms()
        if getattr(answer, "choices", None):
            self.call.record(chat.read(answer), {"latency_ms": self._latency_ms})
        elif hasattr(answer, "_iterator"):
            streams.watch(answer, self.call)
        elif hasattr(answer, "http_response"):
            _watch_parsing(answer, self)


def _watch_parsing(response: Any, request: Request) -> None:
    """A raw response is recorded when the app parses it, the first time; one it reads as text never is."""
    native, settings = response.parse, request.call.settings

    def parsed(result: Any) -> Any:
        vars(response).pop("parse", None)
        attempt(settings, request.answered, result)
        return result

    def parse(*given: Any, **options: Any) -> Any:
        return parsed(native(*given, **options))

    async def parse_async(*given: Any, **options: Any) -> Any:
        return parsed(await native(*given, **options))

    response.parse = functools.wraps(native)(parse_async if inspect.iscoroutinefunction(native) else parse)
