"""What people type to name things: kept as typed, but never empty, endless or holding characters nobody can see."""

from __future__ import annotations

import unicodedata

from cmerwatch import errors

MAX_NAME, MAX_LOGIN = 200, 120
_JOINERS = "\u200c\u200d"  # how Persian words and families of emoji are written


def label(value: str, field: str = "name", limit: int = MAX_NAME) -> str:
    """A name in any script, trimmed. Raises Invalid naming the field and the limit."""
    return _checked(value.strip(), field, limit)


def login(value: str) -> str:
    """A login, trimmed: no spaces, so that it stands as it is in a command."""
    found = _checked(value.strip(), "login", MAX_LOGIN)
    if any(character.isspace() for character in found) or any(joiner in found for joiner in _JOINERS):
        raise errors.Invalid("login must not hold spaces or characters that cannot be seen.", field="login")
    return found


def _checked(value: str, field: str, limit: int) -> str:
    if not 1 <= len(value) <= limit:
        raise errors.Invalid(f"{field} has {len(value)} characters; use 1 to {limit}.", field=field, limit=limit)
    if any(_is_unseen(character) for character in value):
        raise errors.Invalid(
            f"{field} holds a character that cannot be seen (a control or a text direction mark); type it again.",
            field=field,
        )
    return value


def _is_unseen(character: str) -> bool:
    return character not in _JOINERS and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
