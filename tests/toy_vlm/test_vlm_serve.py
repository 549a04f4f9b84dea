import base64
import io
import json
import random
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from PIL import Image

import cmerwatch
from cmerwatch.sdk.testing import MemoryTransport
from toy_vlm import scenes, serve, vlm


@pytest.fixture(scope="module")
def app() -> Iterator[serve.App]:
    with serve.App(0, vlm.GOOD) as app:
        thread = threading.Thread(target=app.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield app
        app.shutdown()
        thread.join()


@pytest.fixture
def seen() -> Iterator[MemoryTransport]:
    transport = MemoryTransport()
    cmerwatch.init(transport=transport)
    yield transport
    cmerwatch.shutdown()


def call(app: serve.App, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", app.server_port, timeout=60)
    try:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def ask(app: serve.App, **body: Any) -> tuple[int, dict[str, Any]]:
    status, reply = call(app, "POST", "/ask", json.dumps(body).encode())
    return status, json.loads(reply)


def a_picture() -> bytes:
    packed = io.BytesIO()
    scenes.render(scenes.sample(random.Random(4), kind="single"), 200).save(packed, "PNG")
    return packed.getvalue()


def test_an_answer_is_the_models_and_is_reported_with_its_logprobs(app: serve.App, seen: MemoryTransport) -> None:
    picture = a_picture()
    status, reply = ask(
        app, image=base64.b64encode(picture).decode(), prompt="Count the objects.", customer="studio-lumen"
    )
    with Image.open(io.BytesIO(picture)) as image:
        said = app.model.answer(image, "Count the objects.")
    assert (status, reply["answer"], reply["model_version"]) == (200, said.text, vlm.GOOD)
    assert reply["logprobs"] == pytest.approx(said.logprobs, abs=1e-5)

    assert cmerwatch.flush()
    (event,) = seen.events
    assert event["images"][0]["data"] == picture
    assert event["output"] == said.text
    assert event["logprobs"] == reply["logprobs"]
    assert event["tokens"] == list(said.tokens)
    dimensions = ("endpoint", "prompt_type", "customer", "model", "model_version")
    assert [event[name] for name in dimensions] == ["/ask", "count", "studio-lumen", "toy-vlm", vlm.GOOD]


def test_the_page_is_there_and_nothing_else(app: serve.App) -> None:
    status, page = call(app, "GET", "/")
    assert status == 200
    assert b"What is this?" in page
    assert call(app, "GET", "/secret")[0] == 404
    assert call(app, "POST", "/other", b"{}")[0] == 404


@pytest.mark.parametrize(
    "body, status, word",
    [
        (b"not json", 400, "JSON"),
        (b"[1]", 400, "object"),
        (b'{"image": "aaaa"}', 400, "prompt"),
        (b'{"prompt": "What is this?"}', 400, "image"),
        (b'{"prompt": "What is this?", "image": "!!"}', 400, "base64"),
        (b'{"prompt": "What is this?", "image": "aGVsbG8="}', 400, "picture"),
        (b'{"prompt": "What is this?", "image": "aGVsbG8=", "customer": 3}', 400, "customer"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(app: serve.App, body: bytes, status: int, word: str) -> None:
    found, reply = call(app, "POST", "/ask", body)
    assert found == status
    assert word in json.loads(reply)["error"]


def test_a_prompt_longer_than_the_context_is_told_the_limit(app: serve.App) -> None:
    status, reply = ask(app, image=base64.b64encode(a_picture()).decode(), prompt="why " * 200)
    assert status == 400
    assert "limit" in reply["error"]


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(app: serve.App) -> None:
    packed = io.BytesIO()
    Image.new("1", (6000, 5000)).save(packed, "PNG")
    status, reply = ask(app, image=base64.b64encode(packed.getvalue()).decode(), prompt="What is this?")
    assert status == 413
    assert "6000 x 5000" in reply["error"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(app: serve.App) -> None:
    connection = HTTPConnection("127.0.0.1", app.server_port, timeout=60)
    connection.putrequest("POST", "/ask")
    connection.putheader("Content-Length", str(serve.MAX_BODY + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
