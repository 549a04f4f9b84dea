"""The data folder of one machine: one holder at a time, closed subfolders, secrets made once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from cmerwatch import errors


class DataFolder:
    """`data_dir`, its subfolders at 0700, and the lock that says who runs on it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folders and take the lock. Raises StartRefused naming the process that holds it, or the obstacle."""
        try:
            self._lock = lock = self._make()
        except OSError as error:
            raise errors.StartRefused(
                f"{self.path} cannot hold the data: {error.strerror} ({error.filename}). Choose another --data-dir."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip()
            self.close()
            raise errors.StartRefused(
                f"{self.path} is in use by the running process {holder}. Stop it, or choose another --data-dir."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _make(self) -> int:
        """The folders; a descriptor of the lock file."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Others may pass the top folder but not list it: as root, Postgres runs as another user below it.
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for name in ("blobs", "secrets", "logs", "redis", "broker"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
            (self.path / name).chmod(0o700)
        return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    @property
    def is_in_use(self) -> bool:
        """Whether a process holds it now."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the kernel lets the lock go with the descriptor, also when we are killed
            self._lock = None

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def secret(self, name: str) -> str:
        return secret(self.path / "secrets" / name)


def secret(path: Path) -> str:
    """The secret in this file, made on first use. Two that make it at once agree on one."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)  # fails where another was faster; unlike rename it never replaces
    draft.unlink()
    return path.read_text().strip()
