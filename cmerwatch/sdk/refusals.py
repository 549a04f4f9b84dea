"""What a server's refusal says, made fit for a log: short, on one line, and without the event's own text."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

CODE = re.compile(r"[a-z0-9_.\[\]]{1,64}")
MAX_SENTENCE = 300
# A run of the event's text this long is taken for a quotation: our servers quote none, a proxy's page may echo it all.
QUOTED = 12
NEW_KEY = (
    "make a key with the scope ingest on the console (Settings, Keys) or with "
    "`cmerwatch key create --project <slug> --scope ingest`"
)
_OWN_TEXTS = ("output", "prompt", "customer", "metadata", "tokens")


def code(result: Mapping[str, Any]) -> str:
    error = result.get("error")
    found = error.get("code") if isinstance(error, dict) else error
    return found if isinstance(found, str) and CODE.fullmatch(found) else ""


def reason(result: Mapping[str, Any]) -> str:
    """Code and field: never anything of the event."""
    error = result.get("error")
    details = error.get("details") if isinstance(error, dict) else None
    named = details.get("field") if isinstance(details, dict) else None
    field = f" ({named})" if isinstance(named, str) and CODE.fullmatch(named) else ""
    return (code(result) or f"HTTP {result.get('http', 'answer not understood')}") + field


def sentence(result: Mapping[str, Any], event: bytes) -> str:
    """The server's own words, or '' where it said none or they quote `event` (its JSON as sent)."""
    error = result.get("error")
    said = error.get("message") if isinstance(error, dict) else None
    if not isinstance(said, str):
        return ""
    line = " ".join("".join(c for c in word if c.isprintable()) for word in said[: 2 * MAX_SENTENCE].split())
    if any(_quotes(line, text) for text in _texts(json.loads(event))):
        return ""
    return line if len(line) <= MAX_SENTENCE else line[: MAX_SENTENCE - 1] + "…"


def _texts(event: Mapping[str, Any]) -> Iterator[str]:
    waiting = [event.get(name) for name in _OWN_TEXTS]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield " ".join(value.split())
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            # Tokens are cut anywhere: joined they are the text that might be quoted.
            waiting += ["".join(value)] if value and all(isinstance(one, str) for one in value) else value


def _quotes(line: str, text: str) -> bool:
    if len(text) < QUOTED:
        return bool(text) and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", line) is not None
    return any(line[at : at + QUOTED] in text for at in range(len(line) - QUOTED + 1))
