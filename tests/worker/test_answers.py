"""What becomes of an event's short answers, denials, prompt and several pictures; all of it kept with its check."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from cmerwatch import blobs, check_rows, db, events
from cmerwatch.settings import Settings
from cmerwatch.shapes import CheckResult, ClaimScore, Slice
from cmerwatch_worker import claims, scoring
from cmerwatch_worker.tasks import Checking
from tests import factories
from tests.worker import images, stage
from tests.worker.colours import Colours, frozen

RED = images.encoded(images.scene().crop((0, 0, 48, 64)))
BLUE = images.encoded(images.scene().crop((48, 0, 96, 64)))


@pytest.fixture
def settings(committed: str, configured: Callable[..., Settings]) -> Settings:
    return configured(decode_processes=1, audit_rate=0, batch_size=8)


@pytest.fixture
def checking(settings: Settings, blob_store: blobs.BlobStore) -> Iterator[Checking]:
    with stage.opened(settings, blob_store, Colours(frozen())) as opened:
        yield opened


def _checked(
    checking: Checking, store: blobs.BlobStore, pictures: Sequence[bytes], output: str, prompt: str = ""
) -> sa.RowMapping:
    with db.transaction() as session:
        project = factories.project(session)
        hashes = tuple(events.store_image(session, store, project, data) for data in pictures)
        event = events.NewEvent(
            slice=Slice(endpoint="/vqa", prompt_type="identify"),
            images=hashes,
            output=output,
            prompt=prompt,
            confidence=0.95,
        )
        made = events.ingest(session, project, event).id
    assert checking.drain() == 1
    return stage.check_of(made)


def test_a_right_short_answer_is_scored_by_its_statement(checking: Checking, blob_store: blobs.BlobStore) -> None:
    check = _checked(checking, blob_store, [RED], "Red.", "What colour is the circle?")
    [claim] = check["claims"]
    assert (claim["start"], claim["end"], claim["statement"]) == (0, 4, "The circle is red.")
    assert check["score"] > 0.05


def test_a_wrong_short_answer_is_low(checking: Checking, blob_store: blobs.BlobStore) -> None:
    assert _checked(checking, blob_store, [RED], "Blue", "What colour is the circle?")["score"] < 0.05


@pytest.mark.parametrize("asked, is_low", [("blue", False), ("red", True)])
def test_a_no_is_right_when_the_thing_is_not_there_and_low_when_it_is(
    checking: Checking, blob_store: blobs.BlobStore, asked: str, is_low: bool
) -> None:
    check = _checked(checking, blob_store, [RED], "No", f"Is there a {asked} circle?")
    assert check["claims"][0]["negated"] is True
    assert (check["score"] < 0.05) is is_low
    assert check["mismatch_percentile"] is None, "only what is stated can look like a wrong image"


@pytest.mark.parametrize("cosine, is_low", [(0.2, False), (0.8, False), (0.95, True)])
def test_a_no_is_low_only_when_the_thing_fits_like_one_that_is_there(cosine: float, is_low: bool) -> None:
    """0.8 is above nearly all mismatched pairs and below nearly all own ones: a blue circle asked of a red one."""
    event = factories.claimed(slice=Slice("/vqa", "identify"))
    claim = ClaimScore(0, 2, cosine, statement="There is a circle.", negated=True)
    judged = scoring.judge(Colours(), frozen(), CheckResult(event, "scored", similarity=cosine, claims=(claim, claim)))
    assert judged.score is not None
    assert (judged.score < 0.05) is is_low


def test_a_denied_detail_is_unscorable_for_that_reason(checking: Checking, blob_store: blobs.BlobStore) -> None:
    check = _checked(checking, blob_store, [RED], "no", "Is the circle blue?")
    assert (check["outcome"], check["reasons"]) == ("unscorable", ["denied_detail"])


@pytest.mark.parametrize(
    "prompt, reasons",
    [
        ("Describe the red thing.", []),
        ("Describe the blue thing.", ["prompt_does_not_fit"]),
        ("Describe the scene.", []),
        ("Is there a blue thing?", []),
    ],
)
def test_a_prompt_that_takes_for_granted_what_is_not_there_says_so(
    checking: Checking, blob_store: blobs.BlobStore, prompt: str, reasons: list[str]
) -> None:
    check = _checked(checking, blob_store, [RED], "A red circle.", prompt)
    assert check["reasons"] == reasons
    assert (check["prompt_similarity"] is None) is prompt.endswith(("scene.", "?"))


def test_of_several_pictures_each_cosine_is_kept_and_the_best_counts(
    checking: Checking, blob_store: blobs.BlobStore
) -> None:
    [claim] = _checked(checking, blob_store, [BLUE, RED], "A red circle.")["claims"]
    assert len(claim["images"]) == 2
    assert claim["similarity"] == max(claim["images"]) == claim["images"][1]


def test_an_output_of_two_hundred_thousand_characters_is_checked_in_part_and_says_how_much_was_left(
    checking: Checking, blob_store: blobs.BlobStore
) -> None:
    check = _checked(checking, blob_store, [RED], "A red circle. " * 14_000)
    assert check["outcome"] == "scored"
    assert len(check["claims"]) == claims.MAX_CLAIMS
    assert check["reasons"] == [f"claims_not_checked:{14_000 - claims.MAX_CLAIMS}"]


def test_a_picture_that_comes_to_no_number_is_a_model_error(settings: Settings, blob_store: blobs.BlobStore) -> None:
    class Nan(Colours):
        def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return super().embed_images(pixels) * np.float32(np.nan)

    with stage.opened(settings, blob_store, Nan(frozen())) as checking:
        check = _checked(checking, blob_store, [RED], "A red circle.")
    assert (check["outcome"], check["reasons"]) == ("model_error", ["embedding_not_a_number"])


def test_a_score_can_be_computed_again_from_what_is_stored(checking: Checking, blob_store: blobs.BlobStore) -> None:
    output = "A red circle. There is no blue square. A blue star."
    check = _checked(checking, blob_store, [RED, BLUE], output, "Describe the blue star.")
    event = factories.claimed(event_id=uuid.UUID(int=1), slice=Slice("/vqa", "identify"))
    known = CheckResult(
        event,
        "scored",
        similarity=check["similarity"],
        claims=tuple(check_rows.read({**claim, "percentile": None}) for claim in check["claims"]),
        prompt_similarity=check["prompt_similarity"],
    )
    again = scoring.judge(Colours(), frozen(), known)
    assert (again.score, again.mismatch_percentile) == (check["score"], check["mismatch_percentile"])
    assert [check_rows.stored(claim)["percentile"] for claim in again.claims] == [
        claim["percentile"] for claim in check["claims"]
    ]
    assert list(again.reasons) == check["reasons"]
