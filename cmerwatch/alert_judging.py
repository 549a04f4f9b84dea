"""From counts to a verdict: where the line of a rule lies for a slice, and on which side of it the interval is. Pure
but for reading usual hours where a slice has fallen silent."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cmerwatch import intervals, models
from cmerwatch.alert_numbers import Counts
from cmerwatch.alert_rules import percent, typed_percent
from cmerwatch.alert_states import Verdict

# A baseline of 0 would make any flag an alert, and half a percent is within what 200 outputs can show by chance.
BASELINE_FLOOR = 0.01
# A slice has a baseline of its own with so many outputs, the first of them a day before the window: a version that is
# bad from its first hour must be compared with what was usual before it, not with itself.
BASELINE_MIN_N = 200
BASELINE_MIN_AGE = dt.timedelta(hours=24)
# Coverage counts an output whose picture cannot be read as looked at; where most are so, nobody sees what the app says.
UNREADABLE_MOST = 0.5
# An hour counts as one that usually has outputs when it had so many on most days, and on this day of the week.
USUAL_OUTPUTS = 10


@dataclass(frozen=True, slots=True)
class Line:
    """What the interval's lower bound is compared with. `baseline_of`: slice, project, or "" for a fixed line."""

    at: float
    baseline: float | None = None
    baseline_n: int | None = None
    baseline_of: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """`evidence` is what the state, the transition and the message keep of the numbers; plain JSON values."""

    verdict: Verdict
    reason: str
    evidence: dict[str, Any]


def judge(rule: models.AlertRule, window: Counts, line: Line | None, not_compared: str = "") -> Judgement:
    """A threshold or baseline rule. `line` is None where there is nothing to compare with yet; `not_compared` says why
    the line, or that there is none, is without a baseline that there would be."""
    hits, n = window.rate(rule.metric)
    evidence = _numbers(window, hits, n) | _line_evidence(line)
    if not_compared:
        evidence["not_compared"] = not_compared
    if not window.accepted:
        return Judgement("silent", "nothing arrived in the window", evidence)
    coverage = window.coverage or 0.0
    if coverage < rule.min_coverage:
        return Judgement("unseen", _unseen(window, rule.min_coverage), evidence)
    if n < rule.min_n:
        return Judgement("few", _few(window, n, rule), evidence)
    if line is None:
        missing = f"no baseline yet: it takes {BASELINE_MIN_N} outputs of the seven days before"
        return Judgement("few", not_compared or missing, evidence)
    low = intervals.wilson(hits, n)[0]
    if low > line.at:
        return Judgement("over", "", evidence)
    if line.at >= 1:
        return Judgement(
            "under", "the line lies over 100%, so this rule cannot fire here; give it a threshold", evidence
        )
    return Judgement("under", "", evidence)


def _numbers(window: Counts, hits: int, n: int) -> dict[str, Any]:
    low, high = intervals.wilson(hits, n) if n else (None, None)
    return {
        "value": hits / n if n else None,
        "low": low,
        "high": high,
        "n": n,
        "hits": hits,
        "accepted": window.accepted,
        "waiting": window.waiting,
        "quarantined": window.quarantined,
        "coverage": window.coverage,
    }


def _line_evidence(line: Line | None) -> dict[str, Any]:
    if line is None:
        return {"line": None, "baseline": None, "baseline_n": None, "baseline_of": ""}
    return {
        "line": line.at,
        "baseline": line.baseline,
        "baseline_n": line.baseline_n,
        "baseline_of": line.baseline_of,
    }


def kept_line(evidence: dict[str, Any]) -> Line | None:
    """The line an alert fired on: while it fires the line stays, or a lasting fault would become its own baseline."""
    if evidence.get("line") is None:
        return None
    return Line(
        evidence["line"], evidence.get("baseline"), evidence.get("baseline_n"), evidence.get("baseline_of") or ""
    )


def _unseen(window: Counts, least: float) -> str:
    missing = [
        f"{count:,} {word}"
        for count, word in (
            (window.waiting, "waiting"),
            (window.quarantined, "quarantined"),
            (window.model_error, "failed in the checker"),
        )
        if count
    ]
    return (
        f"only {percent(window.coverage or 0.0)} was looked at ({', '.join(missing)}); it takes {typed_percent(least)}"
    )


def _unreadable(window: Counts) -> str:
    share = percent(window.invalid_image / window.accepted)
    return (
        f"the pictures of {share} of the outputs cannot be read ({window.invalid_image:,} of {window.accepted:,}): "
        "their events say why"
    )


