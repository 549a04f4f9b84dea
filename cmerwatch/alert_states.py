"""The state machine of an alert, pure: where a rule stands for a slice, and what one more reading makes of it.

    ok, insufficient, no_data --over--> pending --over for `hold`--> firing
    firing --under--> recovering --under for `keep`--> ok
    recovering --anything but under--> firing

A reading that is not over sends every quiet state to ok, insufficient or no_data. While firing, missing data keeps it
firing: nobody has seen that the rate fell. Only when a slice has shown too little for a whole day is it closed, without
the claim that it recovered.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

# over, under: the interval's lower bound against the line. few: too few outputs to tell. silent: nothing arrived.
# unseen: too much of what arrived was not looked at, which is our own failure and closes nothing, ever.
Verdict = Literal["over", "under", "few", "silent", "unseen"]

OPEN = ("firing", "recovering")  # the states in which there is an episode
STALE_AFTER = dt.timedelta(hours=24)

_QUIET = {"under": "ok", "few": "insufficient", "silent": "no_data", "unseen": "no_data"}


@dataclass(frozen=True, slots=True)
class Standing:
    """`missing_since`: while firing, when the slice began to show too little to tell; None while it can be told."""

    state: str
    since: dt.datetime
    missing_since: dt.datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN


def next_state(
    standing: Standing, verdict: Verdict, at: dt.datetime, hold: dt.timedelta, keep: dt.timedelta
) -> Standing:
    """The standing after the reading `at`. `hold` is the rule's `for`, `keep` how long it must stay under to end."""
    if standing.is_open:
        return _after_open(standing, verdict, at, keep)
    state = _rising(standing, at, hold) if verdict == "over" else _QUIET[verdict]
    return Standing(state, standing.since if state == standing.state else at)


def _rising(standing: Standing, at: dt.datetime, hold: dt.timedelta) -> str:
    over_since = standing.since if standing.state == "pending" else at
    return "firing" if at - over_since >= hold else "pending"


def _after_open(standing: Standing, verdict: Verdict, at: dt.datetime, keep: dt.timedelta) -> Standing:
    missing = _missing_since(standing, verdict, at)
    if missing is not None and verdict in ("few", "silent") and at - missing >= STALE_AFTER:
        return Standing(_QUIET[verdict], at)
    state = "firing"
    if verdict == "under":
        under_since = standing.since if standing.state == "recovering" else at
        state = "ok" if at - under_since >= keep else "recovering"
    return Standing(state, standing.since if state == standing.state else at, missing)


def _missing_since(standing: Standing, verdict: Verdict, at: dt.datetime) -> dt.datetime | None:
    if verdict in ("few", "silent"):
        return standing.missing_since or at
    return standing.missing_since if verdict == "unseen" else None
