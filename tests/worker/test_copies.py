"""Display copies: made after the check, never in its way, and never lost with the process that owed them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator

import pytest

from cmerwatch import blobs, errors
from cmerwatch.settings import Settings
from cmerwatch_worker import copies
from cmerwatch_worker.copies import Copies
from cmerwatch_worker.decode_pool import Pool
from tests.worker import images, stage
from tests.worker.colours import Colours, frozen

START = uuid.UUID(int=0)
SECONDS = 60.0


@pytest.fixture
def settings(committed: str, configured: Callable[..., Settings]) -> Settings:
    return configured(decode_processes=1)


@pytest.fixture
def project(settings: Settings) -> uuid.UUID:
    return stage.new_project()


def _pool() -> Pool:
    return Pool(Colours(frozen()).preprocess, stage.LIMITS, 1, stage.FRAGILE, background=True)


@pytest.fixture
def making(settings: Settings, blob_store: blobs.BlobStore) -> Iterator[Copies]:
    opened = Copies(blob_store, _pool())
    yield opened
    opened.close()


def _scene(width: int) -> bytes:
    return images.encoded(images.scene((width, 64)))


def _stored(store: blobs.BlobStore, project_id: uuid.UUID, *datas: bytes) -> list[str]:
    """One event per picture; their hashes, oldest first."""
    for data in datas:
        stage.send(store, project_id, [data], "A red circle.")
    return [hashlib.sha256(data).hexdigest() for data in datas]


def test_what_a_killed_worker_owed_is_made_by_the_next_one(
    making: Copies, project: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PAGE", 2)
    hashes = _stored(blob_store, project, *(_scene(width) for width in (64, 65, 66, 67, 68)))
    making.look_back(START)
    assert making.wait_made(SECONDS)
    assert all(blob_store.get_display(project, sha256) for sha256 in hashes)


def test_what_does_not_fit_in_line_is_found_again_among_the_events(
    making: Copies, project: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = _stored(blob_store, project, *(_scene(width) for width in (64, 65, 66)))
    monkeypatch.setattr(copies, "MAX_WAITING", 0)
    making.want(uuid.UUID(int=1), [(project, hashes[0])])
    monkeypatch.setattr(copies, "MAX_WAITING", 9)
    assert making.wait_made(SECONDS)
    assert all(blob_store.get_display(project, sha256) for sha256 in hashes)


def test_a_picture_that_kills_its_decoder_has_no_copy_and_the_others_do(
    making: Copies, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    hashes = _stored(blob_store, project, _scene(64), _scene(65) + stage.MARK, _scene(66))
    making.look_back(START)
    assert making.wait_made(SECONDS)
    assert [blob_store.get_display(project, sha256) is not None for sha256 in hashes] == [True, False, True]


def test_what_somebody_is_about_to_look_at_is_made_first(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(Copies, "_make", lambda _, wanted: made.append(wanted[1]))
    # The thread is held until all are in line.
    opened = Copies(blob_store, _pool())
    try:
        with opened._changed:
            opened.want(START, [(project, "seen by nobody")])
            opened.want(START, [(project, "flagged")], first=True)
        assert opened.wait_made(SECONDS)
    finally:
        opened.close()
    assert made == ["flagged", "seen by nobody"]


def test_a_store_that_is_away_is_asked_again(
    project: uuid.UUID, blob_store: blobs.BlobStore, making: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "RETRY_SECONDS", 0.01)
    (sha256,) = _stored(blob_store, project, _scene(64))
    put, refused = type(blob_store).put_display, list[str]()

    def full_at_first(store: blobs.BlobStore, project_id: uuid.UUID, name: str, data: bytes) -> None:
        if not refused:
            refused.append(name)
            raise errors.StorageFull("The disk is full.")
        put(store, project_id, name, data)  # type: ignore[arg-type]

    monkeypatch.setattr(type(blob_store), "put_display", full_at_first)
    making.want(START, [(project, sha256)])
    assert making.wait_made(SECONDS)
    assert refused == [sha256]
    assert blob_store.get_display(project, sha256) is not None
