"""The stylesheet, script and icon: read once, named by their content, cached for a year."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

import fastapi

from cmerwatch import errors

FOLDER = Path(__file__).parent.parent / "static"

router = fastapi.APIRouter()


def _read() -> dict[str, tuple[str, bytes]]:
    """File name -> (name with the hash of its content, bytes)."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        data = path.read_bytes()
        found[path.name] = (f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}", data)
    return found


_FILES = _read()
_BY_URL = {name: data for name, data in _FILES.values()}


def url(name: str) -> str:
    """The address of a file in static/: a changed file has another address, so no browser shows an old one."""
    return f"/static/{_FILES[name][0]}"


@router.get("/static/{name}")
def static(name: str) -> fastapi.Response:
    data = _BY_URL.get(name)
    if data is None:
        raise errors.NotFound(f"There is no file {name!r}; reload the page.")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return fastapi.Response(
        data,
        media_type=kind,
        headers={"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"},
    )
