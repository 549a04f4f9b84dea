"""Whether a text is in another language than English, by its smallest words. Pure.

Most checkers were trained on English alone. They give any text some cosine, and of a German sentence it says little:
such a text has to be told apart, not scored. In doubt a text passes for English, as names and single words do.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# fmt: off
_ENGLISH = frozenset((
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "by", "to", "for", "from", "with", "without", "into",
    "is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "does", "do", "did", "can", "will",
    "would", "it", "its", "this", "that", "these", "those", "there", "here", "they", "their", "he", "she", "his", "her",
    "you", "i", "we", "what", "which", "who", "where", "how", "why", "when", "not", "no", "yes", "one", "two", "three",
    "some", "as", "up", "out", "over", "under", "near", "behind", "between", "left", "right", "next", "also", "very",
))
# In no English sentence but as a quotation.
_SURE = frozenset((
    # German, Dutch
    "dem", "und", "ist", "sind", "nicht", "ein", "eine", "einen", "einem", "einer", "auf", "mit", "zeigt", "wird",
    "sich", "auch", "wie", "welche", "welcher", "welches", "gibt", "keine", "kein", "steht", "bild", "het", "een",
    "niet", "zijn", "wordt", "voor", "naar", "deze", "ook",
    # Spanish, Portuguese, Italian
    "una", "uno", "hay", "qué", "está", "están", "muy", "también", "cuántos", "cuántas", "dónde", "sobre", "imagen",
    "muestra", "uma", "não", "são", "há", "imagem", "mostra", "onde", "quantos", "della", "sono", "che", "nel",
    "nella", "è", "gli", "quanti", "questa", "questo", "immagine",
    # French
    "une", "est", "les", "dans", "avec", "sur", "sont", "pas", "qui", "où", "quelle", "quel", "combien", "cette",
    "ces", "aux", "montre",
    # Polish, Czech, Swedish, Danish, Norwegian, Turkish, Romanian
    "jest", "się", "nie", "czy", "są", "jsou", "není", "och", "är", "inte", "på", "ett", "ikke", "og", "bir", "değil",
    "este", "sunt", "și",
))
# In names or in English too ("Rio de Janeiro", "Los Angeles"), so they count beside others only.
_WEAK = frozenset((
    "de", "la", "le", "el", "du", "del", "di", "da", "von", "van", "un", "et", "e", "es", "en", "im", "am", "zu",
    "den", "des", "al", "que", "si", "se", "os", "ja", "nein", "sí", "oui", "non", "los", "las", "il", "y", "em",
    "na", "som", "var", "nu", "ve", "wo", "das", "der", "met",
))
# fmt: on
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|‘[^’]*’|(?<!\w)'[^']*'(?!\w)")
_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
LONGEST = 2000  # characters looked at: the language of a text shows in its first sentences


@functools.lru_cache(maxsize=4096)  # apps ask the same again and again
def is_foreign(text: str) -> bool:
    """Whether it reads as another language. What stands in quotation marks is what somebody wrote on a wall."""
    english, strong, weak = _counts(text)
    if strong:
        return strong + weak > english
    return weak >= 3 and english == 0


def is_surely_english(text: str) -> bool:
    """Whether most of its small words are; a name, a number or a single noun shows nothing."""
    english, strong, weak = _counts(text)
    return english > strong + weak


def _counts(text: str) -> tuple[int, int, int]:
    """Small words of English, of other languages, and those that may be a name's."""
    words = [word.lower() for word in _WORDS.findall(_QUOTED.sub(" ", text[:LONGEST]))]
    weak = sum(word in _WEAK for word in words)
    return sum(word in _ENGLISH for word in words), sum(word in _SURE for word in words), weak


def is_latin(text: str) -> bool:
    """Whether at least half of the letters are; True where there is none."""
    letters = [c for c in text[:LONGEST] if c.isalpha()]
    return 2 * sum(map(_is_latin_letter, letters)) >= len(letters)


@functools.lru_cache(maxsize=4096)
def _is_latin_letter(c: str) -> bool:
    return c.isascii() or unicodedata.name(c, "").startswith(("LATIN", "FULLWIDTH LATIN"))
