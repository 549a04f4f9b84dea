"""Counts added up from whole slices: the same however they are parted, and each cell looked at once per dimension."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch.alert_numbers import Cells, Counts
from cmerwatch.shapes import DIMENSIONS, Slice

names = st.sampled_from(["", "a", "b"])
slices = st.builds(Slice, *([names] * len(DIMENSIONS)))
made = st.dictionaries(slices, st.builds(Counts, scored=st.integers(0, 9), n=st.integers(0, 9)), max_size=20)


def added(cells: Mapping[Slice, Counts], match: Mapping[str, str]) -> tuple[int, int]:
    """scored and n of the slices within the match, one by one."""
    inside = [own for key, own in cells.items() if all(getattr(key, name) == match[name] for name in match)]
    return sum(own.scored for own in inside), sum(own.n for own in inside)


@given(made, st.dictionaries(st.sampled_from(DIMENSIONS), names), st.sampled_from(DIMENSIONS))
def test_a_part_adds_up_to_the_cells_within_it(
    cells: dict[Slice, Counts], match: dict[str, str], dimension: str
) -> None:
    whole = Cells(cells)
    for _ in range(2):  # what was kept from the first time answers the same
        part = whole.within(match)
        assert (part.total.scored, part.total.n) == added(cells, match)
        for value, own in part.by(dimension).items():
            assert (own.scored, own.n) == added(part.cells, {dimension: value})


def test_a_thousand_slices_are_added_up_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    adds = 0
    add = Counts.add

    def counted(own: Counts, other: Counts) -> None:
        nonlocal adds
        adds += 1
        add(own, other)

    monkeypatch.setattr(Counts, "add", counted)
    cells = Cells({Slice(f"/{i}"): Counts(n=1) for i in range(1000)})
    for i in range(1000):
        assert (cells.within({"endpoint": f"/{i}"}).total.n, cells.total.n) == (1, 1000)
    assert adds == 2000
