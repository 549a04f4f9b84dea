"""Ingest: stored once whatever is retried, wholly or not at all, and no bad event harms its neighbours."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import math
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import blobs, checks, db, errors, events, images, models, partitions
from tests import factories

UPLOADED = "picture"


def stored(session: orm.Session) -> tuple[int, int, int, int]:
    """How many events, bodies, work rows and idempotency keys there are: never different numbers of the first three."""
    counts = [
        session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
        for table in (models.Event, models.EventBody, models.Work, models.IngestKey)
    ]
    return counts[0], counts[1], counts[2], counts[3]


@pytest.fixture
def sha256(session: orm.Session, project: models.Project) -> str:
    return factories.image(session, project.id, UPLOADED)


# One event


def test_an_event_is_stored_with_its_body_and_its_work(
    session: orm.Session, project: models.Project, sha256: str
) -> None:
    event = factories.new_event(
        sha256,
        event_id="order-7",
        endpoint="/e",
        prompt_type="describe",
        customer="c",
        model="m",
        model_version="2",
        environment="prod",
        tokens=("A", "b"),
        logprobs=(-0.1, -0.3),
        confidence=0.5,
        metadata={"depth": [1, {"x": None}]},
        request_id="r",
        sample_rate=0.25,
    )
    made = events.ingest(session, project.id, event)
    row, body = session.get_one(models.Event, made.id), session.get_one(models.EventBody, made.id)
    work = session.get_one(models.Work, made.id)
    assert made.status == "accepted"
    assert [getattr(row, name) for name in event.slice._fields] == list(event.slice)
    assert [getattr(work, name) for name in event.slice._fields] == list(event.slice)
    assert (row.event_key, row.images, row.sample_rate) == ("order-7", [sha256], 0.25)
    assert row.geo_p == pytest.approx(math.exp(-0.2)), "logprobs beat a reported confidence"
    assert (row.n_tokens, row.confidence_status) == (2, "present")
    assert (body.tokens, body.logprobs, body.metadata_) == (["A", "b"], [-0.1, -0.3], {"depth": [1, {"x": None}]})
    assert (body.output, body.prompt, body.request_id) == (event.output, event.prompt, "r")
    assert work.bucket == events.bucket_of(row.received_at)


def test_an_unknown_confidence_stays_unknown(session: orm.Session, project: models.Project, sha256: str) -> None:
    made = events.ingest(session, project.id, factories.new_event(sha256, confidence=None))
    row = session.get_one(models.Event, made.id)
    assert (row.geo_p, row.confidence_status) == (None, "not_reported")


def test_without_an_id_every_event_is_new(session: orm.Session, project: models.Project, sha256: str) -> None:
    event = factories.new_event(sha256)
    assert events.ingest(session, project.id, event).id != events.ingest(session, project.id, event).id
    assert stored(session) == (2, 2, 2, 0)


# Retries


def test_a_retry_with_the_same_id_is_stored_once(session: orm.Session, project: models.Project, sha256: str) -> None:
    event = factories.new_event(sha256, event_id="one")
    first = events.ingest(session, project.id, event)
    again = events.ingest(session, project.id, event)
    assert (again.id, again.status) == (first.id, "duplicate")
    assert stored(session) == (1, 1, 1, 1)


def test_a_retry_after_the_check_makes_no_new_work(session: orm.Session, project: models.Project, sha256: str) -> None:
    event = factories.new_event(sha256, event_id="one")
    events.ingest(session, project.id, event)
    factories.check_all(session)
    assert events.ingest(session, project.id, event).status == "duplicate"
    assert checks.waiting(session, project.id) == 0


@pytest.mark.parametrize(
    "change",
    [{"output": "Another."}, {"confidence": 0.8}, {"endpoint": "/other"}, {"metadata": {"a": 1}}, {"prompt": None}],
    ids=str,
)
def test_the_same_id_with_another_body_is_a_conflict_that_changes_nothing(
    session: orm.Session, project: models.Project, sha256: str, change: dict[str, Any]
) -> None:
    first = events.ingest(session, project.id, factories.new_event(sha256, event_id="one"))
    with pytest.raises(errors.Conflict, match="another body") as caught:
        events.ingest(session, project.id, factories.new_event(sha256, event_id="one", **change))
    assert caught.value.details["id"] == str(first.id)
    assert stored(session) == (1, 1, 1, 1)


def test_another_project_may_use_the_same_id(
    session: orm.Session, project: models.Project, stranger: models.Project, sha256: str
) -> None:
    first = events.ingest(session, project.id, factories.new_event(sha256, event_id="one"))
    theirs = factories.image(session, stranger.id, UPLOADED)
    second = events.ingest(session, stranger.id, factories.new_event(theirs, event_id="one"))
    assert second.status == "accepted"
    assert second.id != first.id


def test_what_an_event_does_not_say_has_no_part_in_its_hash() -> None:
    """Or a release that adds a field would take every retry that spans the deploy for a conflict."""
    event = factories.new_event("00", event_id="one", confidence=None)
    longer = dataclasses.make_dataclass("Later", [("added_later", object, None)], bases=(events.NewEvent,), frozen=True)
    later = longer(**{f.name: getattr(event, f.name) for f in dataclasses.fields(event)})
    assert events.body_hash(later) == events.body_hash(event)
    sanitized = dataclasses.replace(event, text_sanitized=True)
    assert events.body_hash(sanitized) == events.body_hash(event)


def test_one_moment_in_two_time_zones_is_one_body() -> None:
    there = factories.AT.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    first, second = (factories.new_event("00", event_id="one", occurred_at=at) for at in (factories.AT, there))
    assert events.body_hash(first) == events.body_hash(second)


def test_retries_at_once_become_one_event_with_one_id(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        event = factories.new_event(factories.image(session, project_id), event_id="one")
    start = threading.Barrier(6)

    def send() -> events.Ingested:
        start.wait()
        with db.transaction() as session:
            return events.ingest(session, project_id, event)

    with ThreadPoolExecutor(6) as pool:
        answers = [future.result() for future in [pool.submit(send) for _ in range(6)]]
    assert len({answer.id for answer in answers}) == 1
    assert sorted(answer.status for answer in answers) == ["accepted"] + ["duplicate"] * 5
    with db.transaction() as session:
        assert stored(session) == (1, 1, 1, 1)


def test_a_retry_that_meets_an_unfinished_first_try_waits_for_its_end(committed: str) -> None:
    """The first is rolled back after the second began: the second must store the event, not call it a duplicate."""
    with db.transaction() as session:
        project_id = factories.project(session)
        event = factories.new_event(factories.image(session, project_id), event_id="one")

    def send() -> events.Ingested:
        with db.transaction() as session:
            return events.ingest(session, project_id, event)

    with ThreadPoolExecutor(1) as pool, db.SessionLocal() as first:
        events.ingest(first, project_id, event)
        second = pool.submit(send)
        factories.wait_for_locks(1)
        first.rollback()
        assert second.result(20).status == "accepted"
    with db.transaction() as session:
        assert stored(session) == (1, 1, 1, 1)


def test_two_batches_with_the_same_ids_in_opposite_orders_do_not_deadlock(committed: str) -> None:
    """A third holds one id until both have begun: in an order of their own each would hold the other's next."""
    with db.transaction() as session:
        project_id = factories.project(session)
        sha256 = factories.image(session, project_id)
    batch = [factories.new_event(sha256, event_id=f"e{number}") for number in range(9)]

    def send(order: int) -> set[str]:
        with db.transaction() as session:
            answers = events.ingest_many(session, project_id, batch[::order])
            return {answer.status for answer in answers if isinstance(answer, events.Ingested)}

    with db.SessionLocal() as third, ThreadPoolExecutor(2) as pool:
        events.ingest(third, project_id, batch[4])
        sending = [pool.submit(send, order) for order in (1, -1)]
        factories.wait_for_locks(2)
        third.rollback()
        answers = [one.result(20) for one in sending]
    assert sorted(map(sorted, answers)) == [["accepted"], ["duplicate"]]
    with db.transaction() as session:
        assert stored(session) == (9, 9, 9, 9)


