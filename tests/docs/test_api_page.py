"""docs/api.md lists exactly the calls there are, with the scope that each needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cmerwatch import access, settings
from cmerwatch_web import app as web
from cmerwatch_web.api import cmer, schemas
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


def test_its_limits_are_those_in_force(configured: Callable[..., settings.Settings]) -> None:
    limits = PAGE.split("## Limits")[1].split("##")[0].replace("\n", " ")
    here = configured()
    for number, unit in (
        (schemas.MAX_IMAGES, "pictures"),
        (schemas.MAX_TOKENS, "tokens"),
        (schemas.MAX_METADATA_BYTES >> 10, "KiB"),
        (schemas.MAX_SLICE_BYTES, "bytes"),
        (schemas.MAX_EVENTS, "events"),
        (here.max_body_bytes >> 20, "MiB"),
        (here.max_image_bytes >> 20, "MiB"),
        (here.max_image_pixels // 10**6, "megapixels"),
        (cmer.MOST_ROWS, "rows"),
    ):
        assert f"{number:_}".replace("_", " ") + f" {unit}" in limits
