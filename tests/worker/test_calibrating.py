"""A checker without a bundle's reference takes one from the first traffic and decides what waited for it, once each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sqlalchemy as sa

from cmerwatch import blobs, db, policies, references, rollups
from cmerwatch.settings import Settings
from cmerwatch.shapes import Claimed
from cmerwatch_worker import app, calibrating, contrast, redeciding, reference, tasks
from cmerwatch_worker.tasks import Checking
from tests import factories, stack
from tests.worker import images, stage
from tests.worker.colours import Colours, frozen

RED = images.encoded(images.scene().crop((0, 0, 48, 64)))
BLUE = images.encoded(images.scene().crop((48, 0, 96, 64)))
PER_EVENT = calibrating.CLAIMS_PER_EVENT
ENOUGH = reference.MIN_CLAIMS // PER_EVENT + 1  # one more, for the first has no stranger to be paired with


@pytest.fixture
def settings(committed: str, configured: Callable[..., Settings]) -> Settings:
    return configured(decode_processes=1, audit_rate=0, batch_size=16)


@pytest.fixture
def project(settings: Settings) -> uuid.UUID:
    return stage.new_project()


@pytest.fixture
def checking(settings: Settings, blob_store: blobs.BlobStore) -> Iterator[Checking]:
    with stage.opened(settings, blob_store, Colours()) as opened:
        yield opened


def _send(store: blobs.BlobStore, project: uuid.UUID, n: int, start: int = 0) -> list[uuid.UUID]:
    """n right answers of PER_EVENT claims each, about red and blue pictures in turn."""
    made = []
    for i in range(start, start + n):
        colour, picture = (("red", RED), ("blue", BLUE))[i % 2]
        output = " ".join(f"A {colour} circle {i} {j}." for j in range(PER_EVENT))
        made.append(stage.send(store, project, [picture], output))
    return made


def _scalar(statement: str, **values: object) -> object:
    with db.SessionLocal() as session:
        return session.execute(sa.text(statement), values).scalar()


def _counts() -> tuple[object, object, object]:
    return (
        _scalar("SELECT sum(scored) FROM rollups_5m"),
        _scalar("SELECT sum(undecided) FROM rollups_1h"),
        _scalar("SELECT sum(n) FROM rollups_1h"),
    )


def _differences(project: uuid.UUID) -> list[str]:
    with db.SessionLocal() as session:
        return rollups.differences(session, project)


def test_until_there_is_enough_nothing_is_decided(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH - 2)
    checking.drain()
    assert checking.calibrate() == 0
    assert _scalar("SELECT count(*) FROM decisions") == 0
    assert _counts() == (ENOUGH - 2, ENOUGH - 2, 0)


def test_with_enough_the_reference_freezes_and_all_that_waited_is_decided_counted_and_routed(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH)
    wrong = stage.send(blob_store, project, [RED], "A blue circle. A red square.")
    unknown = stage.send(blob_store, project, [RED], "A blue circle of its own.", confidence=None)
    checking.drain()
    assert checking.calibrate() == ENOUGH + 2
    assert _counts() == (ENOUGH + 2, 0, ENOUGH + 1)
    assert _differences(project) == []
    check = stage.check_of(wrong)
    assert check["score"] < 0.05
    assert [claim["percentile"] is not None for claim in check["claims"]] == [True, True]
    assert check["mismatch_percentile"] is not None
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=wrong) is True
    assert _scalar("SELECT kind FROM review_items WHERE event_id = :id", id=wrong) == "flagged"
    assert _scalar("SELECT kind FROM review_items WHERE event_id = :id", id=unknown) == "low_similarity_unconfirmed"
    assert _scalar("SELECT count(*) FROM reference_samples") == 0
    assert _scalar("SELECT version FROM checker_references") == _scalar("SELECT reference_version FROM checkers")


def test_what_comes_after_the_freeze_is_decided_at_once(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH)
    checking.drain()
    checking.calibrate()
    later = stage.send(blob_store, project, [RED], "A blue circle.")
    checking.drain()
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=later) is True
    assert checking.calibrate() == 0
    assert _differences(project) == []


def test_a_restarted_worker_takes_up_the_frozen_reference(
    settings: Settings, checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH)
    checking.drain()
    checking.calibrate()
    with stage.opened(settings, blob_store, Colours()) as restarted:
        assert restarted.checker_id == checking.checker_id
        restarted.calibrate()
        later = stage.send(blob_store, project, [RED], "A blue circle.")
        restarted.drain()
    assert stage.check_of(later)["score"] < 0.05


def test_a_worker_that_had_not_heard_of_the_freeze_leaves_nothing_undecided_for_good(
    settings: Settings, checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH)
    checking.drain()
    checking.calibrate()
    with stage.opened(settings, blob_store, Colours()) as unaware:
        _send(blob_store, project, 3, start=ENOUGH)
        unaware.drain()
    assert _scalar("SELECT sum(undecided) FROM rollups_5m") == 3
    assert checking.calibrate() == 3
    assert _counts() == (ENOUGH + 3, 0, ENOUGH + 3)
    assert _scalar("SELECT count(*) FROM reference_samples") == 0


def test_workers_that_calibrate_at_the_same_time_decide_each_check_once(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "BATCH", 7)
    with stage.opened(settings, blob_store, Colours()) as one, stage.opened(settings, blob_store, Colours()) as two:
        _send(blob_store, project, ENOUGH + 20)
        one.drain()
        with ThreadPoolExecutor(4) as pool:
            done = sum(pool.map(lambda checking: checking.calibrate(), [one, two, one, two]))
        done += one.calibrate() + two.calibrate()
    assert done == ENOUGH + 20
    assert _counts() == (ENOUGH + 20, 0, ENOUGH + 20)
    assert _differences(project) == []
    assert _scalar("SELECT count(*) FROM checker_references") == 1


def test_what_waited_is_decided_by_the_policy_it_was_counted_under(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _send(blob_store, project, ENOUGH)
    checking.drain()
    with db.transaction() as session:
        policies.create(session, project, [{"match": {}, "conf_threshold": 0.1, "sim_threshold": 1.0}], "someone")
    assert checking.calibrate() == ENOUGH
    assert _scalar("SELECT max(policy_version) FROM decisions") == 1
    assert _differences(project) == []


class Biased(Colours):
    """Of the SigLIP kind: its logit has a bias, be it the smallest."""

    logit_bias: float | None = -0.1


COSINE = [{"measure": "cosine", "sim_threshold": 0.25}]


def _policy(project: uuid.UUID, *rules: dict[str, object]) -> None:
    with db.transaction() as session:
        policies.create(session, project, list(rules), "user:ada")


def test_a_checker_with_a_logit_bias_scores_under_a_fixed_cosine_and_leaves_it_undecided(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _policy(project, *COSINE)
    with stage.opened(settings, blob_store, Biased(frozen())) as checking:
        wrong = stage.send(blob_store, project, [RED], "A blue circle.")
        checking.drain()
    assert stage.check_of(wrong)["score"] < 0.05
    assert _counts() == (1, 1, 0)
    assert _scalar("SELECT count(*) FROM decisions") == _scalar("SELECT count(*) FROM review_items") == 0
    assert _differences(project) == []
    assert redeciding.decide_withheld(settings) == 0
    _policy(project, {"sim_threshold": "auto"})
    assert redeciding.decide_withheld(settings) == 1
    assert redeciding.decide_withheld(settings) == 0
    assert _counts() == (1, 0, 1)
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=wrong) is True
    assert _scalar("SELECT kind FROM review_items WHERE event_id = :id", id=wrong) == "flagged"
    assert _differences(project) == []


def test_what_calibrated_under_a_fixed_cosine_has_its_score_and_waits_for_a_policy_that_fits(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    _policy(project, *COSINE)
    with stage.opened(settings, blob_store, Biased()) as checking:
        _send(blob_store, project, ENOUGH)
        checking.drain()
        assert checking.calibrate() == ENOUGH
        assert checking.calibrate() == 0
    assert _counts() == (ENOUGH, ENOUGH, 0)
    assert _scalar("SELECT count(*) FROM checks WHERE score IS NULL") == 0
    _policy(project, {"sim_threshold": "auto"})
    assert redeciding.decide_withheld(settings) == ENOUGH
    assert _counts() == (ENOUGH, 0, ENOUGH)
    assert _differences(project) == []


def test_a_worker_whose_checker_the_policy_does_not_fit_says_so_when_it_starts(
    committed: str,
    configured: Callable[..., Settings],
    blob_store: blobs.BlobStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = configured(decode_processes=1, poll_seconds=0.05, database_url=committed)
    project = stage.new_project()
    _policy(project, *COSINE)
    stage.send(blob_store, project, [RED], "A blue circle.")
    engine = db.configure(committed)
    with app.running(settings, Biased(frozen()), engine):
        stack.wait_until(lambda: _counts()[1] == 1)
    engine.dispose()
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "stay undecided: policy 2 is a fixed cosine and checker colours:test:0:0 has a logit bias" in warning


def test_a_running_worker_calibrates_by_itself(
    committed: str,
    configured: Callable[..., Settings],
    blob_store: blobs.BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "CALIBRATE_SECONDS", 0.05)
    settings = configured(decode_processes=1, audit_rate=0, poll_seconds=0.05, database_url=committed)
    project = stage.new_project()
    _send(blob_store, project, ENOUGH)
    wrong = stage.send(blob_store, project, [RED], "A blue circle. A red square.")
    engine = db.configure(committed)
    with app.running(settings, Colours(), engine):
        stack.wait_until(lambda: _counts()[1:] == (0, ENOUGH + 1))
    assert _scalar("SELECT flagged FROM decisions WHERE event_id = :id", id=wrong) is True
    assert _differences(project) == []
    engine.dispose()


def test_what_waited_and_is_low_is_put_to_the_judge(
    committed: str, configured: Callable[..., Settings], blob_store: blobs.BlobStore
) -> None:
    settings = configured(
        decode_processes=1, audit_rate=0, judge_url="http://127.0.0.1:9", judge_model="one", judge_below=0.05
    )
    project = stage.new_project()
    _send(blob_store, project, ENOUGH)
    wrong = stage.send(blob_store, project, [RED], "A blue circle. A red square.")
    with stage.opened(settings, blob_store, Colours()) as checking:
        checking.drain()
        assert _scalar("SELECT count(*) FROM judgements") == 0
        checking.calibrate()
    assert _scalar("SELECT count(*) FROM judgements WHERE event_id = :id", id=wrong) == 1


def test_the_same_answer_sent_again_and_again_says_its_scale_once(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    for _ in range(5):
        stage.send(blob_store, project, [RED], "A red circle.")
    stage.send(blob_store, project, [RED], "A red square.")
    checking.drain()
    assert _scalar("SELECT count(*) FROM reference_samples") == 2


def test_a_blank_picture_says_nothing_of_the_scale(
    checking: Checking, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    blank = images.encoded(images.scene().crop((0, 0, 4, 4)).resize((64, 64)))
    stage.send(blob_store, project, [blank], "A red circle.")
    checking.drain()
    assert _scalar("SELECT count(*) FROM reference_samples") == 0


def test_a_new_reference_in_a_bundle_never_mixes_with_the_old_one(session: object) -> None:
    other = reference.build({"identify": [0.5 + i / 1000 for i in range(500)]}, {"identify": [0.1] * 500})
    first, second = tasks.register(Colours(frozen())), tasks.register(Colours(other))
    assert first != second
    assert tasks.register(Colours(frozen())) == first
    with db.SessionLocal() as asked:
        kept = references.load(asked, first)
    assert kept is not None
    assert reference.from_json(kept).version == frozen().version


# --- pairs that do not belong together ---------------------------------------------------------------------------


def _row(*values: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rows = np.array([values], np.float32)
    return rows / np.linalg.norm(rows)


def _event(n: int, **fields: object) -> Claimed:
    return factories.claimed(event_id=uuid.UUID(int=n), **fields)


def test_a_near_duplicate_of_the_own_picture_is_no_stranger() -> None:
    strangers = calibrating.Strangers()
    strangers.sample(Colours(), _event(1), _row(1, 0, 0), _row(1, 0, 0))
    again = strangers.sample(Colours(), _event(2), _row(1, 0.1, 0), _row(1, 0, 0))
    assert again.mismatched == ()
    other = strangers.sample(Colours(), _event(3), _row(0, 1, 0), _row(0, 1, 0))
    assert len(other.mismatched) == len(other.own) == 1
    assert other.mismatched[0] < other.own[0]


def test_no_other_projects_picture_is_ever_a_stranger() -> None:
    strangers = calibrating.Strangers()
    strangers.sample(Colours(), _event(1), _row(1, 0, 0), _row(1, 0, 0))
    elsewhere = strangers.sample(Colours(), _event(2, project_id=uuid.UUID(int=9)), _row(0, 1, 0), _row(0, 1, 0))
    assert elsewhere.mismatched == ()


def test_a_long_output_makes_no_more_than_its_share() -> None:
    texts = np.concatenate([_row(1, i / 100, 0) for i in range(60)])
    assert len(calibrating.Strangers().sample(Colours(), _event(1), _row(1, 0, 0), texts).own) == PER_EVENT


def test_a_model_with_a_bias_is_sampled_by_its_logit() -> None:
    class Biased(Colours):
        logit_scale = 100.0
        logit_bias: float | None = -10.0

    made = calibrating.Strangers().sample(Biased(), _event(1), _row(1, 0, 0), _row(1, 0, 0))
    assert made.own[0] == pytest.approx(90)


# --- contrast sets ---------------------------------------------------------------------------------------------------


def test_with_contrast_sets_a_checker_is_another_one_that_calibrates_anew_and_keeps_each_margin(
    settings: Settings, project: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    with stage.opened(settings, blob_store, contrast.Contrasting(Colours(frozen()))) as checking:
        _send(blob_store, project, ENOUGH)
        right = stage.send(blob_store, project, [RED], "A red circle.")
        wrong = stage.send(blob_store, project, [RED], "A blue circle.")
        checking.drain()
        assert _scalar("SELECT name FROM checkers") == f"{Colours.id}+contrast"
        assert checking.calibrate() == ENOUGH + 2
        assert stage.check_of(wrong)["score"] < 0.05 < stage.check_of(right)["score"]
        later = stage.send(blob_store, project, [RED], "A blue circle of its own.")
        checking.drain()
    margins = [stage.check_of(event)["claims"][0]["contrast"] for event in (right, wrong, later)]
    assert margins[1] < margins[0] < 0
    assert stage.check_of(later)["score"] < 0.05
    assert _differences(project) == []
