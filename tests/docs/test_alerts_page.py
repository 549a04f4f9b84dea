"""docs/alerts.md against the code: its example is taken, its table is the default pack, its numbers hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cmerwatch import (
    alert_groups,
    alert_judging,
    alert_messages,
    alert_notices,
    alert_rules,
    alert_states,
    models,
    notify,
)
from cmerwatch.alert_rules import RuleFields

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()


def test_the_example_is_a_rule_that_is_taken() -> None:
    [body] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    sent = json.loads(body)
    assert alert_rules.checked(RuleFields(**sent | {"scopes": tuple(sent["scopes"])})).threshold == 0.1


def test_the_default_pack_stands_in_the_table() -> None:
    for rule in alert_rules.DEFAULT_PACK:
        [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {rule.name} |")]
        assert rule.severity in line
        if rule.multiple is not None:
            assert f"{rule.multiple:g}x its usual rate" in line
        for scope in rule.scopes:
            assert scope.replace("_", " ") in line


def test_every_state_is_explained() -> None:
    for state in models.STATES:
        assert f"| `{state}` |" in PAGE


def test_what_each_kind_of_channel_is_sent_stands_in_a_table() -> None:
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in PAGE.splitlines() if " | " in line}
    for name, kind in notify.KINDS.items():
        row = rows["webhook" if name == "webhook" else kind.label]
        assert (row[3] != "nothing") is kind.hears_recoveries


def test_the_numbers_are_the_codes() -> None:
    assert f"fewer than {alert_judging.BASELINE_MIN_N} outputs" in PAGE
    assert f"under {alert_judging.BASELINE_FLOOR:.0%}".replace("%", " %") in PAGE
    assert f"at least {alert_judging.USUAL_OUTPUTS} outputs" in PAGE
    assert f"less than {alert_groups.WINDOW.total_seconds() / 3600:.0f} hour ago" in PAGE
    assert f"at least {alert_messages.UPDATE_EVERY.total_seconds() / 60:.0f} minutes apart" in PAGE
    assert f"{alert_notices.LISTED} at most" in PAGE
    assert f"{alert_states.STALE_AFTER.total_seconds() / 3600:.0f} hours on end" in PAGE
