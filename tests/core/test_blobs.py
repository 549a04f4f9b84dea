"""Image bytes on disk: complete or absent, closed to others, never outside their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import blobs, errors

PROJECT = uuid.UUID(int=7)
OTHER = uuid.UUID(int=8)
DATA = b"picture" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> blobs.FolderStore:
    return blobs.FolderStore(tmp_path / "blobs")


def files(store: blobs.FolderStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_what_was_put_is_given_back_and_only_to_its_project(store: blobs.FolderStore) -> None:
    store.put(PROJECT, SHA256, DATA)
    assert store.get(PROJECT, SHA256) == DATA
    assert store.exists(PROJECT, SHA256)
    assert not store.exists(OTHER, SHA256)
    store.put(OTHER, "c" * 64, b"another")
    with pytest.raises(errors.NotFound, match=SHA256):
        store.get(OTHER, SHA256)


@pytest.mark.parametrize("gone", ["", PROJECT.hex], ids=["the root", "the project's folder"])
def test_a_store_that_is_away_is_told_from_an_image_that_is_gone_and_not_made_anew(
    store: blobs.FolderStore, gone: str
) -> None:
    store.put(PROJECT, SHA256, DATA)
    away = store.root / gone
    away.rename(store.root.with_name("unmounted"))
    with pytest.raises(errors.Unavailable, match="Is its volume mounted here"):
        store.get(PROJECT, SHA256)
    for write in (store.put, store.put_display):
        with pytest.raises(errors.Unavailable, match="cannot write now"):
            write(PROJECT, SHA256, DATA)
    assert not away.exists()
    store.root.with_name("unmounted").rename(away)
    assert store.get(PROJECT, SHA256) == DATA


def test_a_folder_that_another_process_made_is_synced_before_it_is_relied_on(
    store: blobs.FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker may die, or the power may fail, before it gets that far."""
    store.put(PROJECT, SHA256, DATA)
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    blobs.FolderStore(store.root).put(PROJECT, "c" * 64, b"another")
    assert {str(store.root), str(store.root / PROJECT.hex)} <= set(synced)


def test_putting_the_same_image_again_changes_nothing(store: blobs.FolderStore) -> None:
    store.put(PROJECT, SHA256, DATA)
    (before,) = [path.stat() for path in files(store)]
    store.put(PROJECT, SHA256, DATA)
    (after,) = [path.stat() for path in files(store)]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_many_writers_of_one_image_leave_one_whole_file(store: blobs.FolderStore) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def put() -> None:
        barrier.wait()
        try:
            store.put(PROJECT, SHA256, DATA)
            assert store.get(PROJECT, SHA256) == DATA
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(files(store)) == 1


def test_bytes_and_every_folder_on_the_way_are_synced_before_put_returns(
    store: blobs.FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put(PROJECT, SHA256, DATA)
    (path,) = files(store)
    draft = next(position for position, name in enumerate(synced) if Path(name).name.startswith("."))
    for folder in path.parents:
        assert str(folder) in synced or not folder.is_relative_to(store.root)
    assert str(path.parent) in synced[draft + 1 :], "the name is made durable after the bytes"


def test_folders_and_files_are_closed_to_others(store: blobs.FolderStore) -> None:
    store.put(PROJECT, SHA256, DATA)
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../" * 20 + "etc/passwd",
        "A" * 64,
        "a" * 63,
        "a" * 65,
        "a" * 64 + "\n",
        "a" * 63 + "/",
        "a" * 63 + "\0",
        "/etc",
    ],
)
def test_nothing_but_64_hex_digits_names_a_file(store: blobs.FolderStore, name: str) -> None:
    for call in (store.get, store.exists, store.get_display):
        with pytest.raises(errors.Invalid, match="64 lower-case hexadecimal"):
            call(PROJECT, name)
    with pytest.raises(errors.Invalid):
        store.put(PROJECT, name, DATA)


@given(name=st.text())
def test_no_text_reaches_a_file_outside_the_folder(name: str) -> None:
    store = blobs.FolderStore.__new__(blobs.FolderStore)
    store.root = Path("/store")
    try:
        path = store._path(PROJECT, name)
    except errors.Invalid:
        return
    assert path.is_relative_to("/store")
    assert ".." not in path.parts


@pytest.mark.parametrize(
    ("number", "raised"),
    [(errno.ENOSPC, errors.StorageFull), (errno.EDQUOT, errors.StorageFull), (errno.EIO, errors.Unavailable)],
)
def test_a_disk_that_refuses_leaves_nothing_half_stored(
    store: blobs.FolderStore, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[errors.Unavailable]
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store.put(PROJECT, "c" * 64, b"another")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(raised) as caught:
            store.put(PROJECT, SHA256, DATA)
    assert type(caught.value) is raised
    assert caught.value.status == 503
    assert [path.name for path in files(store)] == ["c" * 64]
    store.put(PROJECT, SHA256, DATA)
    assert store.get(PROJECT, SHA256) == DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_is_said_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        store = blobs.FolderStore(disk / "blobs")
        with pytest.raises(errors.StorageFull, match="disk is full"):
            store.put(PROJECT, "a" * 64, b"x" * (1 << 20))
        assert files(store) == []
        store.put(PROJECT, SHA256, DATA)
        assert store.get(PROJECT, SHA256) == DATA
    finally:
        subprocess.run(["umount", disk], check=True)


def webp(payload: bytes) -> bytes:
    return b"RIFF" + (4 + len(payload)).to_bytes(4, "little") + b"WEBP" + payload


def test_the_copy_to_show_is_none_until_made_and_stands_beside_the_original(store: blobs.FolderStore) -> None:
    store.put(PROJECT, SHA256, DATA)
    assert store.get_display(PROJECT, SHA256) is None
    store.put_display(PROJECT, SHA256, webp(b"shown"))
    assert store.get_display(PROJECT, SHA256) == webp(b"shown")
    assert store.get(PROJECT, SHA256) == DATA
    store.put_display(PROJECT, SHA256, webp(b"shown again"))
    assert store.get_display(PROJECT, SHA256) == webp(b"shown again")


@pytest.mark.parametrize("torn", [b"", b"RIFF", webp(b"a picture")[:-1]])
def test_a_copy_torn_by_a_power_loss_is_not_shown(store: blobs.FolderStore, torn: bytes) -> None:
    store.put(PROJECT, SHA256, DATA)
    store.put_display(PROJECT, SHA256, torn)
    assert store.get_display(PROJECT, SHA256) is None
