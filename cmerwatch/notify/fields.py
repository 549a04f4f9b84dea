"""Reading what a person entered for a channel, and showing of it only what is no secret. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from cmerwatch import errors


def only(given: Mapping[str, str], *known: str) -> None:
    """Raises Invalid for a field this kind does not have: a typo must not be dropped silently."""
    for name in given:
        if name not in known:
            raise errors.Invalid(f"`{name}` is no field of this kind; it has: {', '.join(known)}.", field=name)


def url(given: Mapping[str, str], name: str) -> str:
    """Only that it is there: what it may point to is for the outbound guard."""
    value = given.get(name, "").strip()
    if not value:
        raise errors.Invalid(f"`{name}` is empty; enter the address that messages are sent to.", field=name)
    return value


def token(given: Mapping[str, str], name: str, pattern: str, what: str) -> str:
    value = given.get(name, "").strip()
    if not re.fullmatch(pattern, value):
        raise errors.Invalid(f"`{name}` must be {what}.", field=name)
    return value


def masked_url(value: str) -> str:
    """The host, and the last four characters where there are enough others to keep the rest secret."""
    split = urlsplit(value)
    rest = value.partition(split.netloc)[2]
    return split.netloc + ("/…" + rest[-4:] if len(rest) > 20 else "/…" if len(rest) > 1 else "")
