"""The fetcher against real servers: what comes, what is given up and why, and what waits meanwhile."""

from __future__ import annotations

import contextlib
import gzip
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import sqlalchemy as sa

from cmerwatch import blobs, checks, db, event_views, events, fetches, ledger, models, settings
from cmerwatch_worker import fetching
from tests import factories, receiver, stack
from tests.receiver import Got, Receiver, answering

Configure = Callable[..., settings.Settings]
PNG = factories.png()


@pytest.fixture
def server(configured: Configure) -> Iterator[Receiver]:
    """On loopback, which this test's settings name and permit."""
    with receiver.receiver() as made:
        made.answer = answering(200, PNG, Content_Type="image/png")
        configured(fetch_images=f"127.0.0.1:{made.port}", allow_private_targets=f"127.0.0.1:{made.port}")
        yield made


@pytest.fixture
def project_id(committed: str) -> uuid.UUID:
    with db.transaction() as session:
        return factories.project(session, "acme")


@contextlib.contextmanager
def fetching_from(store: blobs.BlobStore) -> Iterator[fetching.Fetcher]:
    made, stopping = fetching.Fetcher(settings.current(), store), threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        made.wake()
        thread.join()


def send(project_id: uuid.UUID, *urls: str, **fields: object) -> uuid.UUID:
    """An event that names its pictures by address, as ingest stores it."""
    with db.transaction() as session:
        made = factories.new_event(urls=tuple(enumerate(urls)), **fields)
        return events.ingest(session, project_id, made).id


def work(event_id: uuid.UUID) -> models.Work:
    with db.SessionLocal() as session:
        return session.get_one(models.Work, event_id)


def images(event_id: uuid.UUID) -> list[str]:
    with db.SessionLocal() as session:
        return session.scalars(sa.select(models.Event.images).where(models.Event.id == event_id)).one()


def rows(event_id: uuid.UUID) -> list[models.ImageFetch]:
    with db.SessionLocal() as session:
        return fetches.of(session, event_id)


def is_ready(event_id: uuid.UUID) -> bool:
    return work(event_id).state == models.READY


def tried(event_id: uuid.UUID) -> models.ImageFetch:
    """The first picture after its first recorded try."""
    stack.wait_until(lambda: rows(event_id)[0].reason != "")
    return rows(event_id)[0]


def test_a_picture_named_by_its_address_is_fetched_and_its_event_becomes_ready(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event_id = send(project_id, server.url + "?signature=secret")
    assert work(event_id).state == models.FETCHING
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    [sha256] = images(event_id)
    assert blob_store.get(project_id, sha256) == PNG
    [row] = rows(event_id)
    assert (row.state, row.sha256, row.attempts) == ("fetched", sha256, 1)
    assert row.url == server.url, "a signed address is not kept longer than it is needed"
    with db.SessionLocal() as session:
        note = session.get_one(models.Image, (project_id, sha256))
    assert (note.format, note.width, note.height, note.size_bytes) == ("PNG", 3, 2, len(PNG))
