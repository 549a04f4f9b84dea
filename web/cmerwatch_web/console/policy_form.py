"""The form of a policy: rows of text as a browser sends them, made into rules and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmerwatch import errors, policies
from cmerwatch.shapes import DIMENSIONS

ABSENT = "(none)"  # what an output without this dimension is matched by; an empty field matches any


@dataclass(frozen=True, slots=True)
class Preset:
    """A starting point for a kind of work. What its numbers do on matched text follows from how the score is made."""

    label: str
    why: str
    conf: str
    sim: str


PRESETS = {
    "sensitive": Preset(
        "Sensitive: medicine, documents, safety",
        "Looks at more: asks for less confidence, and flags the lowest 10 % of matching text as well. Expect about "
        "twice the reviews.",
        "0.7",
        "0.1",
    ),
    "creative": Preset(
        "Loose: captions that may embroider",
        "Looks at less: only the surest outputs, and only the lowest 2 % of matching text.",
        "0.9",
        "0.02",
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One rule as typed. `match` holds a text per dimension."""

    match: tuple[str, ...] = ("",) * len(DIMENSIONS)
    conf: str = str(policies.DEFAULT_CONF_THRESHOLD)
    sim: str = "auto"
    measure: str = "score"

    @property
    def is_for_everything(self) -> bool:
        return not any(text.strip() for text in self.match)


def rows_of(rules: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The most specific first, as they are tried; the one for everything else last."""
    rows = [_row_of(rule) for rule in rules]
    return sorted(rows, key=lambda row: -sum(bool(text) for text in row.match))


def _row_of(rule: Mapping[str, Any]) -> Row:
    match = rule.get("match", {})
    return Row(
        match=tuple((match[name] or ABSENT) if name in match else "" for name in DIMENSIONS),
        conf=str(rule.get("conf_threshold", policies.DEFAULT_CONF_THRESHOLD)),
        sim=str(rule.get("sim_threshold", "auto")),
        measure=str(rule.get("measure", "score")),
    )


def read(fields: Mapping[str, Any]) -> list[Row]:
    """The rows of a posted form, in their order."""
    numbers = sorted({int(found.group(1)) for name in fields if (found := re.match(r"rule-(\d{1,4})-", name))})
    return [_read_row(fields, number) for number in numbers]


def _read_row(fields: Mapping[str, Any], number: int) -> Row:
    def text(name: str, otherwise: str = "") -> str:
        return str(fields.get(f"rule-{number}-{name}", otherwise))

    match = tuple(text(name) for name in DIMENSIONS)
    return Row(match, text("conf"), text("sim"), text("measure", "score") or "score")


def rules_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is saved. Raises Invalid naming the rule and the field for text that is no number."""
    return [_rule_of(number, row) for number, row in enumerate(rows)]


def _rule_of(number: int, row: Row) -> dict[str, Any]:
    pairs = zip(DIMENSIONS, (text.strip() for text in row.match), strict=True)
    match = {name: "" if text == ABSENT else text for name, text in pairs if text}
    sim = row.sim.strip().lower()
    rule: dict[str, Any] = {
        "match": match,
        "conf_threshold": _number(number, "conf_threshold", row.conf),
        "sim_threshold": "auto" if sim in ("auto", "") else _number(number, "sim_threshold", sim),
    }
    return rule if row.measure == "score" else rule | {"measure": row.measure}


def _number(number: int, field: str, text: str) -> float:
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        raise errors.Invalid(f"rules[{number}].{field} must be a number from 0 to 1", field=field) from None


def with_preset(name: str) -> Row | None:
    """A new row with a preset's numbers; None for a name that is none."""
    preset = PRESETS.get(name)
    return None if preset is None else replace(Row(), conf=preset.conf, sim=preset.sim)


def place(rows: Sequence[Row]) -> int:
    """Where a new row goes: next to the buttons that add it, yet above the one for everything else, tried last."""
    return len(rows) - 1 if rows and rows[-1].is_for_everything else len(rows)


def worded(message: str, shows_measure: bool = False) -> str:
    """A refusal in the words of the form: its rules are counted from 1, its fields are called as their labels are."""
    renamed = re.sub(r"rules\[(\d+)\]", lambda found: f"Rule {int(found.group(1)) + 1}", message)
    labels = {
        ".conf_threshold": ": “Confidence over”",
        ".sim_threshold": f": “{'Below' if shows_measure else 'Score below'}”",
        ".measure": ": “Measure”",
        ".match": ": it",
    }
    for name, label in labels.items():
        renamed = renamed.replace(name, label)
    return renamed


# How versions differ, in words


def condition(rule: Mapping[str, Any]) -> str:
    """`confidence over 0.8 and score below auto`."""
    conf, sim = rule.get("conf_threshold", policies.DEFAULT_CONF_THRESHOLD), rule.get("sim_threshold", "auto")
    return f"confidence over {conf:g} and {rule.get('measure', 'score')} below {sim if sim == 'auto' else f'{sim:g}'}"


def scope(rule: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dimension, value) pairs of a rule; empty for the one for everything else."""
    return sorted(rule.get("match", {}).items())


@dataclass(frozen=True, slots=True)
class Change:
    """What one version did to one rule: `was` or `now` is None where the rule is new or gone."""

    scope: list[tuple[str, str]]
    was: str | None
    now: str | None


def changes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Change]:
    old, new = ({tuple(scope(rule)): rule for rule in rules} for rules in (before, after))
    made = [
        Change(list(key), condition(old[key]) if key in old else None, condition(new[key]) if key in new else None)
        for key in sorted(old.keys() | new.keys(), key=lambda key: (-len(key), key))
    ]
    return [one for one in made if one.was != one.now]
