"""The order of checking: claim, decode, embed, then complete, count and route in one transaction."""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from cmerwatch import blobs, checks, db, events, ledger, models, policies, rollups
from cmerwatch.settings import Settings
from cmerwatch.shapes import Claimed, Slice
from cmerwatch_worker import tasks
from cmerwatch_worker.runtime import Prepared, Runtime
from cmerwatch_worker.tasks import Checking
from tests.worker import images, stage
from tests.worker.colours import Colours, frozen

RED = images.encoded(images.scene().crop((0, 0, 48, 64)))
BLUE = images.encoded(images.scene().crop((48, 0, 96, 64)))


@pytest.fixture
def settings(committed: str, configured: Callable[..., Settings]) -> Settings:
    return configured(decode_processes=1, audit_rate=0, batch_size=8)


@pytest.fixture
def checker() -> Colours:
    return Colours(frozen())


@pytest.fixture
def checking(settings: Settings, blob_store: blobs.BlobStore, checker: Colours) -> Iterator[Checking]:
    with stage.opened(settings, blob_store, checker) as opened:
        yield opened


@pytest.fixture
def project(settings: Settings) -> uuid.UUID:
    return stage.new_project()


def _scalar(statement: str, **values: object) -> object:
    with db.SessionLocal() as session:
        return session.execute(sa.text(statement), values).scalar()


def _balances(project_id: uuid.UUID) -> bool:
    now = dt.datetime.now(dt.UTC)
    with db.SessionLocal() as session:
        rows = ledger.hours(session, project_id, now - dt.timedelta(hours=2), now + dt.timedelta(hours=1))
        return all(row.difference == 0 for row in rows) and rollups.differences(session, project_id) == []


def test_a_true_sentence_is_scored_and_left_alone(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A red circle.")
    assert checking.drain() == 1
    check = stage.check_of(event)
    assert check["outcome"] == "scored"
    assert check["score"] > 0.05
    assert check["reasons"] == []
    assert stage.work_of(event) is None
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=event) is False
    assert _scalar("SELECT count(*) FROM review_items") == 0
    assert _balances(project)


def test_a_confident_false_sentence_is_flagged_and_routed_to_review(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A red circle. Beside it a blue square!")
    checking.drain()
    check = stage.check_of(event)
    true, false = check["claims"]
    assert (true["start"], true["end"], false["start"], false["end"]) == (0, 13, 14, 38)
    assert check["similarity"] == pytest.approx(false["similarity"])
    assert false["percentile"] < 0.01 < true["percentile"]
    assert check["score"] == pytest.approx(1 - (1 - false["percentile"]) ** 2)
    assert check["mismatch_percentile"] is not None
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=event) is True
    assert _scalar("SELECT kind FROM review_items WHERE event_id = :id", id=event) == "flagged"
    assert _scalar("SELECT sum(flagged) FROM rollups_5m") == 1
    assert _balances(project)


def test_unknown_confidence_is_never_flagged_but_goes_to_review(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A blue square.", confidence=None)
    checking.drain()
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=event) is False
    assert _scalar("SELECT kind FROM review_items WHERE event_id = :id", id=event) == "low_similarity_unconfirmed"


def test_a_claim_counts_by_its_best_image(checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore) -> None:
    event = stage.send(blob_store, project, [RED, BLUE], "A red circle. A blue square.")
    checking.drain()
    assert stage.check_of(event)["score"] > 0.05


def test_a_checker_without_reference_scores_and_decides_nothing(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    with stage.opened(settings, blob_store, Colours()) as checking:
        event = stage.send(blob_store, project, [RED], "A blue square.")
        checking.drain()
    check = stage.check_of(event)
    assert (check["outcome"], check["score"]) == ("scored", None)
    assert check["similarity"] < 0.6
    assert _scalar("SELECT count(*) FROM decisions") == 0
    assert _scalar("SELECT sum(undecided) FROM rollups_5m") == 1


@pytest.mark.parametrize(
    "output, reason",
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("3", "answer_without_statement"),
        ("Yes.", "answer_without_statement"),
        ("红色的圆。", "unreadable_script"),
        ("Sure!", "nothing_visual"),
    ],
)
def test_an_output_with_nothing_to_check_is_unscorable_for_a_reason(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore, output: str, reason: str
) -> None:
    event = stage.send(blob_store, project, [RED], output)
    checking.drain()
    check = stage.check_of(event)
    assert (check["outcome"], check["reasons"]) == ("unscorable", [reason])
    assert _scalar("SELECT count(*) FROM decisions") == 0
    assert _balances(project)


