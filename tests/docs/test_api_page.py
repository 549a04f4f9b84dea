"""docs/api.md lists exactly the calls there are, with the scope that each needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cmerwatch import access, settings
from cmerwatch_web import app as web
from tests.web.test_who_may_what import ROUTES

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
CALLS = dict(re.findall(r"^\| `([A-Z]+ /v1/[^`]+)` \| (\w+) \|", PAGE, re.MULTILINE))


def test_every_call_is_listed_and_none_besides(configured: Callable[..., settings.Settings]) -> None:
    paths = web.create_app(configured()).openapi()["paths"]
    calls = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(CALLS) == {call for call in calls if " /v1/" in call}
    for call in calls - set(CALLS):
        assert f"`{call}`" in PAGE


def test_each_call_names_a_scope_that_may_make_it() -> None:
    for call, scope in CALLS.items():
        needed = set(ROUTES[call][0].split("|"))
        assert needed & access.SCOPE_ACTIONS[scope], call
