"""For an app's own tests: events end in a list instead of on the network."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cmerwatch.sdk.transport import Answer


class MemoryTransport:
    """`cmerwatch.init(transport=MemoryTransport())`, run the app, `cmerwatch.flush()`, look at `events`.

    Events went through everything but the network: `events` holds the decoded JSON, each image with its bytes
    as `data`. Errors inside cmerwatch are raised instead of swallowed.
    """

    reraise = True

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._images: dict[str, bytes] = {}

    def send(self, events: Sequence[bytes], images: Mapping[str, bytes]) -> Answer:
        self._images.update(images)
        decoded = [json.loads(event) for event in events]
        for event in decoded:
            for image in event["images"]:
                if image.get("sha256") in self._images:
                    image["data"] = self._images[image["sha256"]]
        self.events += decoded
        return Answer(202, {"results": [{"id": event["event_id"], "status": "accepted"} for event in decoded]})

    def missing(self, hashes: Sequence[str]) -> Answer:
        return Answer(200, {"missing": [sha256 for sha256 in hashes if sha256 not in self._images]})

    def clear(self) -> None:
        self.events.clear()

    def close(self) -> None: ...

    def forked(self) -> None:
        self.clear()
