"""UUIDv7 identifiers: time-ordered, so that day partitions on the id prune and inserts stay local."""

from __future__ import annotations

import datetime as dt
import os
import uuid


def uuid7(at: dt.datetime | None = None) -> uuid.UUID:
    """A random UUIDv7 for `at` (default now). RFC 9562: 48-bit ms, version, 12 bits, variant, 62 bits."""
    moment = at or dt.datetime.now(dt.UTC)
    milliseconds = int(moment.timestamp() * 1000)
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62
    return uuid.UUID(int=value | (random & (2**62 - 1)))


def first(at: dt.datetime) -> uuid.UUID:
    """The smallest UUIDv7 of a millisecond: a partition bound or the end of a keyset page."""
    return uuid.UUID(int=(int(at.timestamp() * 1000) & (2**48 - 1)) << 80 | 0x7 << 76 | 0b10 << 62)


def moment(value: uuid.UUID) -> dt.datetime:
    """The millisecond an id was made."""
    return dt.datetime.fromtimestamp((value.int >> 80) / 1000, dt.UTC)
