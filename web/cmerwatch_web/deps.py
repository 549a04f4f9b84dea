"""What routes ask for: a session that commits before the answer leaves, the blob store, and who is asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy import orm

from cmerwatch import access, blobs, db


def get_session() -> Iterator[orm.Session]:
    """Depend on it with scope="function" only: with the default scope the commit runs after the answer was sent,
    and a 202 would promise a row that may not be there."""
    with db.transaction() as session:
        yield session


def get_blobs(request: Request) -> blobs.BlobStore:
    store: blobs.BlobStore = request.app.state.blobs
    return store


def _key_with(scope: str) -> Callable[[str | None], access.Principal]:
    def principal(authorization: Annotated[str | None, Header(include_in_schema=False)] = None) -> access.Principal:
        # A session of its own, over before the body is read: a slow upload must not hold a connection.
        with db.transaction() as session:
            found = access.principal_of_key(session, authorization)
        access.authorize(found, scope)
        return found

    return principal


Session = Annotated[orm.Session, Depends(get_session, scope="function")]
Blobs = Annotated[blobs.BlobStore, Depends(get_blobs)]
MayIngest = Annotated[access.Principal, Depends(_key_with("ingest"))]
MayRead = Annotated[access.Principal, Depends(_key_with("read"))]
