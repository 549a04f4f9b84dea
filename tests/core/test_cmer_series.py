"""CMER over time and by dimension: the right events in the right rows, and never without n and coverage."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import cmer_series, errors, intervals, models, policies
from cmerwatch.cmer import Rate
from tests import factories

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def now() -> dt.datetime:
    """The start of this hour."""
    return dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)


def lay(
    session: orm.Session, project: models.Project, at: dt.datetime, score: float, n: int = 1, **fields: Any
) -> None:
    factories.ingest_many(session, project.id, n, received_at=at, **fields)
    factories.check_all(session, score)


def whole(session: orm.Session, project: models.Project, now: dt.datetime, **asked: Any) -> list[cmer_series.CmerRow]:
    return cmer_series.query(session, project.id, now - 2 * HOUR, now + HOUR, **({"bucket": "all"} | asked))


def test_the_arithmetic_of_one_row(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now, 0.01, 3)  # flagged
    lay(session, project, now, 0.5, 5)  # fine
    lay(session, project, now, 0.01, 1, confidence=0.5)  # low but unsure
    lay(session, project, now, 0.01, 2, confidence=None)  # low, confidence unknown
    lay(session, project, now, 0.5, 1, confidence=None)
    factories.ingest_many(session, project.id, 2, received_at=now)
    factories.check_all(session, outcome="unscorable")
    factories.ingest(session, project.id, now)
    factories.check_all(session, outcome="model_error")
    factories.ingest_many(session, project.id, 5, received_at=now)  # waiting
    [row] = whole(session, project, now)
    assert row.cmer == Rate(3, 9)
    assert row.cmer.interval == intervals.wilson(3, 9)
    assert row.uer == Rate(6, 12)
    assert (row.scored, row.unscorable, row.model_error, row.waiting, row.accepted) == (12, 2, 1, 5, 20)
    assert row.coverage == pytest.approx(14 / 20), "waiting and model_error were not looked at; unscorable was"
    assert (row.low_unconfirmed, row.undecided) == (2, 0)
    assert sum(row.sim_hist) == 12
    assert row.sim_quartiles is not None
    assert row.sim_quartiles[1] == pytest.approx(0.3, abs=2 / intervals.SIM_BINS)


def test_without_a_confidence_there_is_a_uer_and_no_cmer(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    lay(session, project, now, 0.01, 2, confidence=None)
    [row] = whole(session, project, now)
    assert (row.cmer.value, row.cmer.n) == (None, 0)
    assert row.uer.value == 1.0


def test_while_calibrating_nothing_is_decided(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    factories.ingest_many(session, project.id, 2, received_at=now)
    factories.check_all(session, None, is_calibrated=False)
    [row] = whole(session, project, now)
    assert (row.scored, row.undecided, row.cmer.n, row.uer.n) == (2, 2, 0, 0)
    assert row.coverage == 1.0


def test_quarantine_lowers_coverage(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now, 0.5, 3)
    factories.ingest(session, project.id, now)
    session.execute(sa.text("UPDATE work SET attempts = 4"))
    assert factories.claim(session)[1] == []
    [row] = whole(session, project, now)
    assert (row.quarantined, row.coverage) == (1, 0.75)


def test_waiting_alone_makes_a_row_of_no_coverage(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    factories.ingest_many(session, project.id, 2, received_at=now)
    [row] = whole(session, project, now)
    assert (row.waiting, row.coverage, row.cmer.value, row.sim_quartiles) == (2, 0.0, None, None)


def test_nothing_has_no_rows(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    assert whole(session, project, now) == []
    assert cmer_series.current_checker(session, project.id) is None


@pytest.mark.parametrize(
    "bucket, starts",
    [("5m", [0, 5, 55]), ("1h", [0]), ("1d", [None]), ("all", [-120])],
)
def test_buckets_start_on_utc_marks(
    session: orm.Session, project: models.Project, now: dt.datetime, bucket: str, starts: list[int | None]
) -> None:
    for minutes in (0, 4, 5, 59):
        lay(session, project, now + minutes * MINUTE, 0.5)
    rows = whole(session, project, now, bucket=bucket)
    midnight = now.replace(hour=0)
    assert [row.start for row in rows] == [midnight if m is None else now + m * MINUTE for m in starts]
    assert sum(row.n for row in rows) == 4


@pytest.mark.parametrize(
    "bucket, start, end, n",
    [
        ("5m", 5, 10, 1),  # whole buckets: [5, 10)
        ("5m", 4, 5, 1),  # rounded outwards to [0, 5)
        ("5m", 4, 6, 2),
        ("5m", 10, 10, 0),
        ("1h", 7, 8, 2),  # rounded outwards to the hour
        ("all", 5, 10, 1),
    ],
)
def test_windows_are_rounded_outwards_to_whole_buckets(
    session: orm.Session, project: models.Project, now: dt.datetime, bucket: str, start: int, end: int, n: int
) -> None:
    for minutes in (0, 5):
        lay(session, project, now + minutes * MINUTE, 0.5)
    rows = cmer_series.query(session, project.id, now + start * MINUTE, now + end * MINUTE, bucket)
    assert sum(row.n for row in rows) == n


def test_a_window_may_be_asked_in_any_zone(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now, 0.5)
    nepal = dt.timezone(dt.timedelta(hours=5, minutes=45))
    rows = cmer_series.query(session, project.id, now.astimezone(nepal), (now + HOUR).astimezone(nepal), "1h")
    assert [(row.start, row.n) for row in rows] == [(now, 1)]


def test_groups_and_filters(session: orm.Session, project: models.Project, now: dt.datetime) -> None:
    lay(session, project, now, 0.01, 2, endpoint="/a", model_version="1")
    lay(session, project, now, 0.5, 3, endpoint="/a", model_version="2")
    lay(session, project, now, 0.5, 4, endpoint="/b", model_version="2")
    factories.ingest(session, project.id, now, endpoint="/c")
    grouped = whole(session, project, now, group_by=["endpoint", "model_version"])
    assert [(row.group["endpoint"], row.group["model_version"], row.n, row.flagged) for row in grouped] == [
        ("/a", "1", 2, 2),
        ("/a", "2", 3, 0),
        ("/b", "2", 4, 0),
        ("/c", "", 0, 0),
    ]
    [filtered] = whole(session, project, now, filters={"endpoint": "/a"})
    assert (filtered.n, filtered.waiting) == (5, 0)
    assert [row.n for row in whole(session, project, now, group_by=["endpoint"], filters={"model_version": "2"})] == [
        3,
        4,
    ]
    assert whole(session, project, now, filters={"customer": "x' OR '1'='1"}) == []


@pytest.mark.parametrize("bucket", ["5m", "1h", "1d", "all"])
def test_without_histograms_the_counts_are_the_same(
    session: orm.Session, project: models.Project, now: dt.datetime, bucket: str
) -> None:
    lay(session, project, now, 0.01, 2)
    lay(session, project, now + 7 * MINUTE, 0.5, 3)
    full, thin = (whole(session, project, now, bucket=bucket, histograms=histograms) for histograms in (True, False))
    assert [row.cmer for row in thin] == [row.cmer for row in full]
    assert sum(sum(row.sim_hist) for row in full) == sum(row.scored for row in full) == 5
    assert {row.sim_quartiles for row in thin} == {None}


def test_one_row_for_a_window_is_the_sum_of_its_buckets_whichever_table_is_read(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    """Whole hours are read from the hourly table, other windows from the 5-minute one."""
    for minutes in (0, 5, 55):
        lay(session, project, now + minutes * MINUTE, 0.01)
    for start, end, n in [(0, 60, 3), (0, 55, 2), (5, 60, 2), (5, 55, 1)]:
        [row] = cmer_series.query(session, project.id, now + start * MINUTE, now + end * MINUTE, "all")
        assert (row.n, sum(row.sim_hist)) == (n, n)


def test_another_projects_events_are_never_counted(
    session: orm.Session, project: models.Project, stranger: models.Project, now: dt.datetime
) -> None:
    lay(session, stranger, now, 0.01, 3)
    factories.ingest(session, stranger.id, now)
    assert whole(session, project, now) == []


def test_the_checker_that_counts_now_is_read_and_an_older_one_on_request(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    first, second = factories.checker(session, "clip:a"), factories.checker(session, "clip:b")
    factories.ingest_many(session, project.id, 2, received_at=now - HOUR)
    factories.check_all(session, checker_id=first)
    factories.ingest_many(session, project.id, 3, received_at=now)
    factories.check_all(session, checker_id=second)
    current = cmer_series.current_checker(session, project.id)
    assert current is not None
    assert current.id == second
    assert [row.n for row in whole(session, project, now)] == [3]
    assert [row.n for row in whole(session, project, now, checker_id=first)] == [2]


def test_a_new_policy_blanks_nothing_each_output_counts_as_it_was_decided(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    lay(session, project, now, 0.1, 2)
    policies.create(session, project.id, [{"sim_threshold": 0.2}], "user:ada")
    assert [row.cmer for row in whole(session, project, now)] == [Rate(0, 2)]
    lay(session, project, now, 0.1, 3)
    [both] = whole(session, project, now)
    assert (both.cmer, both.uer, both.scored, both.undecided) == (Rate(3, 5), Rate(3, 5), 5, 0)
    assert (both.accepted, both.coverage, sum(both.sim_hist)) == (5, 1.0, 5)


def test_a_version_that_is_named_counts_its_own_decisions_and_coverage_stays_whole(
    session: orm.Session, project: models.Project, now: dt.datetime
) -> None:
    lay(session, project, now, 0.1, 2)
    policies.create(session, project.id, [{"sim_threshold": 0.2}], "user:ada")
    lay(session, project, now, 0.1, 3)
    [first], [second] = (whole(session, project, now, policy_version=version) for version in (1, 2))
    assert (first.cmer, second.cmer) == (Rate(0, 2), Rate(3, 3))
    assert (first.undecided, second.undecided) == (3, 2)
    assert (first.uer, second.uer) == (Rate(0, 2), Rate(3, 3))
    assert sum(first.sim_hist) == sum(second.sim_hist) == 5
    assert first.coverage == second.coverage == 1.0
    [third] = whole(session, project, now, policy_version=3)
    assert (third.cmer, third.accepted, third.undecided) == (Rate(0, 0), 5, 5)


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"bucket": "2h"}, "bucket is '2h'"),
        ({"group_by": ["colour"]}, "'colour' is not a dimension"),
        ({"filters": {"bucket = bucket --": "x"}}, "is not a dimension"),
    ],
)
def test_what_cannot_be_asked_is_named(
    session: orm.Session, project: models.Project, now: dt.datetime, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(errors.Invalid, match=said):
        whole(session, project, now, **asked)
