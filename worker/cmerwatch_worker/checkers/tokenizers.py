"""Text to token ids without torch: one class per kind of tokenizer.json a bundle may hold."""

import html
import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmerwatch import errors
from cmerwatch_worker import languages


class Tokenizer(Protocol):
    """Turns one text into ids with its start and end marks, never shortened. `pad_id` fills what follows them."""

    context_length: int
    pad_id: int

    def encode(self, text: str) -> list[int]: ...

    def can_read(self, text: str) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...


class Words:
    """Whole words of a small closed vocabulary, any other word letter by letter.

    Case and punctuation carry nothing. The end mark has the highest id, which is where CLIP's argmax pooling looks.
    """

    kind = "words"
    pad_id = 0

    def __init__(self, vocabulary: Sequence[str], context_length: int) -> None:
        self.vocabulary = list(vocabulary)
        self.context_length = context_length
        self._ids = {word: i for i, word in enumerate(self.vocabulary)}
        self._start, self._end = self._ids["<start>"], self._ids["<end>"]
        self._unknown = self._ids["<unknown>"]
        if self._end != len(self.vocabulary) - 1:
            raise ValueError("the end mark must be the last word of the vocabulary")

    def encode(self, text: str) -> list[int]:
        """Ids of the text between the start and end marks; letters outside the vocabulary become <unknown>."""
        return [self._start, *self._inner(text), self._end]

    def can_read(self, text: str) -> bool:
        """Whether at least half of the text is words and letters of the vocabulary, which are English."""
        ids = self._inner(text)
        return bool(ids) and 2 * ids.count(self._unknown) <= len(ids) and not languages.is_foreign(text)

    def _inner(self, text: str) -> list[int]:
        return [i for word in re.findall(r"[^\W_]+", text.lower()) for i in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word in self._ids:
            return [self._ids[word]]
        return [self._ids.get(letter, self._unknown) for letter in word]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "context_length": self.context_length, "vocabulary": self.vocabulary}


class Bpe:
    """CLIP's byte-pair encoding, from its list of merges; lower case, as CLIP text towers were trained.

    A text that spells out "<end_of_text>" is read as those letters, never as the mark: outputs are not to be trusted.
    """

    kind = "clip-bpe"
    pad_id = 0

    def __init__(self, merges: Sequence[Sequence[str]], context_length: int) -> None:
        self.merges = [(a, b) for a, b in merges]
        self.context_length = context_length
        letters = list(_byte_letters().values())
        vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in self.merges)]
        self._ids = {piece: i for i, piece in enumerate([*vocabulary, "<start_of_text>", "<end_of_text>"])}
        self._ranks = {pair: i for i, pair in enumerate(self.merges)}
        self._pieces = lru_cache(maxsize=20_000)(self._merged)

    def encode(self, text: str) -> list[int]:
        return [self._ids["<start_of_text>"], *self._inner(text), self._ids["<end_of_text>"]]

    def can_read(self, text: str) -> bool:
        """Whether it can be English, which models with this encoding were trained on: it has ids for every byte, and a
        text of other letters or another language gets a cosine that says nothing."""
        return bool(self._inner(text)) and languages.is_latin(text) and not languages.is_foreign(text)

    def _inner(self, text: str) -> list[int]:
        letters = _byte_letters()
        words = (
            "".join(letters[byte] for byte in word.encode("utf-8", "replace")) for word in split_words(_clean(text))
        )
        return [self._ids[piece] for word in words for piece in self._pieces(word)]

    def _merged(self, word: str) -> tuple[str, ...]:
        """The pieces of one word: the best-ranked neighbouring pair is joined until none is known."""
        pieces = (*word[:-1], word[-1] + "</w>")
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            pieces = _join(pieces, best)
        return pieces

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "context_length": self.context_length,
            "merges": [list(pair) for pair in self.merges],
        }


