"""Which alerts are one incident, pure: one regression reaches many slices, and should page once.

Two slices overlap unless they give different values for the same dimension: the project overlaps with everything, an
endpoint with every model version, and two endpoints with neither. Alerts of one rule that overlap and begin within an
hour are a group. What begins later, or elsewhere, is a group of its own, so that no incident hides another.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# One regression reaches slices of different traffic at different times: with 50 outputs as the least, a slice of a
# fifth of the traffic is judged five times as late as the whole. After an hour it is news.
WINDOW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Fired:
    """A slice whose alert begins now. `outputs`: how many it has in the window."""

    slice: Mapping[str, str]
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Open:
    """A group with something that fires: the slices that do, not those that have recovered."""

    id: uuid.UUID
    opened_at: dt.datetime
    slices: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Incident:
    """What fired together: it joins the group `joins`, or opens one that its first slice leads."""

    joins: uuid.UUID | None
    slices: Sequence[Mapping[str, str]]


def overlap(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether an output may be of both."""
    return all(other.get(name, value) == value for name, value in one.items())


def arrange(fired: Sequence[Fired], at: dt.datetime, groups: Sequence[Open]) -> list[Incident]:
    """Part what fires at `at` into incidents, the broadest slice of each first, whatever the order it came in.

    What overlaps, directly or by way of a third slice, is one. It joins the oldest of the young groups that any of it
    overlaps.
    """
    waiting = sorted(fired, key=_broadest_first)
    young = sorted((group for group in groups if at - group.opened_at < WINDOW), key=lambda group: group.opened_at)
    found = []
    while waiting:
        together, waiting = _connected(waiting)
        host = next((group for group in young if _touch(together, group.slices)), None)
        found.append(Incident(host.id if host else None, together))
    return found


def covered(of: Mapping[str, str], fired_at: dt.datetime, by: Open) -> bool:
    """Whether an alert is the trouble that a more severe group tells of already: of a slice that it names, whenever it
    began, or of one that it overlaps, begun within the same hour."""
    is_near = abs(fired_at - by.opened_at) < WINDOW
    return any(of == other or (is_near and overlap(of, other)) for other in by.slices)


def _broadest_first(fired: Fired) -> tuple[int, int, str]:
    """Fewer dimensions, then more outputs; the names only so that the order is always the same."""
    return len(fired.slice), -fired.outputs, json.dumps(dict(fired.slice), sort_keys=True)


def _connected(waiting: Sequence[Fired]) -> tuple[list[Mapping[str, str]], list[Fired]]:
    """The slices that hang together with the first, in the order they came, and the rest."""
    edge, reached, rest = [waiting[0]], {0}, list(enumerate(waiting))[1:]
    while edge:
        one = edge.pop()
        near = [(place, other) for place, other in rest if overlap(one.slice, other.slice)]
        reached |= {place for place, _ in near}
        rest = [(place, other) for place, other in rest if place not in reached]
        edge += [other for _, other in near]
    return [waiting[place].slice for place in sorted(reached)], [other for _, other in rest]


def _touch(some: Sequence[Mapping[str, str]], others: Sequence[Mapping[str, str]]) -> bool:
    return any(overlap(one, other) for one in some for other in others)
