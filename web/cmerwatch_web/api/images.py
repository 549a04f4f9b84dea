"""Images ahead of their events: ask which bytes are missing, send only those."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse

from cmerwatch import errors, events
from cmerwatch import images as image_headers
from cmerwatch_web import deps
from cmerwatch_web.api import arrivals, bodies, schemas

router = APIRouter(prefix="/v1/images", tags=["images"])

MAX_HASHES = 1024  # 16 images of each of 64 events
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def _whole_body(request: Request) -> bytes:
    return await request.body()


async def _image_bytes(request: Request) -> bytes:
    """Refused by its stated length before a byte is read, else at the byte that is too many."""
    limit = request.app.state.settings.max_image_bytes
    if int(request.headers.get("content-length", "0")) > limit:
        raise schemas.image_too_large("body", limit)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise schemas.image_too_large("body", limit)
    return bytes(data)


@router.post("/missing")
def post_missing(
    principal: deps.MayIngest, body: Annotated[bytes, Depends(_whole_body)], store: deps.Blobs, session: deps.Session
) -> JSONResponse:
    """Which of `{"sha256": [...]}` this project has not uploaded yet, or whose bytes were lost since."""
    asked = bodies.document(body)
    hashes = asked.get("sha256") if isinstance(asked, dict) and set(asked) == {"sha256"} else None
    if not isinstance(hashes, list) or len(hashes) > MAX_HASHES:
        raise errors.Invalid(
            f'The body must be {{"sha256": [...]}} with at most {MAX_HASHES} hashes.', field="sha256", limit=MAX_HASHES
        )
    for index, sha256 in enumerate(hashes):
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            field = f"sha256[{index}]"
            raise errors.Invalid(f"`{field}` must be 64 lower-case hexadecimal digits.", field=field)
    unknown = set(events.missing_images(session, principal.project_id, hashes))
    missing = [
        sha256
        for sha256 in dict.fromkeys(hashes)
        if sha256 in unknown or not store.exists(principal.project_id, sha256)
    ]
    return JSONResponse({"missing": missing})


@router.put("/{sha256}")
def put_image(
    request: Request,
    principal: deps.MayIngest,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    data: Annotated[bytes, Depends(_image_bytes)],
    store: deps.Blobs,
    session: deps.Session,
) -> JSONResponse:
    """Store the raw bytes of one image; sending it again is harmless."""
    configured = request.app.state.settings
    limits = image_headers.Limits(side=configured.max_image_side, pixels=configured.max_image_pixels)
    try:
        picture = events.look(data, sha256, limits)
    except errors.ImageRefused as error:
        raise arrivals.at(error, "body") from None
    events.store_images(session, store, principal.project_id, [picture])
    header = picture.header
    return JSONResponse(
        {"sha256": sha256, "format": header.format, "width": header.width, "height": header.height}, 200
    )
