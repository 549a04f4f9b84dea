"""Model and user text made safe to look at: characters that hide or reorder text become visible marks."""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass, field

ZERO_WIDTH_JOINER = "\u200d"
VARIATION_SELECTORS = ("\ufe0e", "\ufe0f")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of plain characters, or one hidden character and how often it repeats; `length` counts the characters."""

    text: str
    is_hidden: bool = False
    length: int = field(default=0, compare=False)


def pieces(value: str) -> list[Piece]:
    """Split into plain runs and hidden characters; joining the texts of plain input gives it back."""
    found: list[Piece] = []
    for hidden, run in itertools.groupby(_marked(value), key=lambda pair: pair[1]):
        characters = "".join(character for character, _ in run)
        if hidden:
            counted = [(c, len(list(same))) for c, same in itertools.groupby(characters)]
            found += [Piece(_name(c, n), True, n) for c, n in counted]
        else:
            found.append(Piece(characters, False, len(characters)))
    return found


def visible(value: str) -> str:
    """The same as one string, for titles and attributes."""
    return "".join(f"⟨{piece.text}⟩" if piece.is_hidden else piece.text for piece in pieces(value))


def shorten(value: str, limit: int) -> str:
    """At most `limit` characters, an ellipsis where something was cut."""
    return value if len(value) <= limit else value[: limit - 1].rstrip() + "…"


def _marked(value: str) -> list[tuple[str, bool]]:
    return [(character, _is_hidden(character, value[at - 1] if at else "")) for at, character in enumerate(value)]


def _is_hidden(character: str, before: str) -> bool:
    """Controls but newline and tab, format characters (bidi, zero-width, tags), separators of lines and paragraphs.

    A joiner after a picture character is how families and flags are written, not a way to hide text.
    """
    if character in "\n\t":
        return False
    if character == ZERO_WIDTH_JOINER and before:
        return not (unicodedata.category(before) in ("So", "Sk") or before in VARIATION_SELECTORS)
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")


def _name(character: str, count: int) -> str:
    return f"U+{ord(character):04X}" + (f" ×{count}" if count > 1 else "")
