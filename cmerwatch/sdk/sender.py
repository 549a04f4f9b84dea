"""The sending thread: prepares events one at a time, sends them in batches, and settles each by its answer."""

import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from cmerwatch.sdk import events, media, refusals
from cmerwatch.sdk.counts import Counts
from cmerwatch.sdk.events import Event, Image, Invalid, Prepared
from cmerwatch.sdk.known import Known
from cmerwatch.sdk.pending import Item, Pending
from cmerwatch.sdk.transport import Answer, Transport, Unreachable

BeforeSend = Callable[[Event], Event | None]

BATCH_EVENTS = 64  # the server's limit
BATCH_BYTES = 4 << 20
ASK_FIRST_BYTES = 32 << 10  # a smaller picture costs less than the question whether the server has it
BACKOFF_SECONDS = (0.5, 30.0)
# A batch that breaks the connection again and again holds an event that does: find it by sending one at a time.
ALONE_AFTER_FAILURES = 2
LAST_AFTER_FAILURES = 4
REFUSED_KEY = frozenset({401, 403})
SPLIT = frozenset({400, 413, 422})
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Withheld(Exception):
    """`before_send` kept the event back."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


class Sender:
    """`run` is the thread's body; everything here happens on that thread."""

    def __init__(
        self,
        transport: Transport,
        pending: Pending,
        counts: Counts,
        complete: Callable[[Item], dict[str, Any]],
        before_send: BeforeSend | None,
        flush_interval: float,
    ) -> None:
        self._transport = transport
        self._pending = pending
        self._counts = counts
        self._complete = complete
        self._before_send = before_send
        self._flush_interval = flush_interval
        self._known = Known()
        self._failures = 0
        self.crash: Exception | None = None  # the last bug of ours, for debugging and tests

    def run(self) -> None:
        while (first := self._pending.take(timeout=None)) is not None:
            batch: list[Item] = []
            try:
                self._gather(first, batch)
                self._deliver(batch)
            except Exception as error:  # a bug here must not end the thread, nor try the same events for ever
                self.crash = error
                for item in batch:
                    self._drop(item, "internal", type(error).__name__)
        self._transport.close()

    def _gather(self, first: Item, batch: list[Item]) -> None:
        """Fills `batch` until it is large enough or `flush_interval` seconds have passed."""
        deadline = time.monotonic() + self._flush_interval
        item: Item | None = first
        size = 0
        while item is not None:
            prepared = item.prepared or self._prepare(item)
            if prepared is not None:
                size += _upload_size(prepared)
                alone = item.failures >= ALONE_AFTER_FAILURES
                if batch and (alone or size > BATCH_BYTES):
                    self._pending.put_back([item])
                    return
                batch.append(item)
                if alone or len(batch) == BATCH_EVENTS:
                    return
            item = self._pending.take(timeout=deadline - time.monotonic())

    def _prepare(self, item: Item) -> Prepared | None:
        """None when the event is dropped here."""
        try:
            event = self._redact(_build(self._complete(item)))
            item.prepared = _pack(event)
            self._question(event)
        except Invalid as error:
            self._drop(item, "invalid", str(error))
            return None
        except _Withheld as error:
            self._drop(item, error.reason, str(error))
            return None
        except Exception as error:  # the app's own objects may raise anything when they are read
            self.crash = error
            self._drop(item, "internal", type(error).__name__)
            return None
        item.late = dict  # the picture as the app gave it may go
        self._pending.resize(item, _upload_size(item.prepared) + 1000)  # 1000: the objects around it
        return item.prepared

    def _question(self, event: Event) -> None:
        """A misspelt status would stand beside the right ones for ever; it costs no event."""
        if event.confidence_status not in (None, *events.STATUSES):
            known = ", ".join(events.STATUSES)
            self._counts.warn("status", "cmerwatch: confidence_status is sent as given, but is none of %s", known)

    def _redact(self, event: Event) -> Event:
        if self._before_send is None:
            return event
        try:
            kept = self._before_send(event)
        except Exception as error:  # closed for privacy: what could not be redacted is not sent
            raise _Withheld("before_send_error", type(error).__name__) from None
        if kept is None:
            raise _Withheld("before_send")
        return kept

    def _deliver(self, batch: list[Item]) -> None:
        if not batch:
            return
        packed = [item.prepared for item in batch if item.prepared is not None]
        try:
            images = self._to_upload(packed)
            for sha256 in images:
                self._known.sending(sha256)
            answer = self._transport.send([one.json for one in packed], images)
        except Unreachable as error:
            self._postpone(batch, str(error), None, theirs=error.connected)
            return
        self._settle(batch, answer)

    def _settle(self, batch: list[Item], answer: Answer) -> None:
        if answer.status in TRY_AGAIN:
            self._postpone(batch, f"HTTP {answer.status}", answer.retry_after, theirs=answer.status == 500)
            return
        self._failures = 0
        if answer.status in REFUSED_KEY:
            self._halt(batch, answer)
        elif answer.status in SPLIT and len(batch) > 1:
            middle = len(batch) // 2
            self._deliver(batch[:middle])
            self._deliver(batch[middle:])
        else:
            self._settle_each(batch, _results(batch, answer))

    def _settle_each(self, batch: list[Item], results: Sequence[dict[str, Any]]) -> None:
        again = []
        for item, result in zip(batch, results, strict=True):
            hashes = item.prepared.images if item.prepared is not None else {}
            status = result.get("status")
            if status in ("accepted", "duplicate"):
                for sha256 in hashes:
                    self._known.accept(sha256)
                self._counts.add("sent" if status == "accepted" else "duplicates")
                self._pending.settle(item)
            elif refusals.code(result) == "image_unknown" and hashes and not item.resent:
                # Retention or another server behind the same address: it had the picture once and has it no more.
                for sha256 in hashes:
                    self._known.forget(sha256)
                item.resent = True
                again.append(item)
            else:
                sent = item.prepared.json if item.prepared is not None else b"{}"
                self._counts.reject(refusals.reason(result), functools.partial(refusals.sentence, result, sent))
                self._pending.settle(item)
        self._deliver(again)

    def _to_upload(self, packed: Sequence[Prepared]) -> dict[str, bytes]:
        """The pictures whose bytes must travel; asks about those sent before without a clear answer."""
        images = {sha256: data for one in packed for sha256, data in one.images.items()}
        images = {sha256: data for sha256, data in images.items() if not self._known.accepted(sha256)}
        unsure = [
            sha256 for sha256, data in images.items() if len(data) >= ASK_FIRST_BYTES and self._known.unsure(sha256)
        ]
        if not unsure:
            return images
        answer = self._transport.missing(unsure)
        if answer.status == 200 and isinstance(answer.body.get("missing"), list):
            had = set(unsure) - set(answer.body["missing"])
            images = {sha256: data for sha256, data in images.items() if sha256 not in had}
        return images  # no usable answer: send them all, the events call says what is wrong

    def _postpone(self, batch: list[Item], error: str, retry_after: float | None, theirs: bool) -> None:
        """theirs: the failure may lie in these events, not in a server that is away or busy."""
        self._failures += 1
        self._counts.failed(error)
        self._counts.warn("unsent", "cmerwatch: events are waiting, the server did not take them (%s)", error)
        for item in batch:
            item.failures += theirs
        self._pending.put_back(batch, last=batch[0].failures >= LAST_AFTER_FAILURES)
        if retry_after is None:
            least, most = BACKOFF_SECONDS
            wait = min(most, least * 2 ** min(self._failures - 1, 10)) * random.uniform(0.5, 1.0)
            self._pending.rest(wait, until_flush=True)
        else:
            self._pending.rest(retry_after * random.uniform(1.0, 1.1), until_flush=False)

    def _halt(self, batch: list[Item], answer: Answer) -> None:
        """A key that is refused stays refused: stop for good rather than knock for ever."""
        said = f"the server refused the api key (HTTP {answer.status}); nothing more is sent; {refusals.NEW_KEY}"
        self._counts.drop("unauthorized", len(batch), said)
        for item in batch:
            self._pending.settle(item)
        self._pending.abandon("unauthorized")

    def _drop(self, item: Item, reason: str, detail: str = "") -> None:
        if self._pending.holds(item):  # a crash may have come after the answer to this one
            self._counts.drop(reason, detail=detail)  # before settling: whoever flushed looks at the counts next
            self._pending.settle(item)