# Refusals


def test_an_image_this_project_never_uploaded_is_named(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    theirs = factories.image(session, stranger.id, "theirs")
    with pytest.raises(errors.ImageUnknown, match=theirs):
        events.ingest(session, project.id, factories.new_event(theirs, event_id="one"))
    assert stored(session) == (0, 0, 0, 0)


def test_a_refused_event_can_be_sent_again_once_its_image_is_there(
    session: orm.Session, project: models.Project
) -> None:
    later = hashlib.sha256(b"later").hexdigest()
    event = factories.new_event(later, event_id="one")
    with pytest.raises(errors.ImageUnknown):
        events.ingest(session, project.id, event)
    factories.image(session, project.id, "later")
    assert events.ingest(session, project.id, event).status == "accepted"


@pytest.mark.parametrize(
    "bad",
    [
        {"metadata": {"rate": math.nan}},
        {"metadata": {"text": "half \ud800"}},
        {"output": "NUL \x00 inside"},
        {"prompt": "half \ud800"},
        {"confidence": math.nan},
        {"customer": "\x00"},
    ],
    ids=["nan-metadata", "surrogate-metadata", "nul-output", "surrogate-prompt", "nan-confidence", "nul-customer"],
)
def test_one_event_that_cannot_be_stored_leaves_the_rest_of_its_batch(
    session: orm.Session, project: models.Project, sha256: str, bad: dict[str, Any]
) -> None:
    """The HTTP edge cleans text and refuses NaN; whatever slips through must not cost its neighbours."""
    batch = [factories.new_event(sha256, event_id=f"e{number}") for number in range(63)]
    batch.insert(20, factories.new_event(sha256, event_id="bad", **bad))
    answers = events.ingest_many(session, project.id, batch)
    assert isinstance(answers[20], errors.Invalid)
    assert {answer.status for answer in answers if isinstance(answer, events.Ingested)} == {"accepted"}
    assert stored(session) == (63, 63, 63, 63)
    assert checks.waiting(session, project.id) == 63


def test_each_event_of_a_mixed_batch_gets_its_own_answer(
    session: orm.Session, project: models.Project, sha256: str
) -> None:
    known = events.ingest(session, project.id, factories.new_event(sha256, event_id="known"))
    unknown, coming = "f" * 64, events.look(factories.png(7, 7))
    batch = [
        factories.new_event(sha256, event_id="new"),
        factories.new_event(sha256, event_id="known"),
        factories.new_event(sha256, event_id="known", output="Other."),
        factories.new_event(unknown, event_id="blind"),
        factories.new_event(coming.sha256, event_id="coming"),
        factories.new_event(sha256, event_id="new"),
    ]
    answers = events.ingest_many(session, project.id, batch, coming=[coming])
    assert isinstance(answers[0], events.Ingested)
    assert answers[1] == events.Ingested(known.id, "duplicate")
    assert isinstance(answers[2], errors.Conflict)
    assert isinstance(answers[3], errors.ImageUnknown)
    assert isinstance(answers[4], events.Ingested)
    assert answers[5] == events.Ingested(answers[0].id, "duplicate"), "the same event twice in one batch"
    assert events.missing_images(session, project.id, [coming.sha256]) == [], "noted with the event that names it"
    assert stored(session) == (3, 3, 3, 3)


def test_an_empty_batch_stores_nothing(session: orm.Session, project: models.Project) -> None:
    assert events.ingest_many(session, project.id, []) == []


def test_without_a_partition_for_today_nothing_is_half_stored(
    session: orm.Session, project: models.Project, sha256: str
) -> None:
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    with pytest.raises(sa.exc.IntegrityError, match="no partition of relation"), session.begin_nested():
        events.ingest(session, project.id, factories.new_event(sha256, event_id="one"), long_ago)
    assert stored(session) == (0, 0, 0, 0)


# Time


@pytest.mark.parametrize("minutes, is_late", [(9, False), (11, True), (-30, False)])
def test_an_event_that_comes_more_than_ten_minutes_after_it_happened_is_late(
    session: orm.Session, project: models.Project, minutes: int, is_late: bool
) -> None:
    occurred_at = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=minutes)
    event_id = factories.ingest(session, project.id, occurred_at=occurred_at)
    assert session.get_one(models.Event, event_id).is_late is is_late
    assert factories.claim(session)[1][0].is_late is is_late


