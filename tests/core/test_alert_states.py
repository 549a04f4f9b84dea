"""The state machine against its diagram: every step that can be taken, and what must hold of any history."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import models
from cmerwatch.alert_states import OPEN, STALE_AFTER, Standing, Verdict, next_state

VERDICTS = get_args(Verdict)
T0 = dt.datetime(2026, 3, 18, 12, 0, tzinfo=dt.UTC)
STEP = dt.timedelta(minutes=5)
NONE = dt.timedelta(0)

# What may follow what, by any reading: the diagram of the design.
DIAGRAM = {
    "ok": {"ok", "pending", "firing", "no_data", "insufficient"},
    "pending": {"ok", "pending", "firing", "no_data", "insufficient"},
    "no_data": {"ok", "pending", "firing", "no_data", "insufficient"},
    "insufficient": {"ok", "pending", "firing", "no_data", "insufficient"},
    # To no_data and insufficient only after a whole day of nothing to tell by.
    "firing": {"firing", "recovering", "ok", "no_data", "insufficient"},
    "recovering": {"firing", "recovering", "ok", "no_data", "insufficient"},
}


def walk(verdicts: list[Verdict], hold: dt.timedelta = NONE, keep: dt.timedelta = NONE) -> list[Standing]:
    standing, found = Standing("ok", T0), []
    for step, verdict in enumerate(verdicts, 1):
        standing = next_state(standing, verdict, T0 + step * STEP, hold, keep)
        found.append(standing)
    return found


def states(verdicts: list[Verdict], hold: dt.timedelta = NONE, keep: dt.timedelta = NONE) -> list[str]:
    return [standing.state for standing in walk(verdicts, hold, keep)]


@pytest.mark.parametrize("state", DIAGRAM)
def test_every_single_step_is_one_of_the_diagram(state: str) -> None:
    for verdict, hold, keep, waited in itertools.product(VERDICTS, (0, 1, 3), (0, 1, 3), range(5)):
        at = T0 + waited * STEP
        after = next_state(Standing(state, T0), verdict, at, hold * STEP, keep * STEP)
        assert after.state in DIAGRAM[state]
        assert after.state in models.STATES
        assert after.since == (T0 if after.state == state else at)


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("verdict", ["few", "silent", "unseen", "over"])
def test_nothing_but_readings_under_the_line_leads_out_of_firing(state: str, verdict: Verdict) -> None:
    assert next_state(Standing(state, T0), verdict, T0 + STEP, NONE, NONE).state == "firing"


def test_the_whole_round() -> None:
    told: list[Verdict] = ["over", "over", "over", "under", "over", "under", "under", "under", "under"]
    wanted = ["pending", "pending", "firing", "recovering", "firing", "recovering", "recovering", "ok", "ok"]
    assert states(told, hold=2 * STEP, keep=2 * STEP) == wanted


def test_for_begins_anew_after_any_other_reading() -> None:
    told: list[Verdict] = ["over", "few", "over", "under", "over", "unseen", "over", "over"]
    wanted = ["pending", "insufficient", "pending", "ok", "pending", "no_data", "pending", "firing"]
    assert states(told, hold=STEP) == wanted


def test_recovery_needs_an_unbroken_run_of_readings_under_the_line() -> None:
    told: list[Verdict] = ["over", "under", "few", "under", "unseen", "under", "under"]
    wanted = ["firing", "recovering", "firing", "recovering", "firing", "recovering", "ok"]
    assert states(told, keep=STEP) == wanted


@pytest.mark.parametrize("missing, closed", [("few", "insufficient"), ("silent", "no_data")])
def test_a_day_without_enough_outputs_closes_it_without_calling_it_ok(missing: Verdict, closed: str) -> None:
    steps = STALE_AFTER // STEP
    found = states(["over", *[missing] * steps, missing])
    assert found[:-1] == ["firing"] * (steps + 1)
    assert found[-1] == closed


def test_what_we_failed_to_check_closes_nothing_however_long_it_lasts() -> None:
    assert set(states(["over", *["unseen"] * 1000])) == {"firing"}


def test_unchecked_outputs_in_between_do_not_begin_the_day_anew() -> None:
    half = STALE_AFTER // STEP // 2
    found = states(["over", *["few"] * half, "unseen", *["few"] * half])
    assert found[-1] == "insufficient"


def test_any_reading_that_tells_begins_the_day_anew() -> None:
    steps = STALE_AFTER // STEP
    found = states(["over", *["few"] * (steps - 1), "over", *["few"] * (steps - 1)])
    assert set(found) == {"firing"}


histories = st.lists(st.sampled_from(VERDICTS), max_size=60)
waits = st.integers(0, 6).map(lambda n: n * STEP)


@given(histories, waits, waits)
def test_it_fires_exactly_when_it_was_over_for_long_enough(
    verdicts: list[Verdict], hold: dt.timedelta, keep: dt.timedelta
) -> None:
    """Against a plain reading of the rule: an unbroken run of `over` that spans `hold`, ended by `under` for `keep`."""
    is_open, run_over, run_under = False, 0, 0
    for verdict, standing in zip(verdicts, walk(verdicts, hold, keep), strict=True):
        run_over = run_over + 1 if verdict == "over" else 0
        run_under = run_under + 1 if verdict == "under" else 0
        if is_open:
            # Less than a day of readings: silence cannot close it here.
            is_open = not (run_under and (run_under - 1) * STEP >= keep)
        else:
            is_open = bool(run_over) and (run_over - 1) * STEP >= hold
            run_under = 0 if is_open else run_under
        assert standing.is_open == is_open


@given(histories, waits, waits)
def test_the_same_history_ends_the_same_and_time_never_runs_back(
    verdicts: list[Verdict], hold: dt.timedelta, keep: dt.timedelta
) -> None:
    first = walk(verdicts, hold, keep)
    assert first == walk(verdicts, hold, keep)
    assert [one.since for one in first] == sorted(one.since for one in first)