def _build(given: dict[str, Any]) -> Event:
    sources = given["images"] if "images" in given else [given["image"]]
    return events.build(given, [media.load(source) for source in sources])


def _pack(event: Event) -> Prepared:
    references: list[dict[str, str]] = []
    images: dict[str, bytes] = {}
    for image in event.images:
        references.append(_reference(image, images))
    return Prepared(event.event_id, events.encode(event, references), images)


def _reference(image: Image, images: dict[str, bytes]) -> dict[str, str]:
    if image.data is not None:
        sha256 = media.digest(image.data)
        images[sha256] = image.data
        return {"sha256": sha256}
    if image.sha256 is not None:
        return {"sha256": image.sha256}
    if image.url is not None:
        return {"url": image.url}
    raise Invalid("image has neither data nor url nor sha256")


def _upload_size(prepared: Prepared) -> int:
    return len(prepared.json) + sum(len(data) for data in prepared.images.values())


def _results(batch: Sequence[Item], answer: Answer) -> Sequence[dict[str, Any]]:
    """One result for each event, whatever came back."""
    results = answer.body.get("results")
    if isinstance(results, list) and len(results) == len(batch) and all(isinstance(one, dict) for one in results):
        return results
    # An error for the whole request; or a page that is not ours, where "sent" would be a lie.
    return [{"status": "rejected", "http": answer.status, "error": answer.body.get("error")}] * len(batch)