def _few(window: Counts, n: int, rule: models.AlertRule) -> str:
    if window.outdated and window.undecided == window.scored:
        return f"{window.scored:,} scored, none decided by the policy in force; what it decides from now on counts"
    if window.undecided and window.undecided == window.scored:
        return (
            f"{window.undecided:,} scored, none decided: the checker is calibrating, or the policy does not fit it: "
            "the policies page says which"
        )
    what = "with a known confidence" if rule.metric == "cmer" else "decided"
    takes = f"{n:,} outputs {what}, it takes {rule.min_n:,}"
    if window.outdated and window.undecided:
        return (
            f"{takes} under policy {window.version}; {window.outdated:,} were decided under {window.outdated_by} before"
        )
    return takes


def not_compared(rule: models.AlertRule, line: Line | None, week: Counts, version: int) -> str:
    """Why a rule is without a baseline although there were outputs: another policy decided them, and what share it
    flagged tells nothing of what this one would have. Empty where that is not the reason. `week`: of the project."""
    has_baseline = line is not None and line.baseline is not None
    if rule.kind != "baseline" or has_baseline or not week.outdated or not week.undecided:
        return ""
    return (
        f"the 7 days before are decided under policy {week.outdated_by}, the window under {version}; decide history "
        "again to compare"
    )


def line_of(rule: models.AlertRule, own: Counts, project: Counts, window_start: dt.datetime) -> Line | None:
    """The line for a slice: the fixed threshold, or the multiple of its baseline, whichever is lower.

    `own` and `project` are the seven days before the window, of the slice and of all that the rule looks at.
    """
    fixed = Line(rule.threshold) if rule.threshold is not None else None
    if rule.kind != "baseline" or rule.multiple is None:
        return fixed
    hits, n = own.rate(rule.metric)
    of = "slice"
    if n < BASELINE_MIN_N or own.first is None or window_start - own.first < BASELINE_MIN_AGE:
        hits, n = project.rate(rule.metric)
        of = "project"
    if n < BASELINE_MIN_N:
        return fixed
    baseline = hits / n
    usual = rule.multiple * max(baseline, BASELINE_FLOOR)
    return Line(usual if fixed is None else min(usual, fixed.at), baseline, n, of)


def judge_no_data(
    rule: models.AlertRule,
    window: Counts,
    usual: Counts,
    same_hours: Callable[[], Sequence[Counts]],
    is_open: bool = False,
) -> Judgement:
    """A no_data rule: silence at an hour that usually has outputs, a coverage whose interval lies under the minimum, or
    unreadable pictures whose interval lies over a half.

    `same_hours` are the same window 1 to 14 days earlier; asked for only when the slice is silent. While it fires
    (`is_open`), a silence of the usual kind, such as the night after the outage began, is no recovery.
    """
    evidence = _numbers(window, *window.rate(rule.metric)) | _line_evidence(None)
    if window.accepted:
        high = intervals.wilson(window.looked_at, window.accepted)[1]
        if high < rule.min_coverage:
            return Judgement("over", _unseen(window, rule.min_coverage), evidence)
        if intervals.wilson(window.invalid_image, window.accepted)[0] > UNREADABLE_MOST:
            return Judgement("over", _unreadable(window), evidence)
        return Judgement("under", "", evidence)
    at_rest: Verdict = "silent" if is_open else "under"
    if not usual.accepted:
        return Judgement(at_rest, "no outputs in the seven days before either", evidence)
    counts = [hours.accepted for hours in same_hours()]
    if is_usual_hour(counts):
        evidence["usual"] = statistics.median(count for count in counts if count)
        return Judgement("over", f"nothing arrived; usually about {evidence['usual']:.0f} outputs do", evidence)
    return Judgement(at_rest, "nothing arrived, as often at this hour", evidence)


def is_usual_hour(counts: Sequence[int]) -> bool:
    """Whether outputs are to be expected: `counts` of the same hours 1, 2, ... 14 days ago.

    Two days and most of those since the first that had any had them; and a slice older than a week had them a week ago
    too. So neither nights, nor weekends, nor the day after a single burst are silence.
    """
    days = max((day for day, count in enumerate(counts, 1) if count), default=0)
    had = [count >= USUAL_OUTPUTS for count in counts[:days]]
    return sum(had) >= 2 and 2 * sum(had) > len(had) and (days < 7 or had[6])
