"""What a message about an alert says: the numbers, where they come from, what else moved, and links to exactly that."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from cmerwatch import alert_rules, intervals, models, settings
from cmerwatch.alert_numbers import Cells, Counts
from cmerwatch.shapes import DIMENSIONS, Notice, Part

WORST = 3
LISTED = 8  # slices of an incident in a message; Slack's budget is what bounds it
WORST_MIN_N = 20
NEW_SHARE = 0.05  # of the window's outputs, before a version that was not there is worth a sentence
MOVED = 0.15  # by how much a share of the outputs must move, in either direction
SEEN_BEFORE = 0.005  # share of the week before, up to which a version counts as new
MAX_NAMED = 80


@dataclass(frozen=True, slots=True)
class Scene:
    """One slice in one window, with the cells it is made of and those of the week before."""

    slice: Mapping[str, str]
    start: dt.datetime
    end: dt.datetime
    window: Cells
    week: Cells

    def worst(self, metric: str) -> list[tuple[str, str, float, int]]:
        """(dimension, value, rate, n) of the sub-slices with the highest lower bounds; the whole slice is none."""
        whole = self.window.total.rate(metric)[1]
        found = []
        for dimension in DIMENSIONS:
            if dimension in self.slice:
                continue
            for value, own in self.window.by(dimension).items():
                hits, n = own.rate(metric)
                if value and hits and WORST_MIN_N <= n < whole:
                    found.append((intervals.wilson(hits, n)[0], dimension, value, hits / n, n))
        found.sort(key=lambda one: (-one[0], one[1], one[2]))
        return [one[1:] for one in found[:WORST]]

    def changes(self) -> list[str]:
        """Sentences on the model version and the mix of prompts against the week before; one each, always."""
        if not self.week.total.accepted:
            return ["Nothing of this slice is known from the seven days before, so no change can be told."]
        return [
            *(_versions(self.window, self.week) if "model_version" not in self.slice else []),
            *(_prompts(self.window, self.week) if "prompt_type" not in self.slice else []),
        ]


def _versions(window: Cells, week: Cells) -> list[str]:
    new, moved = [], []
    for value, (now, before) in _shares(window, week, "model_version").items():
        if before <= SEEN_BEFORE and now >= NEW_SHARE and value:
            said = "none" if not before else alert_rules.percent(before)
            new.append(
                f"Model version {named(value)} is new: {alert_rules.percent(now)} of these outputs, "
                f"{said} in the seven days before."
            )
        elif abs(now - before) >= MOVED and value:
            moved.append(f"Model version {named(value)} went from {_from_to(before, now)}.")
    return [*new, *moved][:WORST] or ["The model versions are those of the seven days before."]


def _prompts(window: Cells, week: Cells) -> list[str]:
    moved = [
        (abs(now - before), value, before, now)
        for value, (now, before) in _shares(window, week, "prompt_type").items()
        if abs(now - before) >= MOVED
    ]
    if not moved:
        return ["The mix of prompt types is that of the seven days before."]
    _, value, before, now = max(moved)
    what = f"Prompt type {named(value)}" if value else "Outputs without a prompt type"
    return [f"The mix of prompt types moved: {what} went from {_from_to(before, now)}."]


def _shares(window: Cells, week: Cells, dimension: str) -> dict[str, tuple[float, float]]:
    """Value -> (share of the window, share of the week before), of what was accepted; the biggest first."""
    now, before = _accepted(window.by(dimension)), _accepted(week.by(dimension))
    values = sorted(now.keys() | before.keys(), key=lambda value: (-now.get(value, 0.0), value))
    return {value: (now.get(value, 0.0), before.get(value, 0.0)) for value in values}


def _accepted(counts: Mapping[str, Counts]) -> dict[str, float]:
    total = sum(own.accepted for own in counts.values())
    return {value: own.accepted / total for value, own in counts.items()} if total else {}


def _from_to(before: float, now: float) -> str:
    return f"{alert_rules.percent(before)} to {alert_rules.percent(now)} of the outputs"


def named(value: str) -> str:
    """A name that somebody sent, in quotes and not endless; channels and pages escape it."""
    return f"“{value if len(value) <= MAX_NAMED else value[: MAX_NAMED - 1] + '…'}”"


def link(path: str, start: dt.datetime, end: dt.datetime, of: Mapping[str, str], **extra: str) -> str:
    """An absolute address of the console for exactly this window and slice."""
    narrowed = [(name, of[name]) for name in DIMENSIONS if name in of]
    query = urlencode([("from", _written(start)), ("to", _written(end)), *narrowed, *extra.items()])
    return f"{settings.current().public_url.rstrip('/')}{path}?{query}"


def _written(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def evidence_of(scene: Scene, metric: str) -> dict[str, Any]:
    """What an episode keeps beside its numbers, for its page and its messages."""
    return {"worst": [list(one) for one in scene.worst(metric)], "changes": scene.changes()}


def listed(
    rule: models.AlertRule, project: str, alerts: Sequence[tuple[models.Alert, Mapping[str, Any]]]
) -> dict[str, Any]:
    """For `make`: the slices of an incident with the numbers of each, the worst first, no more than fit."""
    ranked = sorted(alerts, key=lambda one: (-(one[1].get("low") or 0.0), len(one[0].slice), one[0].slice_key))
    parts = [asdict(_part(rule, project, alert, evidence)) for alert, evidence in ranked[:LISTED]]
    return {"parts": parts, "slices": len(ranked)}


def _part(rule: models.AlertRule, project: str, alert: models.Alert, evidence: Mapping[str, Any]) -> Part:
    start, end = _window(evidence)
    return Part(
        slice=dict(alert.slice),
        since=_written(alert.fired_at),
        value=evidence.get("value"),
        low=evidence.get("low"),
        high=evidence.get("high"),
        n=int(evidence.get("n") or 0),
        link=link("/", start, end, alert.slice, project=project),
        events_link=link("/events", start, end, alert.slice, show=_shown(rule), project=project),
        reason=str(evidence.get("reason") or ""),
    )


def _window(evidence: Mapping[str, Any]) -> tuple[dt.datetime, dt.datetime]:
    start, end = (dt.datetime.fromisoformat(evidence[name]) for name in ("window_start", "window_end"))
    return start, end


def _shown(rule: models.AlertRule) -> str:
    """The tab of the outputs that the rule counts; there is none for low similarity of unknown confidence."""
    return "flagged" if rule.metric == "cmer" and rule.kind != "no_data" else "all"


def make(alert: models.Alert, rule: models.AlertRule, project: str, status: str, evidence: Mapping[str, Any]) -> Notice:
    """The notice of an episode, of evidence as an alert or a state keeps it, with what `listed` adds for a group and
    the `slice` it is of, where another than its own leads."""
    start, end = _window(evidence)
    of = evidence.get("slice", alert.slice)
    return Notice(
        alert_id=str(alert.id),
        rule_id=str(alert.rule_id),
        status=status,
        severity=alert.severity,
        project=project,
        rule=alert.rule_name,
        slice=dict(of),
        metric=rule.metric,
        value=evidence.get("value"),
        low=evidence.get("low"),
        high=evidence.get("high"),
        n=int(evidence.get("n") or 0),
        baseline=evidence.get("baseline"),
        coverage=evidence.get("coverage"),
        condition=alert_rules.condition(rule),
        window_start=_written(start),
        window_end=_written(end),
        fired_at=_written(alert.fired_at),
        resolved_at=_written(alert.resolved_at) if alert.resolved_at else None,
        link=link("/", start, end, of, project=project),
        events_link=link("/events", start, end, of, show=_shown(rule), project=project),
        worst=tuple((one[0], one[1], one[2], one[3]) for one in evidence.get("worst", ())),
        changes=tuple(evidence.get("changes", ())),
        reason=str(evidence.get("reason") or ""),
        group_id=str(alert.group_id or ""),
        parts=tuple(Part(**part) for part in evidence.get("parts", ())),
        slices=int(evidence.get("slices") or 1),
        joined=int(evidence.get("joined") or 0),
        recovered=int(evidence.get("recovered") or 0),
    )
