"""docs/operating.md lists exactly the settings there are, with their defaults."""

from __future__ import annotations

import re
from pathlib import Path

from cmerwatch.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "operating.md"


def test_the_table_names_every_setting_with_its_default_and_description() -> None:
    rows = re.findall(r"^\| `CMERWATCH_(\w+)` \| (.+?) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {name.lower(): (default, text) for name, default, text in rows}
    expected = {}
    for name, field in Settings.model_fields.items():
        default = field.default
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        expected[name] = ("empty" if default is None or str(default) == "" else f"`{default}`", field.description)
    assert documented == expected
