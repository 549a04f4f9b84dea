"""The Chat Completions format, read by reference: nothing is copied, decoded or hashed here.

Requests are the plain dicts that travel; answers are objects read by attribute, so that no library is imported.
"""

import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

SENTINEL = -9999.0  # what servers write for "not among the top tokens"; the cmerwatch server leaves it out of means
LOWEST = -1e4  # the lowest logprob the cmerwatch server takes
ROUNDING = 1e-3  # servers that compute in half precision answer logprobs a little above 0
TOKEN_BYTES = 100  # a short string, a float, and their places in two lists
TOKEN, LOGPROB = operator.attrgetter("token"), operator.attrgetter("logprob")
PARAMETERS = ("temperature", "top_p", "seed")


@dataclass(slots=True)
class Question:
    """What the model was asked. `pictures` is `{"url": ...}` of each."""

    pictures: list[dict[str, str]]
    prompt: str

    def size(self) -> int:
        """Bytes of memory it keeps alive."""
        size = sys.getsizeof(self.prompt)
        for picture in self.pictures:
            size += sys.getsizeof(picture["url"])
        return size


@dataclass(slots=True)
class Answer:
    """One choice of one answer, complete or as far as it came."""

    index: int = 0
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, logprobs: Any) -> None:
        """Adds `{content: [{token, logprob}], refusal: [...]}`. One chunk may hold several tokens, or none.

        At once, 0.1 us a token: what is kept of each entry is a hundredth of the entry, and gives the collector
        nothing to walk through while events wait."""
        if logprobs is None:
            return
        for entries in (getattr(logprobs, "content", None), getattr(logprobs, "refusal", None)):
            if entries:
                self.tokens.extend(map(TOKEN, entries))
                self.logprobs.extend(map(LOGPROB, entries))


@dataclass(slots=True)
class Reply:
    """What came back for one request."""

    response_id: str | None = None
    model: str | None = None
    fingerprint: str | None = None
    usage: Any = None
    answers: dict[int, Answer] = field(default_factory=dict)

    def note(self, response: Any) -> None:
        """What stands beside the choices, in an answer and in each of its chunks."""
        self.response_id = self.response_id or getattr(response, "id", None)
        self.model = self.model or getattr(response, "model", None)
        self.fingerprint = self.fingerprint or getattr(response, "system_fingerprint", None)
        self.usage = getattr(response, "usage", None) or self.usage

    def add(self, chunk: Any) -> None:
        """One chunk of a stream; the one that carries the usage has no choices."""
        self.note(chunk)
        for choice in getattr(chunk, "choices", None) or ():
            answer = self.answers.setdefault(choice.index, Answer(choice.index))
            _say(answer, getattr(choice, "delta", None))
            answer.extend(getattr(choice, "logprobs", None))
            answer.finish_reason = getattr(choice, "finish_reason", None) or answer.finish_reason


def read(completion: Any) -> Reply:
    """A whole answer."""
    reply = Reply()
    reply.note(completion)
    for place, choice in enumerate(completion.choices):
        answer = reply.answers[place] = Answer(place, finish_reason=getattr(choice, "finish_reason", None))
        _say(answer, getattr(choice, "message", None))
        answer.extend(getattr(choice, "logprobs", None))
    return reply


def _say(answer: Answer, message: Any) -> None:
    """message: a message or a delta."""
    content, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
    if content and isinstance(content, str):
        answer.text.append(content)
    if refusal and isinstance(refusal, str):
        answer.refusal.append(refusal)


def question(messages: Any) -> Question | None:
    """None when no message shows a picture.

    A turn is what was said since the model last answered. The pictures are those of the newest turn that shows any:
    a follow-up is about the last picture seen, and the pictures of earlier turns or of worked examples are not what
    this answer is about. The prompt is the user's text of the newest turn that has some, else the system's.
    """
    if not isinstance(messages, (list, tuple)):
        return None
    pictures: list[dict[str, str]] = []
    words: dict[str, list[str]] = {"user": [], "system": [], "developer": []}
    seen = asked = False
    for message in reversed(messages):
        if not isinstance(message, dict):
            continue
        role = message.get("role")
        if role == "assistant":
            seen, asked = bool(pictures), bool(words["user"])
            if seen and asked:
                break
            continue
        shown, said = _parts(message.get("content"))
        if shown and not seen:
            pictures[:0] = shown
        if said and isinstance(role, str) and role in words and not (role == "user" and asked):
            words[role][:0] = said
    if not pictures:
        return None
    return Question(pictures, "\n".join(words["user"] or words["system"] + words["developer"]))


def _parts(content: Any) -> tuple[list[dict[str, str]], list[str]]:
    """(pictures, texts). Addresses go on as addresses: a path in one would have the app's own files read and sent."""
    if isinstance(content, str):
        return [], [content] if content else []
    shown, said = [], []
    for part in content if isinstance(content, (list, tuple)) else ():
        if isinstance(part, dict):
            text, url = part.get("text"), _address(part.get("image_url"))
            if text and isinstance(text, str):
                said.append(text)
            if url:
                shown.append({"url": url})
    return shown, said


def _address(given: Any) -> str | None:
    """`image_url` is `{"url": ...}`; some servers take the bare string."""
    url = given.get("url") if isinstance(given, dict) else given
    return url if isinstance(url, str) else None


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
    before = said.rfind(output)
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