def test_a_bucket_is_the_five_minutes_that_hold_a_moment() -> None:
    nepal = dt.timezone(dt.timedelta(hours=5, minutes=45))
    start = dt.datetime(2026, 3, 4, 10, 15, tzinfo=dt.UTC)
    for at in (start, start + dt.timedelta(minutes=4, seconds=59, microseconds=999_999), start.astimezone(nepal)):
        assert events.bucket_of(at) == start
    assert events.bucket_of(start - dt.timedelta(microseconds=1)) == start - dt.timedelta(minutes=5)


# Images


def test_an_image_is_on_disk_before_its_row_and_stored_once(
    session: orm.Session, project: models.Project, blob_store: blobs.BlobStore
) -> None:
    data = factories.png()
    sha256 = events.store_image(session, blob_store, project.id, data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert events.store_image(session, blob_store, project.id, data, sha256) == sha256
    assert blob_store.get(project.id, sha256) == data
    row = session.get_one(models.Image, (project.id, sha256))
    assert (row.size_bytes, row.format, row.width > 0, row.height > 0) == (len(data), "PNG", True, True)
    assert events.missing_images(session, project.id, [sha256]) == []


@pytest.mark.parametrize("data", [b"", b"not an image", b"<svg/>"])
def test_what_is_not_an_image_leaves_neither_bytes_nor_a_row(
    session: orm.Session, project: models.Project, blob_store: blobs.BlobStore, data: bytes
) -> None:
    with pytest.raises(errors.ImageRefused):
        events.store_image(session, blob_store, project.id, data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert events.missing_images(session, project.id, [sha256]) == [sha256]
    assert not blob_store.exists(project.id, sha256)


def test_bytes_that_do_not_match_their_hash_are_refused(
    session: orm.Session, project: models.Project, blob_store: blobs.BlobStore
) -> None:
    claimed = "0" * 64
    with pytest.raises(errors.ImageRefused, match=claimed):
        events.store_image(session, blob_store, project.id, factories.png(), claimed)
    assert session.scalars(sa.select(models.Image)).all() == []


def test_limits_on_pixels_hold(session: orm.Session, project: models.Project, blob_store: blobs.BlobStore) -> None:
    with pytest.raises(errors.ImageRefused):
        events.store_image(session, blob_store, project.id, factories.png(), limits=images.Limits(pixels=1))


def test_missing_images_are_named_once_each_in_the_order_asked(
    session: orm.Session, project: models.Project, stranger: models.Project, sha256: str
) -> None:
    theirs = factories.image(session, stranger.id, "theirs")
    asked = ["b" * 64, sha256, theirs, "a" * 64, "b" * 64]
    assert events.missing_images(session, project.id, asked) == ["b" * 64, theirs, "a" * 64]
    assert events.missing_images(session, project.id, []) == []


def test_ingest_makes_ids_that_live_in_the_partition_of_their_day(committed: str) -> None:
    """Whatever the second of the day, id, received_at and partition agree."""
    day = dt.date(2026, 3, 4)
    engine = sa.create_engine(committed)
    partitions.ensure(engine, day, day)
    engine.dispose()
    start = dt.datetime.combine(day, dt.time(), dt.UTC)
    with db.transaction() as session:
        project_id = factories.project(session)
        for at in (start, start + dt.timedelta(days=1, microseconds=-1)):
            made = factories.ingest(session, project_id, at)
            parted = session.scalar(sa.text("SELECT tableoid::regclass::text FROM events WHERE id = :id"), {"id": made})
            assert parted == "events_p20260304"
    assert isinstance(made, uuid.UUID)
