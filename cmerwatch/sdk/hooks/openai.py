"""The `openai` package's clients, versions 2 and 3: sync and async, Azure, and any server by `base_url`.

`create`, `parse`, `stream`, their raw-response forms and the `beta` names all go through the client's own `post`.
That one method is replaced, on the one object: nothing global changes, and nothing can be recorded twice.
"""

import functools
import inspect
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from cmerwatch.sdk.hooks import chat, streams
from cmerwatch.sdk.hooks.calls import Call, Settings, attempt, failed
from cmerwatch.sdk.scope import recording

PATH = "/chat/completions"
CLIENTS = frozenset({"OpenAI", "AsyncOpenAI"})
MARK = "_cmerwatch_hook"
REFUSED_WITH = frozenset({400, 403, 422})  # 403: OpenAI itself, for whole families of models
MOST_REMEMBERED = 1024
NOTHING: dict[str, Any] = {}

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
        request = None
        try:
            request = hook.begin(given, options)
        except Exception as error:
            failed(hook.settings, error)
        if request is None:
            return native(*given, **options)
        answer = None
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
            try:
                request.end(answer)
            except Exception as error:
                failed(hook.settings, error)
        return answer

    return post


def _async_post(native: Callable[..., Awaitable[Any]], hook: "Hook") -> Callable[..., Awaitable[Any]]:
    @functools.wraps(native)
    async def post(*given: Any, **options: Any) -> Any:
        request = None
        try:
            request = hook.begin(given, options)
        except Exception as error:
            failed(hook.settings, error)
        if request is None:
            return await native(*given, **options)
        answer = None
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
            try:
                request.end(answer)
            except Exception as error:
                failed(hook.settings, error)
        return answer

    return post


class Hook:
    """What one client's calls have in common."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self.settings = settings
        self._client = client

    def begin(self, given: tuple[Any, ...], options: dict[str, Any]) -> "Request | None":
        """None for other calls than chat, and for a call inside of one that is being recorded already."""
        if (given[0] if given else options.get("path")) != PATH or recording.get():
            return None
        settings = self.settings
        request = Request(settings, options)
        if settings.request_logprobs:
            self._ask_for_logprobs(request, options["body"])
        mark = [True]
        request.recording = mark, recording.set(mark)  # last: whoever begins it must come to the end of it
        return request

    def _ask_for_logprobs(self, request: "Request", body: dict[str, Any]) -> None:
        if "logprobs" in body or not request.look(request.options) or request.status != "not_requested":
            return  # nothing to ask, nothing to record, or asked for in another place
        place = (str(self._client.base_url), str(body.get("model")))
        if place in _without_logprobs:
            request.status = "unsupported_by_model"
        else:
            request.place = place
            request.status = "unsupported_by_provider"
            request.options = {**request.options, "body": {**body, "logprobs": True}}


class Request(Call):
    """`options` are the arguments to send; `place`, when logprobs were added to them, is where and for which model."""

    place: tuple[str, str] | None = None
    looked = False
    recording: Any = None

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self.settings = settings
        self.options = options
        self.begun = time.perf_counter()

    def gives_up_logprobs(self, error: Any) -> bool:
        """False for an error that has nothing to do with the logprobs that were added."""
        refused = getattr(error, "status_code", None) in REFUSED_WITH and "logprobs" in str(error)
        if self.place is None or not refused:
            return False
        if len(_without_logprobs) >= MOST_REMEMBERED:
            _without_logprobs.clear()
        _without_logprobs.add(self.place)
        self.status = "unsupported_by_model"
        return True

    def end(self, answer: Any) -> None:
        """answer: None when an error came instead."""
        mark, token = self.recording
        mark.clear()
        try:  # noqa: SIM105  (suppress() takes longer than all the rest)
            recording.reset(token)
        except ValueError:  # a coroutine closed from another task
            pass
        options, self.options = self.options, NOTHING  # the body holds all pictures so far
        if answer is not None and (self.looked or self.look(options)):
            self.answered(answer)

    def look(self, options: dict[str, Any]) -> bool:
        """Reads what the app asked; False when there is nothing to record."""
        body = options["body"]
        if not self.settings.client().enabled or not self.ask(body):
            return False
        self.looked = True
        if not body.get("logprobs"):
            extra = (options.get("options") or NOTHING).get("extra_json")
            if not (isinstance(extra, dict) and extra.get("logprobs")):
                self.status = "not_requested"
        return True

    def answered(self, answer: Any) -> None:
        self.ended_at = self.ended_at or time.perf_counter()  # a raw response comes by again once the app has parsed it
        reply = chat.read(answer)
        if reply is not None:
            self.record(reply)
        elif hasattr(answer, "_iterator"):
            streams.watch(answer, self)
        elif hasattr(answer, "http_response"):
            _watch_parsing(answer, self)


def _watch_parsing(response: Any, request: Request) -> None:
    """A raw response is recorded when the app parses it, the first time; one it only reads as text is counted."""
    native, settings = response.parse, request.settings
    unparsed = weakref.finalize(response, attempt, settings, _count_unparsed, settings)
    unparsed.atexit = False

    def parsed(result: Any) -> Any:
        unparsed.detach()
        vars(response).pop("parse", None)
        attempt(settings, request.answered, result)
        return result

    def parse(*given: Any, **options: Any) -> Any:
        return parsed(native(*given, **options))

    async def parse_async(*given: Any, **options: Any) -> Any:
        return parsed(await native(*given, **options))

    response.parse = functools.wraps(native)(parse_async if inspect.iscoroutinefunction(native) else parse)


def _count_unparsed(settings: Settings) -> None:
    settings.client().drop("unparsed")
