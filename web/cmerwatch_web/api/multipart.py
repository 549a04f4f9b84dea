"""Bodies of multipart/form-data (RFC 7578) that are held whole: found by search, which costs a picture one pass.

Parsers made for streams look at each byte of each header in Python; reading an event would cost less than this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from python_multipart.multipart import parse_options_header

from cmerwatch import errors

MAX_BOUNDARY_BYTES = 256  # RFC 2046 allows 70
MAX_HEADER_BYTES = 4096  # of one part: its name is at most "sha256:" and 64 digits

_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:([^\r\n]*)", re.IGNORECASE)


def parts(body: bytes, boundary: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, data) of each part in order. Raises Invalid, also after some were given.

    Text before the first boundary or after the last is refused or left alone: no client of ours sends any.
    """
    delimiter = b"\r\n--" + boundary
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES or not body.startswith(delimiter[2:]):
        raise _not_multipart()
    at = len(delimiter) - 2
    while not body.startswith(b"--", at):
        header_end = body.find(b"\r\n\r\n", at, at + MAX_HEADER_BYTES)
        end = body.find(delimiter, header_end + 4)
        if not body.startswith(b"\r\n", at) or header_end < 0 or end < 0:
            raise _not_multipart()
        yield _name(body[at + 2 : header_end]), body[header_end + 4 : end]
        at = end + len(delimiter)


def _name(header: bytes) -> str:
    found = _DISPOSITION.search(header)
    options = parse_options_header(found[1])[1] if found else {}
    return options.get(b"name", b"").decode("utf-8", "replace")


def _not_multipart() -> errors.Invalid:
    return errors.Invalid("The body is not well-formed multipart/form-data, or was cut off.", field="body")
