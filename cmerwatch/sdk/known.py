"""Which pictures the server already has."""

from collections import OrderedDict

REMEMBERED = 4096


class Known:
    """The last 4 096 hashes sent: accepted (True), or sent with no answer that says so (False)."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._hashes: OrderedDict[str, bool] = OrderedDict()

    def accepted(self, sha256: str) -> bool:
        return self._hashes.get(sha256, False)

    def unsure(self, sha256: str) -> bool:
        return self._hashes.get(sha256) is False

    def sending(self, sha256: str) -> None:
        self._remember(sha256, self.accepted(sha256))

    def accept(self, sha256: str) -> None:
        self._remember(sha256, True)

    def forget(self, sha256: str) -> None:
        self._hashes.pop(sha256, None)

    def _remember(self, sha256: str, accepted: bool) -> None:
        self._hashes[sha256] = accepted
        self._hashes.move_to_end(sha256)
        if len(self._hashes) > self._size:
            self._hashes.popitem(last=False)
