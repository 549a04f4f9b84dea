"""Streams, watched in place: the app keeps the object its library made, and each chunk passes through unchanged."""

import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from cmerwatch.sdk import client
from cmerwatch.sdk.hooks import chat
from cmerwatch.sdk.hooks.calls import Call, attempt


class Reading:
    """What has been read of one stream. It must never hold the stream: its end is seen by its being collected."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.advancing = False  # a response closed meanwhile was by the library, which may have chunks left
        self._reply = chat.Reply({}, {})
        self._pid = os.getpid()
        self._open = [True]  # popped by whoever ends it: close(), the last chunk and the collector may race
        self._release: Callable[[], object] = bool

    def begin(self, stream: Any, closer: str) -> None:
        """closer: the name of the response's closing method, the one way that close(), `with` and helpers share."""
        response = weakref.ref(stream.response)
        watch = weakref.finalize(stream, attempt, self.call.settings, self.finish, False)
        watch.atexit = False  # finalisers may run after the client's own exit; see _finish_all
        _reading.add(self)

        def release() -> None:
            _reading.discard(self)
            watch.detach()
            held = response()
            if held is not None:
                vars(held).pop(closer, None)

        self._release = release

    def add(self, chunk: Any) -> bool:
        if not self.call.first_at:
            self.call.first_at = time.perf_counter()
        self._reply.add(chunk)
        return True

    def closed(self) -> None:
        if not self.advancing:
            self.finish()

    def finish(self, start_thread: bool = True) -> None:
        """start_thread is False in the garbage collector, which may run while this very thread starts another."""
        if self._pid != os.getpid():
            return  # a fork took a copy along: the parent reads on
        try:
            self._open.pop()
        except IndexError:
            return
        self._release()
        call = self.call
        call.ended_at = time.perf_counter()
        call.first_at = call.first_at or call.ended_at
        call.record(self._reply, start_thread)

    def abort(self) -> None:
        """A chunk could not be read: an answer with a hole in it is not recorded."""
        self._open.clear()
        self._release()


_reading: set[Reading] = set()


def _finish_all() -> None:
    for reading in list(_reading):
        attempt(reading.call.settings, reading.finish)


client.last_words.append(_finish_all)


class _Tap:
    """Takes the place of a stream's iterator."""

    def __init__(self, chunks: Any, reading: Reading) -> None:
        self._chunks = chunks
        self._reading: Reading | None = reading
        self._settings = reading.call.settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)  # a generator's close, send, throw

    def _passed(self, reading: Reading, chunk: Any) -> None:
        if not attempt(self._settings, reading.add, chunk):
            self._reading = None
            attempt(self._settings, reading.abort)


class Tap(_Tap):
    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        reading = self._reading
        if reading is None:
            return next(self._chunks)
        reading.advancing = True
        try:
            chunk = next(self._chunks)
        except BaseException:
            self._reading = None
            attempt(self._settings, reading.finish)
            raise
        finally:
            reading.advancing = False
        self._passed(reading, chunk)
        return chunk


class AsyncTap(_Tap):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        reading = self._reading
        if reading is None:
            return await anext(self._chunks)
        reading.advancing = True
        try:
            chunk = await anext(self._chunks)
        except BaseException:
            self._reading = None
            attempt(self._settings, reading.finish)
            raise
        finally:
            reading.advancing = False
        self._passed(reading, chunk)
        return chunk


def watch(stream: Any, call: Call) -> None:
    """Swaps the stream's iterator; its type, methods and chunks stay the library's own."""
    reading = Reading(call)
    response = stream.response
    if hasattr(stream, "__anext__"):
        response.aclose = _closing_async(response, reading)
        reading.begin(stream, "aclose")
        stream._iterator = AsyncTap(stream._iterator, reading)
    else:
        response.close = _closing(response, reading)
        reading.begin(stream, "close")
        stream._iterator = Tap(stream._iterator, reading)


def _closing(response: Any, reading: Reading) -> Callable[[], None]:
    # Weak: held by the response itself, a strong reference would keep its body until the next full collection.
    held, native = weakref.ref(response), type(response).close

    def close() -> None:
        attempt(reading.call.settings, reading.closed)
        mine = held()
        if mine is not None:
            native(mine)

    return close


def _closing_async(response: Any, reading: Reading) -> Callable[[], Coroutine[Any, Any, None]]:
    held, native = weakref.ref(response), type(response).aclose

    async def aclose() -> None:
        attempt(reading.call.settings, reading.closed)
        mine = held()
        if mine is not None:
            await native(mine)

    return aclose
