"""A 202 leaves only when its events are committed and its bytes on disk."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from cmerwatch import access, db, settings
from cmerwatch_web.app import create_app
from tests.web.wire import Headers, event, inline, multipart, named, png

Message = dict[str, Any]


@pytest.fixture
def who(committed: str) -> Headers:
    with db.transaction() as session:
        project = access.create_project(session, "acme")
        key = access.create_key(session, project.id, "test", ["ingest", "read"])
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def live(committed: str, who: Headers, configured: Callable[..., settings.Settings]) -> Iterator[TestClient]:
    """The app started on a database where commits are real."""
    with TestClient(create_app(configured(database_url=committed)), headers=who) as client:
        yield client


class Witness:
    """Stands between app and server; looks into the database, from outside, at the moment an answer begins."""

    def __init__(self, app: Any, url: str, blobs: Path) -> None:
        self.app = app
        self.url = url
        self.blobs = blobs
        self.seen: list[dict[str, int]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(self.look())
            await send(message)

        await self.app(scope, receive, watching)

    def look(self) -> dict[str, int]:
        with psycopg.connect(self.url) as connection:
            counts = {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]
                for table in ("events", "event_bodies", "work", "images")
            }
        return counts | {"blobs": sum(path.is_file() for path in self.blobs.rglob("*"))}


def test_rows_and_bytes_are_there_before_the_202_leaves(
    committed: str, who: Headers, configured: Callable[..., settings.Settings]
) -> None:
    configuration = configured(database_url=committed)
    witness = Witness(create_app(configuration), committed, configuration.blob_dir)
    with TestClient(witness, headers=who) as client:
        assert client.post("/v1/events", json=event()).status_code == 202
        batch = [event(images=[named(png(i))], output=f"Square {i}.") for i in range(1, 4)]
        assert client.post("/v1/events", **multipart(batch, *(png(i) for i in range(1, 4)))).status_code == 202
    assert witness.seen == [
        dict.fromkeys(("events", "event_bodies", "work", "images", "blobs"), 1),
        dict.fromkeys(("events", "event_bodies", "work", "images", "blobs"), 4),
    ]


def test_the_bytes_are_synced_before_the_commit(
    committed: str, live: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fsync happens while the event is still invisible to others, file before folder."""
    order: list[tuple[str, int]] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        sync(descriptor)
        with psycopg.connect(committed) as connection:
            order.append((kind, connection.execute("SELECT count(*) FROM events").fetchone()[0]))  # type: ignore[index]

    monkeypatch.setattr(os, "fsync", noting)
    assert live.post("/v1/events", json=event()).status_code == 202
    kinds = [kind for kind, _ in order]
    assert kinds[-2:] == ["file", "folder"]
    assert {count for _, count in order} == {0}


def test_thirty_retries_at_once_store_one_event(live: TestClient, committed: str) -> None:
    sent = event(event_id="e1")
    with concurrent.futures.ThreadPoolExecutor(15) as pool:
        answers = list(pool.map(lambda _: live.post("/v1/events", json=sent), range(30)))
    results = [answer.json()["results"][0] for answer in answers]
    assert {answer.status_code for answer in answers} == {202}
    assert len({result["id"] for result in results}) == 1
    assert [result["status"] for result in results].count("accepted") == 1
    with psycopg.connect(committed) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_batches_with_the_same_events_and_pictures_in_any_order_do_not_lock_each_other_up(live: TestClient) -> None:
    batch = [event(event_id=f"e{i}", images=[inline(png(i))]) for i in range(12)]
    orders = [batch, batch[::-1], batch[6:] + batch[:6]] * 4
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda order: live.post("/v1/events", json={"events": order}), orders))
    assert {answer.status_code for answer in answers} == {202}
    statuses = [result["status"] for answer in answers for result in answer.json()["results"]]
    assert (statuses.count("accepted"), statuses.count("duplicate")) == (12, 12 * 11)


def test_a_failing_commit_is_no_202(live: TestClient, committed: str) -> None:
    """A deferred constraint fails at COMMIT, after everything the route did has gone well."""
    with psycopg.connect(committed, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END $$"
        )
        connection.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON work DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        answer = live.post("/v1/events", json=event())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
        connection.execute("DROP TRIGGER late ON work")
    assert live.post("/v1/events", json=event()).status_code == 202
