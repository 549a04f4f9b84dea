"""A real HTTP server on the loopback interface that judges well, badly, slowly or not at all."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cmerwatch import blobs, db, errors, judgements, models, settings
from cmerwatch_worker import judge
from tests import factories, stack
from tests.worker import images, stage
from tests.worker.colours import Colours, frozen

Answer = Callable[[http.server.BaseHTTPRequestHandler, dict[str, Any]], None]
Configure = Callable[..., settings.Settings]


class Server:
    """Speaks Chat Completions; `answer` may be exchanged, and every request is kept."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append(body)
                owner.keys.append(self.headers.get("Authorization"))
                with contextlib.suppress(OSError):
                    owner.answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(*alternatives: tuple[str, float], tokens: int = 120) -> bytes:
    """An answer whose first token had these alternatives, as (token, probability)."""
    top = [{"token": token, "logprob": math.log(p) if p else -9999.0, "bytes": None} for token, p in alternatives]
    content = [{"token": alternatives[0][0], "logprob": top[0]["logprob"], "top_logprobs": top}] if top else None
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "?"},
        "logprobs": content and {"content": content},
    }
    return json.dumps({"choices": [choice], "usage": {"total_tokens": tokens}}).encode()


def always(body: bytes, status: int = 200, **headers: str) -> Answer:
    return lambda handler, _: send(handler, body, status, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(always(completion(("No", 0.9), ("Yes", 0.1))))
    yield made
    made.close()


@pytest.fixture
def configure(configured: Configure, server: Server) -> Configure:
    def change(**overrides: object) -> settings.Settings:
        known = {"judge_url": server.url, "judge_model": "vlm-7b", "judge_timeout_seconds": 5}
        return configured(**(known | overrides))

    return change


@pytest.fixture
def suspect(committed: str, blob_store: blobs.BlobStore) -> uuid.UUID:
    """A flagged event, whose picture is stored, that waits for the judge; returns its project."""
    with db.transaction() as session:
        project_id = factories.project(session)
        sha256 = factories.image(session, project_id)
        blob_store.put(project_id, sha256, factories.png())
        blob_store.put_display(project_id, sha256, factories.png())
        factories.ingest(session, project_id, output="A red circle.")
        judgements.route(session, factories.check_all(session, score=0.01), below=None)
    return project_id


def judge_once(configuration: settings.Settings, store: blobs.BlobStore) -> models.Judgement:
    opened = judge.open_judge(configuration, store)
    assert opened is not None
    try:
        assert judge.judge_some(opened, threading.Event()) == 1
    finally:
        opened.close()
    with db.transaction() as session:
        return session.scalars(sa.select(models.Judgement)).one()


def test_the_judge_is_shown_the_picture_and_asked_about_one_claim(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    row = judge_once(configure(judge_api_key="sk-of-the-judge"), blob_store)
    assert row.state == "judged"
    assert row.p_yes == pytest.approx(0.1)
    assert (row.judge, row.calls, row.tokens, len(row.claims)) == ("vlm-7b", 1, 120, 1)
    [request] = server.requests
    picture, text = request["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "A red circle." in text["text"]
    assert (request["model"], request["max_tokens"], request["logprobs"]) == ("vlm-7b", 1, True)
    assert server.keys == ["Bearer sk-of-the-judge"]


def test_the_checkers_numbers_are_left_alone(
    suspect: uuid.UUID, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    def numbers() -> list[Any]:
        with db.transaction() as session:
            found = session.execute(sa.text("SELECT similarity, score, reasons FROM checks")).all()
            counted = session.execute(sa.text("SELECT n, flagged, low, scored FROM rollups_5m")).all()
            decided = session.execute(sa.text("SELECT flagged, low_similarity FROM decisions")).all()
            return [found, counted, decided]

    before = numbers()
    judge_once(configure(), blob_store)
    assert numbers() == before


@pytest.mark.parametrize(
    "answer, state, reason",
    [
        pytest.param(always(b"<html>hello", 200), "failed", "not_json", id="no JSON"),
        pytest.param(always(b"[]"), "failed", "not_json", id="another JSON"),
        pytest.param(always(b'{"choices":[]}'), "failed", "not_json", id="no choices"),
        pytest.param(always(b"[" * 100_000), "failed", "not_json", id="nested too deep"),
        pytest.param(always(completion()), "failed", "no_logprobs", id="no logprobs"),
        pytest.param(always(completion(("Maybe", 0.9), ("yes", 0.05))), "failed", "unclear", id="nonsense"),
        pytest.param(always(completion(("yes", 0.0), ("no", 0.0))), "failed", "unclear", id="sentinels"),
        pytest.param(always(b"x" * (1 << 20)), "failed", "not_json", id="too long"),
        pytest.param(always(b"no", 401), "failed", "http_401", id="a wrong key"),
        pytest.param(always(b"", 302, Location="http://127.0.0.1:1/"), "failed", "http_302", id="a redirect"),
        pytest.param(always(b"", 500), "waiting", "http_500", id="an error of its own"),
        pytest.param(always(b"", 429, Retry_After="7"), "waiting", "http_429", id="too many requests"),
        pytest.param(always(b"", 429, Retry_After="nan"), "waiting", "http_429", id="patience without a number"),
    ],
)
def test_whatever_a_judge_answers_is_a_named_outcome(
    suspect: uuid.UUID,
    server: Server,
    configure: Configure,
    blob_store: blobs.BlobStore,
    answer: Answer,
    state: str,
    reason: str,
) -> None:
    server.answer = answer
    row = judge_once(configure(), blob_store)
    assert (row.state, row.reason, row.p_yes) == (state, reason, None)
    assert len(server.requests) == 1


def test_a_judge_that_hangs_is_given_up(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    server.answer = lambda *_: server.released.wait(60) and None
    row = judge_once(configure(judge_timeout_seconds=0.2), blob_store)
    assert (row.state, row.reason) == ("waiting", "timeout")


def test_a_judge_that_drips_is_given_up(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.released.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    server.answer = drip
    row = judge_once(configure(judge_timeout_seconds=0.3), blob_store)
    assert (row.state, row.reason) == ("waiting", "timeout")


def test_a_judge_that_drips_headers_is_given_up(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not server.released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    server.answer = drip
    row = judge_once(configure(judge_timeout_seconds=0.3), blob_store)
    assert (row.state, row.reason) == ("waiting", "timeout")


@pytest.mark.parametrize("status, spent", [(429, 0), (500, 1)])
def test_what_was_refused_for_now_is_not_taken_from_the_days_calls(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore, status: int, spent: int
) -> None:
    server.answer = always(b"", status)
    judge_once(configure(), blob_store)
    with db.transaction() as session:
        assert session.scalar(sa.select(models.JudgeSpend.calls)) == spent


def test_a_judge_that_is_not_there_is_tried_again(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    configuration = configure()
    server.close()
    row = judge_once(configuration, blob_store)
    assert (row.state, row.reason, row.attempts) == ("waiting", "unreachable", 1)


def test_nothing_is_asked_once_the_days_calls_are_spent(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    with db.transaction() as session:
        judgements.reserve(session, 5, most_calls=5, most_tokens=10)
    row = judge_once(configure(judge_daily_calls=5), blob_store)
    assert (row.state, row.reason) == ("skipped", "over_budget")
    assert server.requests == []


def test_a_judge_that_costs_too_much_is_asked_once(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    server.answer = always(completion(("yes", 0.8), ("no", 0.2), tokens=5_000_000))
    configuration = configure()
    judge_once(configuration, blob_store)
    with db.transaction() as session:
        factories.ingest(session, suspect)
        judgements.route(session, factories.check_all(session, score=0.01), below=None)
    opened = judge.open_judge(configuration, blob_store)
    assert opened is not None
    judge.judge_some(opened, threading.Event())
    opened.close()
    assert len(server.requests) == 1
    with db.transaction() as session:
        reasons = session.scalars(sa.select(models.Judgement.reason).order_by(models.Judgement.event_id)).all()
    assert reasons == ["", "over_budget"]


def test_a_picture_that_is_gone_is_not_judged_without(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    for path in (tmp_path / "data" / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    row = judge_once(configure(), blob_store)
    assert (row.state, row.reason) == ("failed", "no_picture")
    assert server.requests == []


def test_a_store_that_is_away_is_waited_for(
    suspect: uuid.UUID, server: Server, configure: Configure, tmp_path: Path
) -> None:
    row = judge_once(configure(), blobs.FolderStore(tmp_path / "another"))
    assert (row.state, row.reason, row.attempts) == ("waiting", "store_away", 0)
    assert server.requests == []


@pytest.mark.parametrize(
    "alternatives, p_yes",
    [
        ([("Yes", 0.6), ("No", 0.2), (" yes", 0.1), ("Perhaps", 0.1)], 0.7 / 0.9),
        ([("no", 0.5), (" No.", 0.5)], 0.0),
        ([("YES!", 1.0)], 1.0),
    ],
)
def test_every_spelling_of_yes_and_no_counts(alternatives: list[tuple[str, float]], p_yes: float) -> None:
    assert judge.read_answer(completion(*alternatives), negated=False).p_yes == pytest.approx(p_yes)


@pytest.mark.parametrize("logprobs", [(math.nan, -3.0), (0.9, 0.1), (math.inf, -math.inf)])
def test_numbers_that_are_no_logprobs_are_no_opinion(logprobs: tuple[float, float]) -> None:
    top = [{"token": token, "logprob": value} for token, value in zip(("yes", "no"), logprobs, strict=True)]
    body = json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})
    assert judge.read_answer(body.encode(), negated=False) == judge.Answer(reason="unclear")


def test_a_judge_that_is_told_to_stop_leaves_what_it_did_not_ask_as_it_was(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    opened, stopping = judge.open_judge(configure(), blob_store), threading.Event()
    assert opened is not None
    stopping.set()
    judge.judge_some(opened, stopping)
    opened.close()
    with db.transaction() as session:
        row = session.scalars(sa.select(models.Judgement)).one()
    assert (row.state, row.attempts, row.lease_token) == ("waiting", 0, None)


def test_an_error_in_one_event_does_not_end_the_judge(
    suspect: uuid.UUID, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    """A store may raise what its protocol does not name."""
    opened, stopping = judge.open_judge(configure(poll_seconds=0.05), blob_store), threading.Event()
    assert opened is not None
    ask, failed = opened.ask, threading.Event()

    def fail_once(one: judgements.Suspect) -> judgements.Opinion:
        if not failed.is_set():
            failed.set()
            raise RuntimeError
        return ask(one)

    opened.ask = fail_once  # type: ignore[method-assign]
    thread = threading.Thread(target=judge.run, args=(opened, stopping))
    thread.start()
    assert failed.wait(10)
    with db.transaction() as session:
        factories.ingest(session, suspect)
        judgements.route(session, factories.check_all(session, score=0.01), below=None)
    stack.wait_until(lambda: bool(server.requests) or not thread.is_alive())
    stopping.set()
    thread.join()
    assert server.requests


def test_what_the_output_denies_is_true_when_the_statement_is_not() -> None:
    answer = judge.read_answer(completion(("no", 0.9), ("yes", 0.1)), negated=True)
    assert answer.p_yes == pytest.approx(0.9)


def test_no_judge_is_asked_where_none_is_configured(configured: Configure, blob_store: blobs.BlobStore) -> None:
    assert judge.open_judge(configured(), blob_store) is None


def test_a_judge_without_a_model_stops_the_start(configured: Configure) -> None:
    with pytest.raises(errors.StartRefused, match="CMERWATCH_JUDGE_MODEL"):
        configured(judge_url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    "name, value", [("judge_url", "ftp://x"), ("judge_below", "2"), ("judge_daily_calls", "0"), ("judge_claims", "0")]
)
def test_a_bad_setting_of_the_judge_is_named(configured: Configure, name: str, value: str) -> None:
    with pytest.raises(errors.StartRefused, match=f"CMERWATCH_{name.upper()}"):
        configured(**{name: value})


def test_a_worker_queues_what_it_flags_and_the_judge_is_asked_about_it(
    committed: str, server: Server, configure: Configure, blob_store: blobs.BlobStore
) -> None:
    configuration = configure(decode_processes=1, audit_rate=0)
    project_id = stage.new_project()
    red = images.encoded(images.scene().crop((0, 0, 48, 64)))
    stage.send(blob_store, project_id, [red], "A red circle.")
    wrong = stage.send(blob_store, project_id, [red], "A blue circle.")
    with stage.opened(configuration, blob_store, Colours(frozen())) as checking:
        assert checking.drain() == 2
    row = judge_once(configuration, blob_store)
    assert (row.event_id, row.state) == (wrong, "judged")
    assert [request["messages"][0]["content"][1]["text"].splitlines()[-1] for request in server.requests] == [
        "Statement: A blue circle."
    ]


def test_without_a_judge_nothing_is_queued(committed: str, configured: Configure, blob_store: blobs.BlobStore) -> None:
    project_id = stage.new_project()
    red = images.encoded(images.scene().crop((0, 0, 48, 64)))
    stage.send(blob_store, project_id, [red], "A blue circle.")
    with stage.opened(configured(decode_processes=1), blob_store, Colours(frozen())) as checking:
        assert checking.drain() == 1
    with db.transaction() as session:
        assert session.scalars(sa.select(models.Judgement)).all() == []
