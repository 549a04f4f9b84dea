"""Keeps the leases of batches in hand alive, so that only a dead or hung worker ever loses one."""

from __future__ import annotations

import logging
import threading
import uuid

from cmerwatch import checks, db

log = logging.getLogger(__name__)


class Leases:
    """The tokens held now, renewed every third of the lease by one thread."""

    def __init__(self, lease_seconds: int) -> None:
        self._seconds = lease_seconds
        self._held: set[uuid.UUID] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def hold(self, token: uuid.UUID) -> None:
        self._held.add(token)

    def drop(self, token: uuid.UUID) -> None:
        self._held.discard(token)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._closing.wait(self._seconds / 3):
            for token in list(self._held):
                try:
                    with db.transaction() as session:
                        checks.extend(session, token, self._seconds)
                except Exception as error:
                    # The database is away: the lease may run out, and then the guard in checks.complete holds.
                    log.warning("a lease was not renewed: %s", type(error).__name__)
