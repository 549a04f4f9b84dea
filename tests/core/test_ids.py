"""UUIDv7 ids: their time is exact, because partitions and pages are cut by it."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import ids

ZONES = st.sampled_from([dt.timezone(dt.timedelta(minutes=minutes)) for minutes in (-570, 0, 330, 345, 720)])
MOMENTS = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2999, 1, 1), timezones=ZONES)  # noqa: DTZ001


def to_ms(at: dt.datetime) -> dt.datetime:
    utc = at.astimezone(dt.UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


@given(MOMENTS)
def test_an_id_is_a_version_7_uuid_of_its_millisecond(at: dt.datetime) -> None:
    made = ids.uuid7(at)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert ids.moment(made) == to_ms(at)


@given(MOMENTS)
def test_the_first_id_of_a_millisecond_bounds_all_of_them(at: dt.datetime) -> None:
    low, high = ids.first(at), ids.first(at + dt.timedelta(milliseconds=1))
    assert low <= ids.uuid7(at) < high
    assert low <= ids.uuid7(to_ms(at))
    assert ids.moment(low) == to_ms(at)


@given(MOMENTS, MOMENTS)
def test_ids_of_different_milliseconds_sort_by_time(one: dt.datetime, other: dt.datetime) -> None:
    if to_ms(one) < to_ms(other):
        assert ids.uuid7(one) < ids.uuid7(other)


def test_ids_of_one_moment_differ() -> None:
    at = dt.datetime.now(dt.UTC)
    assert len({ids.uuid7(at) for _ in range(10_000)}) == 10_000


def test_without_a_moment_it_is_now() -> None:
    before = to_ms(dt.datetime.now(dt.UTC))
    assert before <= ids.moment(ids.uuid7()) <= dt.datetime.now(dt.UTC)


def test_bounds_outside_of_what_ids_can_say_still_bound() -> None:
    """A page asked for from 1960 on begins with the first id there is, not after the last."""
    long_ago, far_off = dt.datetime(1960, 1, 1, tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
    assert ids.first(long_ago) < ids.uuid7() < ids.first(far_off)


def test_a_time_without_a_zone_is_refused_rather_than_taken_for_the_servers() -> None:
    with pytest.raises(TypeError):
        ids.uuid7(dt.datetime(2026, 1, 1))  # noqa: DTZ001
