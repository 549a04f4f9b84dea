"""The Chat Completions format, read by reference: nothing is copied, decoded or hashed here.

Requests are the plain dicts that travel; answers are objects, and no library is imported to read them. They are read by
their `__dict__`: the attributes of a pydantic model take twice as long.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

SENTINEL = -9999.0  # what servers write for "not among the top tokens"; the cmerwatch server leaves it out of means
LOWEST = -1e4  # the lowest logprob the cmerwatch server takes
ROUNDING = 1e-3  # servers that compute in half precision answer logprobs a little above 0
TOKEN_BYTES = 100  # a short string, a float, and their places in two lists
TOKEN, LOGPROB = operator.attrgetter("token"), operator.attrgetter("logprob")
TOLD = ("id", "model", "system_fingerprint", "usage")
NOTHING: dict[str, Any] = {}
PARAMETERS = ("temperature", "top_p", "seed")


class Answer:
    """One choice of one answer, complete or as far as it came."""

    __slots__ = ("finish_reason", "index", "logprobs", "refusal", "text", "tokens")

    def __init__(self, index: int = 0, finish_reason: str | None = None) -> None:
        self.index = index
        self.finish_reason = finish_reason
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.tokens: list[str] = []
        self.logprobs: list[float] = []

    def say(self, message: Any) -> None:
        """message: a message or a delta."""
        given = getattr(message, "__dict__", NOTHING)
        content, refusal = given.get("content"), given.get("refusal")
        if content and isinstance(content, str):
            self.text.append(content)
        if refusal and isinstance(refusal, str):
            self.refusal.append(refusal)

    def extend(self, logprobs: Any) -> None:
        """Adds `{content: [{token, logprob}], refusal: [...]}`. One chunk may hold several tokens, or none.

        At once, 0.1 us a token: what is kept of each entry is a hundredth of the entry, and gives the collector
        nothing to walk through while events wait."""
        given = getattr(logprobs, "__dict__", NOTHING)
        for entries in (given.get("content"), given.get("refusal")):
            if entries:
                self.tokens.extend(map(TOKEN, entries))
                self.logprobs.extend(map(LOGPROB, entries))


class Reply:
    """What came back for one request. `told` is what stands beside the choices: id, model, usage and so on."""

    __slots__ = ("answers", "told")

    def __init__(self, told: dict[str, Any], answers: dict[int, Answer]) -> None:
        self.told = told
        self.answers = answers

    def add(self, chunk: Any) -> None:
        """One chunk of a stream; the one that carries the usage has no choices."""
        given = vars(chunk)
        for name in TOLD:
            value = given.get(name)
            if value is not None:
                self.told[name] = value
        for choice in given.get("choices") or ():
            part = getattr(choice, "__dict__", NOTHING)
            index = part["index"]
            answer = self.answers.get(index)
            if answer is None:
                answer = self.answers[index] = Answer(index)
            answer.say(part.get("delta"))
            answer.extend(part.get("logprobs"))
            answer.finish_reason = part.get("finish_reason") or answer.finish_reason


def read(completion: Any) -> Reply | None:
    """A whole answer; None for what is none."""
    told = dict(getattr(completion, "__dict__", NOTHING))
    choices = told.pop("choices", None)
    if not choices:
        return None
    answers: dict[int, Answer] = {}
    for place, choice in enumerate(choices):
        part = getattr(choice, "__dict__", NOTHING)
        answer = answers[place] = Answer(place, part.get("finish_reason"))
        answer.say(part.get("message"))
        answer.extend(part.get("logprobs"))
    return Reply(told, answers)


def question(body: Any) -> tuple[list[str], list[str]] | None:
    """(addresses of the pictures, lines of the prompt); None when no message of the request shows a picture.

    A turn is what was said since the model last answered. The pictures are those of the newest turn that shows any:
    a follow-up is about the last picture seen, and the pictures of earlier turns or of worked examples are not what
    this answer is about. The prompt is the user's text of the newest turn that has some, else the system's.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, (list, tuple)):
        return None
    pictures: list[str] = []
    user: list[str] = []
    system: list[str] = []
    seen = asked = False
    for message in reversed(messages):
        if not isinstance(message, dict):
            continue
        role = message.get("role")
        if role == "assistant":
            seen, asked = bool(pictures), bool(user)
            if seen and asked:
                break
            continue
        shown, said = _parts(message.get("content"))
        if shown and not seen:
            pictures = shown + pictures
        if role == "user":
            user = user if asked else said + user
        elif role == "system" or role == "developer":
            system = said + system
    if not pictures:
        return None
    return pictures, user or system


def _parts(content: Any) -> tuple[list[str], list[str]]:
    """(pictures, texts). Addresses go on as addresses: a path in one would have the app's own files read and sent."""
    if isinstance(content, str):
        return [], [content] if content else []
    shown: list[str] = []
    said: list[str] = []
    for part in content if isinstance(content, (list, tuple)) else ():
        if isinstance(part, dict):
            text, url = part.get("text"), part.get("image_url")
            if text and isinstance(text, str):
                said.append(text)
            if isinstance(url, dict):  # some servers take the bare string
                url = url.get("url")
            if url and isinstance(url, str):
                shown.append(url)
    return shown, said


def confidence(answer: Answer, output: str) -> tuple[list[str], list[float]] | None:
    """(tokens, logprobs) of the output; None when the numbers are no logprobs."""
    tokens, logprobs = answer.tokens, answer.logprobs
    if not all(isinstance(value, (int, float)) and LOWEST <= value <= 0 for value in logprobs):
        repaired = [_repair(value) for value in logprobs]
        if None in repaired:
            return None
        logprobs = [value for value in repaired if value is not None]
    if not any(value > SENTINEL for value in logprobs):
        return None
    start = _thoughts(tokens, output)
    return tokens[start:], logprobs[start:]


def _repair(value: Any) -> float | None:
    """-inf and NaN are tokens of unknown probability, a hair above 0 is rounding; anything else is no logprob."""
    if not isinstance(value, (int, float)):
        return None
    if value > 0:
        return 0.0 if value <= ROUNDING else None
    return float(value) if value >= LOWEST else SENTINEL


def _thoughts(tokens: Sequence[str], output: str) -> int:
    """How many tokens come before the output: some servers count the reasoning that the text leaves out."""
    said = "".join(tokens)
    # From behind, and not by rfind: over repeated text that takes quadratic time, with the GIL held.
    behind = said[::-1].find(output[::-1])
    before = len(said) - len(output) - behind if behind >= 0 else 0
    if before <= 0:
        return 0  # the usual case; or tokens that do not spell the text, such as half a character each
    length = 0
    for place, token in enumerate(tokens):
        if length == before:
            return place
        length += len(token)
    return 0


def plain(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Only what JSON has and what says something."""
    return {name: value for name, value in values if isinstance(value, (str, int, float))}
