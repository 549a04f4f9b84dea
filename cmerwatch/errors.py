"""Everything cmerwatch can refuse, drawn as one tree; the HTTP edge renders it, the core only raises it.

CmerwatchError
├── Unauthenticated     401  no key, an unknown key, a revoked key
├── Forbidden           403  the key or user lacks the scope
├── NotFound            404  absent, or another project's (the two are never told apart)
├── Conflict            409  same id with another body; a verdict after the lease was lost
│   └── LeaseLost       409
├── TooLarge            413  body, part or image over its limit
├── Invalid             422  a field is wrong; names the field and the limit
│   ├── ImageUnknown    422  an event names a sha256 this project never uploaded
│   ├── ImageRefused    422  not an image, a format off the list, too many pixels, hash mismatch
│   └── TextTooLong     422  a text over the checker's context length
├── QuotaExceeded       429
└── Unavailable         503  database or storage cannot promise durability now
    └── StorageFull     503
StartRefused                 a setting, bundle or checkpoint that must stop the start
"""

from __future__ import annotations

from typing import Any


class CmerwatchError(Exception):
    """Something went wrong."""

    status = 500
    code = "internal"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])


class Unauthenticated(CmerwatchError):
    """Send a valid API key as `Authorization: Bearer <key>`."""

    status = 401
    code = "unauthenticated"


class Forbidden(CmerwatchError):
    """This key or user is not allowed to do that."""

    status = 403
    code = "forbidden"


class NotFound(CmerwatchError):
    """There is no such object in this project."""

    status = 404
    code = "not_found"


class Conflict(CmerwatchError):
    """This id was already used with another body."""

    status = 409
    code = "conflict"


class LeaseLost(Conflict):
    """Someone else holds this item now."""

    code = "lease_lost"


class TooLarge(CmerwatchError):
    """The body is over the limit."""

    status = 413
    code = "too_large"


class Invalid(CmerwatchError):
    """A field is not valid. `details["field"]` names it."""

    status = 422
    code = "invalid"


class ImageUnknown(Invalid):
    """The event names an image this project has not uploaded."""

    code = "image_unknown"


class ImageRefused(Invalid):
    """The image is not one cmerwatch accepts."""

    code = "image_refused"


class TextTooLong(Invalid):
    """The text is longer than the checker's context."""

    code = "text_too_long"


class QuotaExceeded(CmerwatchError):
    """Too many requests; retry after the time given."""

    status = 429
    code = "quota_exceeded"


class Unavailable(CmerwatchError):
    """The service cannot store events durably right now; retry after the time given."""

    status = 503
    code = "unavailable"


class StorageFull(Unavailable):
    """The disk is full; nothing was accepted. Free space and retry."""

    code = "storage_full"


class StartRefused(CmerwatchError):
    """cmerwatch refuses to start like this."""

    code = "start_refused"
