"""UUIDv7 identifiers: time-ordered, so that day partitions on the id prune and inserts stay local."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import uuid

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def uuid7(at: dt.datetime | None = None) -> uuid.UUID:
    """A random UUIDv7 for `at` (default now). RFC 9562: 48-bit ms, version, 12 bits, variant, 62 bits."""
    random = int.from_bytes(os.urandom(10))
    value = _milliseconds(at or dt.datetime.now(dt.UTC)) << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62
    return uuid.UUID(int=value | (random & (2**62 - 1)))


def first(at: dt.datetime) -> uuid.UUID:
    """The smallest UUIDv7 of a millisecond: a partition bound or the end of a keyset page."""
    return uuid.UUID(int=_milliseconds(at) << 80 | 0x7 << 76 | 0b10 << 62)


def moment(value: uuid.UUID) -> dt.datetime:
    """The millisecond an id was made."""
    return _EPOCH + dt.timedelta(milliseconds=value.int >> 80)


def key_hash(event_key: str) -> bytes:
    """How a sender's own id is kept and looked up: of one length, whatever was sent."""
    return hashlib.sha256(event_key.encode("utf-8", "replace")).digest()


def _milliseconds(at: dt.datetime) -> int:
    """In whole numbers: `timestamp() * 1000` is a float that falls into the millisecond before for one in a few."""
    return max(0, (at - _EPOCH) // dt.timedelta(milliseconds=1))  # no ids before 1970
