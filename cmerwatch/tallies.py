"""What a batch of checks adds to each key: counted once in Python, and written as the rows of one upsert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cmerwatch import intervals
from cmerwatch.shapes import COUNTS, DIMENSIONS, Decided

COLUMNS = (*COUNTS, "late_scored", "late_n", "late_flagged")
KEY = ("project_id", "bucket", *DIMENSIONS, "checker_id", "policy_version")

Key = tuple[Any, ...]


class Tally:
    """The additive columns of one key: what is not 0. Histograms as {bin: count}, since a batch touches few bins."""

    __slots__ = ("counts", "score_hist", "sim_hist")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sim_hist: Counter[int] = Counter()
        self.score_hist: Counter[int] = Counter()

    def count(self, decided: Decided) -> None:
        """Add one check. n counts scored events with a known confidence and a decision; low counts all low scores."""
        result, counts = decided.result, self.counts
        counts[result.outcome] += 1
        if result.outcome != "scored" or result.similarity is None:
            return
        self.sim_hist[intervals.sim_bin(result.similarity)] += 1
        if result.event.is_late:
            counts["late_scored"] += 1
        if decided.decision.is_decided:
            self._count_decision(decided)
        else:
            counts["undecided"] += 1

    def settle(self, decided: Decided) -> None:
        """Move one check that was counted as undecided to what its decision says."""
        self.counts["undecided"] -= 1
        self._count_decision(decided)

    def leave(self, decided: Decided) -> None:
        """Take one check back that `count` had added."""
        one = Tally()
        one.count(decided)
        self.counts.subtract(one.counts)
        self.sim_hist.subtract(one.sim_hist)
        self.score_hist.subtract(one.score_hist)

    def _count_decision(self, decided: Decided) -> None:
        result, decision = decided.result, decided.decision
        event, counts = result.event, self.counts
        if decision.low_similarity:
            counts["low"] += 1
        if event.confidence is None:
            counts["low_unconfirmed"] += decision.low_similarity
            return
        counts["n"] += 1
        if decision.flagged:
            counts["flagged"] += 1
        if event.is_late:
            counts["late_n"] += 1
            counts["late_flagged"] += decision.flagged
        if event.confidence > decision.conf_threshold and result.score is not None:
            self.score_hist[intervals.score_bin(result.score)] += 1

    def merge(self, other: Tally) -> None:
        _add_to(self.counts, other.counts)
        _add_to(self.sim_hist, other.sim_hist)
        _add_to(self.score_hist, other.score_hist)


def _add_to(counter: Counter[Any], other: Counter[Any]) -> None:
    """`Counter.update`, without what that costs before it begins."""
    get = counter.get
    for name, value in other.items():
        if value:
            counter[name] = get(name, 0) + value


def take(decided: Iterable[Decided], count: Callable[[Tally, Decided], None] = Tally.count) -> dict[Key, Tally]:
    found: dict[Key, Tally] = {}
    for one in decided:
        event = one.result.event
        key = (event.project_id, event.bucket, *event.slice, one.checker_id, one.decision.policy_version)
        of_key = found.get(key)
        if of_key is None:
            of_key = found[key] = Tally()
        count(of_key, one)
    return found


def rows(tallies: Mapping[Key, Tally]) -> list[dict[str, Any]]:
    """Of each key its row, and of each set of keys that some margin adds up a row without dimensions.

    `margins` of a row: {dimension: value} of all margins it is the sum of; a row that is no margin has none. Most
    slices leave most dimensions empty, so that one sum serves many margins; added up for each, in the statement, they
    cost the pipeline a twentieth of its speed (bench/pipeline.py).
    """
    keys = list(tallies)
    made: dict[tuple[int, ...], dict[str, Any]] = {}
    for at, key in enumerate(keys):
        made[at,] = _row(key, tallies[key]) | dict(zip(KEY, key, strict=True))
    for places, margins in _together(keys).items():
        if places not in made:
            made[places] = _row(keys[places[0]], _merged(tallies[keys[at]] for at in places))
        made[places]["margins"] = margins
    return list(made.values())


def _row(key: Key, one: Tally) -> dict[str, Any]:
    project_id, bucket, *_, checker_id, version = key
    return {
        "project_id": project_id,
        "bucket": bucket,
        "checker_id": checker_id,
        "policy_version": version,
        **one.counts,
        "sim_hist": _array(one.sim_hist),
        "score_hist": _array(one.score_hist),
    }


def _merged(several: Iterable[Tally]) -> Tally:
    whole = Tally()
    for one in several:
        whole.merge(one)
    return whole


def _together(keys: Sequence[Key]) -> dict[tuple[int, ...], dict[str, str]]:
    """Which keys, by their places, margins add up, and of each margin that adds up these its dimension and value."""
    alike: dict[Key, list[int]] = {}
    for at, key in enumerate(keys):
        alike.setdefault((*key[:2], *key[-2:]), []).append(at)
    found: dict[tuple[int, ...], dict[str, str]] = {}
    for places in alike.values():
        found[tuple(places)] = {"": ""}
        for column, dimension in enumerate(DIMENSIONS, start=2):
            of_value: dict[str, list[int]] = {}
            for at in places:
                of_value.setdefault(keys[at][column], []).append(at)
            for value, some in of_value.items():
                found.setdefault(tuple(some), {})[dimension] = value
    return found


def _array(hist: Counter[int]) -> str:
    """As Postgres writes an array, from the first bin to the last that has something, subscripts counted from 1."""
    if not hist:
        return "{}"
    low, high = min(hist), max(hist)
    counts = ["0"] * (high + 1 - low)
    for at, count in hist.items():
        counts[at - low] = str(count)
    return f"[{low + 1}:{high + 1}]={{{','.join(counts)}}}"
