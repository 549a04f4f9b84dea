"""Which alerts are one incident: as sentences, and for whatever fires in whatever order."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import alert_groups
from cmerwatch.alert_groups import WINDOW, Fired, Incident, Open

AT = dt.datetime(2026, 3, 18, 12, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
PROJECT: Mapping[str, str] = {}
A, B, V1, V2 = {"endpoint": "/a"}, {"endpoint": "/b"}, {"model_version": "1"}, {"model_version": "2"}


def group(*slices: Mapping[str, str], ago: dt.timedelta = MINUTE) -> Open:
    return Open(uuid.uuid4(), AT - ago, slices)


def arrange(*slices: Mapping[str, str], groups: tuple[Open, ...] = ()) -> list[Incident]:
    return alert_groups.arrange([Fired(of) for of in slices], AT, groups)


@pytest.mark.parametrize(
    "one, other, expected",
    [
        (PROJECT, A, True),
        (A, V1, True),
        (A, A, True),
        (A, B, False),
        (A, {"endpoint": "/a", "customer": "x"}, True),
        ({"customer": "x", "endpoint": "/a"}, {"customer": "x", "endpoint": "/b"}, False),
        ({"customer": "x", "endpoint": "/a"}, {"customer": "x", "model_version": "1"}, True),
    ],
)
def test_only_different_values_of_one_dimension_keep_slices_apart(
    one: Mapping[str, str], other: Mapping[str, str], expected: bool
) -> None:
    assert alert_groups.overlap(one, other) is alert_groups.overlap(other, one) is expected


def test_a_regression_that_reaches_everything_is_one_incident_that_the_project_leads() -> None:
    [incident] = arrange(A, V2, B, PROJECT)
    assert incident.joins is None
    assert incident.slices[0] == PROJECT
    assert len(incident.slices) == 4


def test_two_endpoints_alone_are_two_incidents() -> None:
    assert [one.slices for one in arrange(A, B)] == [[A], [B]]


def test_two_endpoints_of_one_version_that_fires_with_them_are_one_incident() -> None:
    [incident] = arrange(A, B, V2)
    assert incident.slices == [A, B, V2]


def test_of_slices_as_broad_the_one_with_more_outputs_leads() -> None:
    [incident] = alert_groups.arrange([Fired(A, 100), Fired(V2, 300)], AT, [])
    assert incident.slices == [V2, A]


def test_what_fires_within_the_hour_joins_what_it_overlaps() -> None:
    open_one = group(PROJECT, ago=WINDOW - MINUTE)
    assert [one.joins for one in arrange(A, groups=(open_one,))] == [open_one.id]


def test_what_fires_after_the_hour_is_an_incident_of_its_own() -> None:
    assert [one.joins for one in arrange(A, groups=(group(PROJECT, ago=WINDOW),))] == [None]


def test_another_endpoint_is_not_hidden_by_the_one_that_fires() -> None:
    assert [one.joins for one in arrange(B, groups=(group(A),))] == [None]


def test_what_overlaps_two_groups_joins_the_older() -> None:
    older, younger = group(A, ago=10 * MINUTE), group(B)
    assert [one.joins for one in arrange(V1, groups=(younger, older))] == [older.id]


@pytest.mark.parametrize(
    "of, minutes, expected",
    [
        (A, 0, True),  # the project is critical, and an endpoint of it begins to warn
        (A, 59, True),
        (A, -59, True),
        (A, 60, False),  # an hour later it is news
        (A, -60, False),
        (PROJECT, 600, True),  # the very slice that is critical
    ],
)
def test_a_critical_incident_covers_what_it_overlaps_within_the_hour_and_its_own_slices_always(
    of: Mapping[str, str], minutes: int, expected: bool
) -> None:
    critical = Open(uuid.uuid4(), AT, [PROJECT])
    assert alert_groups.covered(of, AT + minutes * MINUTE, critical) is expected


def test_a_critical_endpoint_covers_no_other() -> None:
    assert not alert_groups.covered(B, AT, Open(uuid.uuid4(), AT, [A]))


slices = st.dictionaries(st.sampled_from(["endpoint", "model_version", "customer"]), st.sampled_from("abc"), max_size=2)
many = st.lists(slices, max_size=12, unique_by=lambda of: tuple(sorted(of.items())))
opens = st.lists(
    st.builds(
        Open,
        st.uuids(),
        st.integers(0, 100).map(lambda back: AT - back * MINUTE),
        st.lists(slices, min_size=1, max_size=3),
    ),
    max_size=3,
)


def as_sets(incidents: list[Incident]) -> set[tuple[uuid.UUID | None, frozenset[tuple[tuple[str, str], ...]]]]:
    return {(one.joins, frozenset(tuple(sorted(of.items())) for of in one.slices)) for one in incidents}


@given(many, opens, st.randoms())
def test_the_order_in_which_slices_come_changes_nothing(
    fired: list[dict[str, str]], groups: list[Open], rng: object
) -> None:
    shuffled = list(fired)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert as_sets(arrange(*fired, groups=tuple(groups))) == as_sets(arrange(*shuffled, groups=tuple(groups)))


@given(many, opens)
def test_every_slice_is_in_one_incident_and_the_broadest_leads(fired: list[dict[str, str]], groups: list[Open]) -> None:
    found = arrange(*fired, groups=tuple(groups))
    assert sorted((of for one in found for of in one.slices), key=str) == sorted(fired, key=str)
    assert all(len(one.slices[0]) == min(map(len, one.slices)) for one in found)


@given(many, opens)
def test_incidents_of_one_moment_share_no_output_and_nothing_joins_what_it_has_nothing_to_do_with(
    fired: list[dict[str, str]], groups: list[Open]
) -> None:
    """No two pages for what overlaps; no page saved where nothing of it overlaps a young group."""
    found = arrange(*fired, groups=tuple(groups))
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert not any(alert_groups.overlap(a, b) for a in one.slices for b in other.slices)
        young = [group for group in groups if AT - group.opened_at < WINDOW]
        touched = [
            group.id for group in young if any(alert_groups.overlap(a, b) for a in one.slices for b in group.slices)
        ]
        assert one.joins in touched if touched else one.joins is None
