"""What routes ask for: a session that commits before the answer leaves, the blob store, and who is asking."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy import orm
from starlette.concurrency import run_in_threadpool

from cmerwatch import access, blobs, db


def get_session() -> Iterator[orm.Session]:
    """Depend on it with scope="function" only: with the default scope the commit runs after the answer was sent,
    and a 202 would promise a row that may not be there."""
    with db.transaction() as session:
        yield session


async def get_blobs(request: Request) -> blobs.BlobStore:
    store: blobs.BlobStore = request.app.state.blobs
    return store


KEY_SECONDS = 1.0  # how long a key just seen is believed without asking the database, so also how long after its end
_MOST_KEYS = 10_000

_known: dict[bytes, tuple[float, access.Principal]] = {}


async def _principal(authorization: str | None) -> access.Principal:
    remembered = hashlib.sha256((authorization or "").encode()).digest()
    until, found = _known.get(remembered, (0.0, None))
    if found is not None and time.monotonic() < until:
        return found
    found = await run_in_threadpool(_look_up, authorization)
    if len(_known) >= _MOST_KEYS:
        _known.clear()
    _known[remembered] = (time.monotonic() + KEY_SECONDS, found)
    return found


def _look_up(authorization: str | None) -> access.Principal:
    # A session of its own, over before the body is read: a slow upload must not hold a connection.
    with db.transaction() as session:
        return access.principal_of_key(session, authorization)


def _key_with(*actions: str) -> Callable[[str | None], Awaitable[access.Principal]]:
    """Any one of the actions will do; a refusal names the first."""

    async def principal(
        authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> access.Principal:
        found = await _principal(authorization)
        if not any(found.may(action) for action in actions):
            access.authorize(found, actions[0])
        return found

    return principal


async def may_ingest(request: Request) -> access.Principal:
    """MayIngest for a route that does without dependencies."""
    return await _with_ingest(request.headers.get("authorization"))


_with_ingest = _key_with("ingest")

Session = Annotated[orm.Session, Depends(get_session, scope="function")]
Blobs = Annotated[blobs.BlobStore, Depends(get_blobs)]
MayIngest = Annotated[access.Principal, Depends(_with_ingest)]
MayRead = Annotated[access.Principal, Depends(_key_with("read"))]
MayReview = Annotated[access.Principal, Depends(_key_with("review"))]
MayAlert = Annotated[access.Principal, Depends(_key_with("alerts"))]
MaySilence = Annotated[access.Principal, Depends(_key_with("silence"))]
MaySeeAlerts = Annotated[access.Principal, Depends(_key_with("read", "alerts"))]
MayChangePolicies = Annotated[access.Principal, Depends(_key_with("policies"))]
MaySeePolicies = Annotated[access.Principal, Depends(_key_with("read", "policies"))]
