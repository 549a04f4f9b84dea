"""One keep-alive HTTP connection, used by one thread."""

import email.utils
import encodings.idna  # noqa: F401  (loaded by the first connect otherwise; see config._transport)
import http.client
import json
import os
import secrets
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence

from cmerwatch.sdk import media
from cmerwatch.sdk.transport import Answer, Unreachable

SLICE = 64 << 10
MAX_ANSWER_BYTES = 1 << 20
MAX_RETRY_AFTER_SECONDS = 300.0
# A 4 MiB batch over a slow uplink is not a dead server: each MiB adds a second to the limit.
BYTES_PER_EXTRA_SECOND = 1 << 20


class HttpTransport:
    def __init__(self, server_url: str, api_key: str, connect_timeout: float = 1.0, timeout: float = 3.0) -> None:
        """Times in seconds. Raises ValueError, naming what is wrong with the address or the key."""
        self._url = _checked_url(server_url)
        self._headers = {
            "Authorization": f"Bearer {_checked_key(api_key)}",
            "User-Agent": "cmerwatch-python",
            "Accept": "application/json",
        }
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None

    def send(self, events: Sequence[bytes], images: Mapping[str, bytes]) -> Answer:
        boundary = secrets.token_hex(16)
        chunks = _multipart(boundary, events, images)
        return self._post("/v1/events", f"multipart/form-data; boundary={boundary}", chunks)

    def missing(self, hashes: Sequence[str]) -> Answer:
        return self._post("/v1/images/missing", "application/json", [json.dumps({"sha256": list(hashes)}).encode()])

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def forked(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.sock is not None:
            # Not connection.close(): the parent's thread may have held the read buffer's lock when it forked.
            os.close(connection.sock.detach())

    def _post(self, path: str, content_type: str, chunks: Sequence[bytes]) -> Answer:
        reused = self._connection is not None
        try:
            return self._exchange(path, content_type, chunks)
        except Unreachable as error:
            # A server closes idle connections when it likes; that is no outage. Event ids make the repeat harmless.
            if not (reused and error.connected):
                raise
            return self._exchange(path, content_type, chunks)

    def _exchange(self, path: str, content_type: str, chunks: Sequence[bytes]) -> Answer:
        connected = False
        try:
            connection = self._connect()
            connected = True
            response = self._request(connection, path, content_type, chunks)
            return self._answer(response)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(type(error).__name__, connected) from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = str(self._url.hostname), self._url.port
            if self._tls is not None:
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    host, port, timeout=self._connect_timeout, context=self._tls
                )
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self._connect_timeout)
            connection.connect()
            self._connection = connection
        return self._connection

    def _request(
        self, connection: http.client.HTTPConnection, path: str, content_type: str, chunks: Sequence[bytes]
    ) -> http.client.HTTPResponse:
        length = sum(len(chunk) for chunk in chunks)
        deadline = time.monotonic() + self._timeout + length / BYTES_PER_EXTRA_SECOND
        sock: socket.socket = connection.sock
        sock.settimeout(self._timeout)
        connection.putrequest("POST", self._url.path.rstrip("/") + path)
        for name, value in self._headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Type", content_type)
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        cut_off = False
        try:
            for piece in _slices(chunks):
                sock.settimeout(_left(deadline))
                connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            cut_off = True  # a server that refuses a body (413, 401) answers without reading it and hangs up
        sock.settimeout(_left(deadline))
        response = connection.getresponse()
        if cut_off:
            response.will_close = True
        return response

    def _answer(self, response: http.client.HTTPResponse) -> Answer:
        text = response.read(MAX_ANSWER_BYTES)
        if response.will_close or not response.isclosed():
            self.close()
        try:
            body = json.loads(text)
        except ValueError:
            body = {}
        return Answer(
            response.status,
            body if isinstance(body, dict) else {},
            _retry_after(response.getheader("Retry-After")),
        )


def _multipart(boundary: str, events: Sequence[bytes], images: Mapping[str, bytes]) -> list[bytes]:
    """Pieces of one body: the pictures stay the app's own buffers, nothing joins them into a copy."""
    line = b"--" + boundary.encode() + b"\r\n"
    chunks = [
        line + b'Content-Disposition: form-data; name="events"\r\nContent-Type: application/json\r\n\r\n{"events":[',
        b",".join(events),
        b"]}\r\n",
    ]
    for sha256, data in images.items():
        head = (
            f'Content-Disposition: form-data; name="sha256:{sha256}"; filename="sha256:{sha256}"\r\n'
            f"Content-Type: {media.content_type(data)}\r\n\r\n"
        )
        chunks += [line + head.encode(), data, b"\r\n"]
    chunks.append(b"--" + boundary.encode() + b"--\r\n")
    return chunks


def _slices(chunks: Sequence[bytes]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for at in range(0, len(view), SLICE):
            yield view[at : at + SLICE]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _retry_after(header: str | None) -> float | None:
    """Seconds, from either form of the header."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if seconds == seconds else None


def _checked_url(server_url: str) -> urllib.parse.SplitResult:
    try:
        url = urllib.parse.urlsplit(server_url.strip())
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid or url.query or url.fragment or url.username:
        raise ValueError("server_url must look like https://cmerwatch.example.com")
    return url


def _checked_key(api_key: str) -> str:
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("api_key must be one word of printable ASCII characters")
    return key
