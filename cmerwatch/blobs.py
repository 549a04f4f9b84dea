"""Image bytes on durable storage, by project and sha256; knows nothing of events or tables."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cmerwatch import errors

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BlobStore(Protocol):
    """Where image bytes live. `sha256` is 64 lower-case hex digits; the caller has compared it with the bytes."""

    def put(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        """Durable when it returns; storing the same bytes again is harmless. Raises StorageFull, Unavailable."""

    def get(self, project_id: uuid.UUID, sha256: str) -> bytes:
        """The bytes as they came. Raises NotFound, or Unavailable when the store itself is away."""

    def exists(self, project_id: uuid.UUID, sha256: str) -> bool: ...

    def put_display(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        """Keep the re-encoded WebP that people are shown."""

    def get_display(self, project_id: uuid.UUID, sha256: str) -> bytes | None:
        """The WebP to show, None while no worker has made it."""


class FolderStore:
    """One file per image: `<project>/<ab>/<sha256>`, folders closed to everyone else.

    A project's 256 folders are made together with its first image: made one by one, each would cost two more fsyncs.
    The root is made once, here: made again later, a volume that was unmounted would be filled beside itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._synced: set[str] = set()  # folders of projects that this process knows to be durable
        _make_folder(self.root)

    def put(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        path = self._path(project_id, sha256)
        folder = os.path.dirname(path)
        project = os.path.dirname(folder)
        with _refusing_when_full():
            if project not in self._synced:
                _make_project(Path(project))
                self._synced.add(project)
            if not os.path.exists(path):
                _write(path, data, durable=True)
            # Also for a file that was there: its writer may not have got as far as this line.
            _sync_folder(folder)

    def get(self, project_id: uuid.UUID, sha256: str) -> bytes:
        path = self._path(project_id, sha256)
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(os.path.dirname(path))):
                raise errors.NotFound(f"No image {sha256} is stored in this project.") from None
            raise errors.Unavailable(
                f"The image store {self.root} has no folder of this project. Is its volume mounted here?"
            ) from None
        except OSError as error:
            raise errors.Unavailable(f"The image store cannot be read now ({error.strerror}).") from error

    def exists(self, project_id: uuid.UUID, sha256: str) -> bool:
        return os.path.exists(self._path(project_id, sha256))

    def put_display(self, project_id: uuid.UUID, sha256: str, data: bytes) -> None:
        """Beside the bytes it was made from. Not synced: it can be made again, and get_display sees a copy torn by a
        power loss."""
        with _refusing_when_full():
            _write(self._display_path(project_id, sha256), data, durable=False)

    def get_display(self, project_id: uuid.UUID, sha256: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            data = Path(self._display_path(project_id, sha256)).read_bytes()
            # A WebP is a RIFF file: "RIFF", then the length of what follows in 4 little-endian bytes.
            if data[:4] == b"RIFF" and len(data) >= 8 + int.from_bytes(data[4:8], "little"):
                return data
        return None

    def _path(self, project_id: uuid.UUID, sha256: str) -> str:
        """Raises Invalid for anything but 64 hex digits, so that no request can name another file.

        Text, because making and printing `Path`s costs as much as the system calls on them, for each picture of ingest.
        """
        if not _SHA256.match(sha256):
            raise errors.Invalid("`sha256` must be 64 lower-case hexadecimal digits.", field="sha256")
        return f"{self.root}/{uuid.UUID(str(project_id)).hex}/{sha256[:2]}/{sha256}"

    def _display_path(self, project_id: uuid.UUID, sha256: str) -> str:
        return self._path(project_id, sha256) + ".webp"


def _write(path: str, data: bytes, *, durable: bool) -> None:
    """Complete or not there: a draft beside it, then rename. Two writers of the same image each bring a draft."""
    folder, name = os.path.split(path)
    draft = f"{folder}/.{name}.{secrets.token_hex(8)}"
    try:
        with open(draft, "xb", opener=_private) as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_folder(path: Path) -> None:
    """Make it and the folders above it, each synced into its parent: a lost folder loses the synced file in it."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _sync_folder(path.parent)


def _make_project(path: Path) -> None:
    """Synced also where it was there: whoever made it may not have got that far."""
    for folder in (path, *(path / f"{number:02x}" for number in range(256))):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    _sync_folder(path)
    _sync_folder(path.parent)


def _sync_folder(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusing_when_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise errors.StorageFull from error
        raise errors.Unavailable(
            f"The image store cannot write now ({error.strerror}); nothing was accepted. Retry later."
        ) from error