class HuggingFace:
    """A fast tokenizer of Hugging Face's `tokenizers` package, from its own JSON, with open_clip's cleaning before it.

    `drop_id`: an id that open_clip replaces by 0 for some models (their separator).
    """

    kind = "huggingface"

    def __init__(self, model: Mapping[str, Any], context_length: int, clean: str, pad_id: int, drop_id: int | None):
        """errors.StartRefused: the package is not installed. ValueError: JSON or settings it does not know."""
        try:
            import tokenizers
        except ImportError:
            raise errors.StartRefused(
                "this checker's tokenizer needs one more package; run: pip install 'cmerwatch[tokenizers]'"
            ) from None
        if clean not in _CLEANERS:
            raise ValueError(f"clean must be one of {', '.join(_CLEANERS)}, not {clean!r}")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(model))
        except Exception as error:  # the package raises bare Exceptions
            raise ValueError(f"tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.context_length, self.pad_id = context_length, pad_id
        self._clean, self._drop_id = clean, drop_id
        unknown = model.get("model", {}).get("unk_token")
        self._unknown = self._tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(_CLEANERS[self._clean](text)).ids
        return ids if self._drop_id is None else [0 if i == self._drop_id else i for i in ids]

    def can_read(self, text: str) -> bool:
        """Whether at least half of the text is known."""
        cleaned = _CLEANERS[self._clean](text)
        ids = self._tokenizer.encode(cleaned, add_special_tokens=False).ids
        return bool(ids) and (self._unknown is None or 2 * ids.count(self._unknown) <= len(ids))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "context_length": self.context_length,
            "clean": self._clean,
            "pad_id": self.pad_id,
            "drop_id": self._drop_id,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }


def from_json(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer a tokenizer.json describes. ValueError: a kind this version does not know."""
    kind, context_length = data.get("kind"), int(data.get("context_length", 0))
    if kind == Words.kind:
        return Words(data["vocabulary"], context_length)
    if kind == Bpe.kind:
        return Bpe(data["merges"], context_length)
    if kind == HuggingFace.kind:
        return HuggingFace(data["tokenizer"], context_length, data["clean"], int(data["pad_id"]), data["drop_id"])
    raise ValueError(f"tokenizer kind {kind!r} is not one of {Words.kind}, {Bpe.kind}, {HuggingFace.kind}")


def batch(tokenizer: Tokenizer, texts: Sequence[str], width: int | None = None) -> NDArray[np.int64]:
    """(n, width) ids, padded after each text; width None: as wide as the longest. Raises TextTooLong, cuts nothing."""
    rows = [tokenizer.encode(text) for text in texts]
    longest = max((len(row) for row in rows), default=0)
    if longest > tokenizer.context_length:
        raise too_long(longest, tokenizer.context_length)
    ids = np.full((len(rows), width or longest), tokenizer.pad_id, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def too_long(tokens: int, limit: int) -> errors.TextTooLong:
    """The refusal of a text over the context, which every runtime answers in the same words."""
    return errors.TextTooLong(
        f"a text has {tokens} tokens, more than the checker's context of {limit}; split it into shorter claims",
        field="text", tokens=tokens, limit=limit,
    )  # fmt: skip


def split_words(text: str) -> list[str]:
    """CLIP's word pattern: clitics, runs of letters, single digits, runs of anything else that is no space."""
    words: list[str] = []
    at = 0
    while at < len(text):
        end = _word_end(text, at)
        if not text[at:end].isspace():
            words.append(text[at:end])
        at = end
    return words


# open_clip repairs texts with another package first; this is the part of it that model outputs meet every day.
_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"'})


def _clean(text: str) -> str:
    return _plain(text).lower()


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(_STRAIGHT))
    return " ".join(plain.split())


def _canonical(text: str) -> str:
    """As SigLIP was trained: no punctuation of ASCII, lower case."""
    bare = _plain(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(bare.lower().split())


_CLEANERS: dict[str, Callable[[str], str]] = {"whitespace": _plain, "lower": _clean, "canonicalize": _canonical}


_CLITIC = re.compile(r"'(?:s|t|re|ve|m|ll|d)")


def _word_end(text: str, at: int) -> int:
    kind = _kind(text[at])
    if found := _CLITIC.match(text, at):
        return found.end()
    end = at + 1
    if kind == "N":
        return end
    # A clitic ends no run of other signs: the pattern tries clitics only where a word starts.
    while end < len(text) and _kind(text[end]) == kind:
        end += 1
    return end


def _kind(letter: str) -> str:
    """L letter, N number, Z space, otherwise O."""
    if letter.isspace():
        return "Z"
    first = unicodedata.category(letter)[0]
    return first if first in "LN" else "O"


def _join(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    at = 0
    while at < len(pieces):
        if pieces[at : at + 2] == pair:
            joined.append("".join(pair))
            at += 2
        else:
            joined.append(pieces[at])
            at += 1
    return tuple(joined)


@lru_cache(maxsize=1)
def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte: itself where it has a sign of its own, else one from U+0100 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in own}
    rest = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + i) for i, byte in enumerate(rest)}
