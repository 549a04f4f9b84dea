"""Hooks into the clients of models: each watches one library's objects, in place and without importing it."""

from collections.abc import Callable, Mapping
from typing import Any

from cmerwatch.sdk import scope
from cmerwatch.sdk.client import Client
from cmerwatch.sdk.counts import log
from cmerwatch.sdk.hooks import openai
from cmerwatch.sdk.hooks.calls import Settings

HOOKS = (openai,)
UNNAMED_ENDPOINT = "chat.completions"  # where answers are filed whose app named no endpoint


def wrap(client: object, recorder: Callable[[], Client], dimensions: Mapping[str, Any], request_logprobs: bool) -> None:
    """Never raises; an object no hook knows gets one warning and stays as it is."""
    try:
        own = scope.known(dimensions, "wrap")
        settings = Settings(recorder, {"endpoint": UNNAMED_ENDPOINT, **own}, bool(request_logprobs))
        for hook in HOOKS:
            if hook.recognises(client):
                hook.watch(client, settings)
                return
        log.warning(
            "cmerwatch: wrap() does not know %s; it is returned as it is and not recorded. It takes OpenAI, "
            "AsyncOpenAI and their subclasses (for any server with an OpenAI-style API, by base_url)",
            type(client).__qualname__,
        )
    except Exception as error:
        log.warning("cmerwatch: wrap() failed (%s); the client works but is not recorded", type(error).__name__)