def test_a_truncated_image_ends_as_invalid_image_at_once(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    whole = images.encoded(images.scene((400, 300)), "JPEG")
    event = stage.send(blob_store, project, [whole[: len(whole) // 2]], "A red circle.")
    checking.drain()
    check = stage.check_of(event)
    assert (check["outcome"], check["reasons"]) == ("invalid_image", ["truncated"])


def test_a_blank_image_is_scored_and_says_so(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    blank = images.encoded(images.scene().crop((0, 0, 4, 4)).resize((64, 64)))
    event = stage.send(blob_store, project, [blank], "A red circle.")
    checking.drain()
    check = stage.check_of(event)
    assert check["outcome"] == "scored"
    assert "blank_image" in check["reasons"]


def test_every_image_of_a_batch_is_decoded_and_embedded_once_and_shown_as_webp(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore, checker: Colours
) -> None:
    for _ in range(12):
        stage.send(blob_store, project, [RED], "A red circle.")
    assert checking.drain() == 12
    assert sum(checker.image_calls) == 1
    assert checker.text_calls[0] == ["A red circle."]
    sha256 = str(_scalar("SELECT sha256 FROM images"))
    assert checking.copies.wait_made(30)
    display = blob_store.get_display(project, sha256)
    assert display is not None
    assert display[8:12] == b"WEBP"


def test_the_checker_begins_before_a_large_batch_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
    checking: Checking,
    checker: Colours,
    project: uuid.UUID,
    blob_store: blobs.BlobStore,
) -> None:
    monkeypatch.setattr(tasks, "FIRST_BATCH", 2)
    for i in range(20):
        picture = images.encoded(images.scene((48 + i, 64)))
        stage.send(blob_store, project, [picture], "A red circle.")
    assert checking.drain() == 20
    assert checker.image_calls == [2, 4, 8, 6]


def test_a_text_said_before_is_not_embedded_again(
    checking: Checking, checker: Colours, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    first = stage.send(blob_store, project, [RED], "A red circle.")
    checking.drain()
    again = stage.send(blob_store, project, [BLUE], "A red circle. A blue square.")
    checking.drain()
    assert checker.text_calls == [["A red circle."], ["A blue square."]]
    assert stage.check_of(first)["score"] > 0.05
    assert stage.check_of(again)["score"] < 0.05


def test_not_a_number_from_the_checker_spoils_that_event_only(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    class Nan(Colours):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            rows = super().embed_texts(texts)
            rows[[text.startswith("Broken") for text in texts]] = np.nan
            return rows

    with stage.opened(settings, blob_store, Nan(frozen())) as checking:
        broken = stage.send(blob_store, project, [RED], "Broken red circle.")
        healthy = stage.send(blob_store, project, [RED], "A red circle.")
        assert checking.drain() == 2
    assert stage.check_of(broken)["outcome"] == "model_error"
    assert stage.check_of(healthy)["outcome"] == "scored"
    assert _balances(project)


def test_a_text_the_checker_cannot_take_is_found_without_spending_attempts(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    class Picky(Colours):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if any("poison" in text for text in texts):
                raise RuntimeError("cannot")
            return super().embed_texts(texts)

    with stage.opened(settings, blob_store, Picky(frozen())) as checking:
        ids = [stage.send(blob_store, project, [RED], f"A red circle number {n}.") for n in range(7)]
        poison = stage.send(blob_store, project, [RED], "A red poison circle.")
        assert checking.drain() == 8
    assert stage.check_of(poison)["reasons"] == ["checker_error:RuntimeError"]
    assert {stage.check_of(event)["outcome"] for event in ids} == {"scored"}


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    class Small(Colours):
        def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if len(pixels) > 2:
                raise MemoryError
            return super().embed_images(pixels)

    with stage.opened(settings, blob_store, Small(frozen())) as checking:
        for n in range(8):
            picture = images.encoded(images.scene((64 + n, 64)))
            stage.send(blob_store, project, [picture], "A red circle.")
        assert checking.drain() == 8
    assert _scalar("SELECT count(*) FROM checks WHERE outcome = 'scored'") == 8


def test_an_image_missing_from_the_store_is_retried_then_quarantined_with_the_reason_and_replays(
    checking: Checking, project: uuid.UUID, blob_store: blobs.FolderStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A red circle.")
    healthy = stage.send(blob_store, project, [BLUE], "A blue square.")
    (lost,) = [path for path in blob_store.root.rglob("*") if path.is_file() and path.read_bytes() == RED]
    lost.unlink()
    for _ in range(checks.MAX_ATTEMPTS + 1):
        checking.drain()
        stage.make_ready()
    assert stage.check_of(healthy)["outcome"] == "scored"
    with db.SessionLocal() as session:
        (quarantined,) = checks.quarantined(session, project)
    assert quarantined.event_id == event
    assert "image_missing" in (quarantined.last_error or "")
    assert _balances(project)
    lost.write_bytes(RED)
    with db.transaction() as session:
        assert checks.replay(session, project) == 1
    assert checking.drain() == 1
    assert stage.check_of(event)["outcome"] == "scored"
    assert _balances(project)


def test_a_store_that_is_away_costs_nobody_an_attempt(
    checking: Checking, project: uuid.UUID, blob_store: blobs.FolderStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A red circle.")
    away = blob_store.root.rename(blob_store.root.with_name("unmounted"))
    for _ in range(checks.MAX_ATTEMPTS + 1):
        assert checking.drain() == 0
        work = stage.work_of(event)
        assert work is not None
        assert (work["state"], work["attempts"]) == (0, 0)
        assert "Is its volume mounted here" in work["last_error"]
        assert checking.poll() == 0, "it waits a while before the store is asked again"
        stage.make_ready()
    away.rename(blob_store.root)
    assert checking.drain() == 1
    assert stage.check_of(event)["outcome"] == "scored"
    assert _balances(project)


def test_one_projects_missing_folder_keeps_nobody_elses_events_waiting(
    checking: Checking, project: uuid.UUID, blob_store: blobs.FolderStore
) -> None:
    event = stage.send(blob_store, project, [RED], "A red circle.")
    others = stage.send(blob_store, stage.new_project("other"), [BLUE], "A blue square.")
    (blob_store.root / project.hex).rename(blob_store.root.with_name("lost"))
    assert checking.drain() == 1
    assert stage.check_of(others)["outcome"] == "scored"
    assert stage.work_of(event) is not None


def last_error_of_the_poison(checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore) -> str:
    """Of the one of six events that is quarantined, once the others are checked."""
    healthy = [stage.send(blob_store, project, [RED], f"A red circle number {n}.") for n in range(5)]
    poison = stage.send(blob_store, project, [RED], "A poisonous red circle.")
    for _ in range(12):  # four tries of it, and what it takes to find it among the others
        checking.drain()
        stage.make_ready()
    assert {stage.check_of(event)["outcome"] for event in healthy} == {"scored"}
    work = stage.work_of(poison)
    assert work is not None
    assert work["state"] == models.QUARANTINED
    return str(work["last_error"])


def test_a_fault_of_ours_while_decoding_counts_an_attempt_and_ends_alone(
    checking: Checking, project: uuid.UUID, blob_store: blobs.FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it given back uncounted, this batch would be claimed again and again, and nothing behind it ever."""
    prepare = Runtime.prepare

    def fragile(self: Runtime, claimed: Sequence[Claimed]) -> Prepared:
        if any(event.output == "A poisonous red circle." for event in claimed):
            raise ZeroDivisionError
        return prepare(self, claimed)

    monkeypatch.setattr(Runtime, "prepare", fragile)
    assert "ZeroDivisionError" in last_error_of_the_poison(checking, project, blob_store)


def test_an_image_that_kills_its_decoder_is_quarantined_alone(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    with stage.opened(settings, blob_store, Colours(frozen()), stage.FRAGILE) as checking:
        healthy = [stage.send(blob_store, project, [RED], f"A red circle number {n}.") for n in range(10)]
        poison = stage.send(blob_store, project, [RED + stage.MARK], "A red circle.")
        for _ in range(checks.MAX_ATTEMPTS + 1):
            checking.drain()
            stage.make_ready()
    assert {stage.check_of(event)["outcome"] for event in healthy} == {"scored"}
    work = stage.work_of(poison)
    assert work is not None
    assert (work["state"], work["attempts"], work["last_error"]) == (9, 4, "decode_crash")
    assert _balances(project)
    with db.transaction() as session:
        checks.replay(session, project, [poison])
    with stage.opened(settings, blob_store, Colours(frozen())) as mended:
        assert mended.drain() == 1
    assert stage.check_of(poison)["outcome"] == "scored"
    assert _balances(project)


def test_a_fault_of_ours_in_a_batch_counts_an_attempt_and_ends_alone(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = policies.Policy.decide

    def fragile(self: policies.Policy, result: object, is_calibrated: bool, has_bias: bool) -> object:
        if result.event.output == "A poisonous red circle.":  # type: ignore[attr-defined]
            raise ZeroDivisionError("secret text")
        return decide(self, result, is_calibrated, has_bias)  # type: ignore[arg-type]

    monkeypatch.setattr(policies.Policy, "decide", fragile)
    error = last_error_of_the_poison(checking, project, blob_store)
    assert "ZeroDivisionError" in error
    assert "secret" not in error


def test_an_event_whose_counts_no_key_can_hold_is_quarantined_and_stops_nobody(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    """The edge refuses such names; what an older one let in must not look like a database that is away."""
    wide = {name: _incompressible(name) for name in Slice._fields}
    with db.transaction() as session:
        picture = events.store_image(session, blob_store, project, RED)
        about = events.NewEvent(slice=Slice(**wide), images=(picture,), output="A red circle.", confidence=0.9)
        poison = events.ingest(session, project, about).id
    healthy = [stage.send(blob_store, project, [RED], f"A red circle number {n}.") for n in range(5)]
    for _ in range(8):
        checking.drain()
        stage.make_ready()
    assert {stage.check_of(event)["outcome"] for event in healthy} == {"scored"}
    work = stage.work_of(poison)
    assert work is not None
    assert (work["state"], "OverLimits" in work["last_error"]) == (9, True)
    assert _balances(project)


def _incompressible(seed: str) -> str:
    """200 characters of four bytes each."""
    drawn = random.Random(seed)
    return "".join(chr(drawn.randrange(0x20000, 0x2A000)) for _ in range(200))


def test_a_worker_whose_lease_was_taken_writes_nothing(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    thief = uuid.uuid4()

    class Slow(Colours):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            stage.make_ready()
            with db.transaction() as session:
                assert len(checks.claim(session, 8, 30, thief)) == 1
            return super().embed_texts(texts)

    with stage.opened(settings, blob_store, Slow(frozen())) as checking:
        event = stage.send(blob_store, project, [RED], "A red circle.")
        assert checking.drain() == 0
    assert _scalar("SELECT count(*) FROM checks") == 0
    assert _scalar("SELECT count(*) FROM rollups_5m") == 0
    work = stage.work_of(event)
    assert work is not None
    assert work["lease_token"] == thief


def test_a_lease_is_renewed_while_the_checker_is_slow(
    committed: str, configured: Callable[..., Settings], blob_store: blobs.BlobStore
) -> None:
    settings = configured(decode_processes=1, lease_seconds=1)
    project, renewed = stage.new_project(), threading.Event()
    event = stage.send(blob_store, project, [RED], "A red circle.")

    class Slow(Colours):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            first = stage.work_of(event)
            assert first is not None
            for _ in range(100):
                now = stage.work_of(event)
                if now is not None and now["lease_until"] > first["lease_until"]:
                    renewed.set()
                    break
                threading.Event().wait(0.05)
            return super().embed_texts(texts)

    with stage.opened(settings, blob_store, Slow(frozen())) as checking:
        assert checking.drain() == 1
    assert renewed.is_set()


def test_a_worker_asked_to_stop_finishes_its_batch_and_gives_the_next_one_back(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    class Stopping(Colours):
        def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            checking.stop()
            return super().embed_texts(texts)

    for n in range(20):
        stage.send(blob_store, project, [RED], f"A red circle number {n}.")
    with stage.opened(settings, blob_store, Stopping(frozen())) as checking:
        assert checking.drain() == 8
    assert _scalar("SELECT count(*) FROM work WHERE state = 0 AND attempts = 0") == 12


def test_polling_finds_what_no_hint_announced(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    assert checking.poll() == 0
    stage.send(blob_store, project, [RED], "A red circle.")
    assert checking.poll() == 1
