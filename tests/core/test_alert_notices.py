"""What a message says: the slice, the window, the worst within, what else moved, and where to look."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import orm

from cmerwatch import alert_notices, alert_views, models, settings
from cmerwatch.alert_notices import Scene
from cmerwatch.alert_numbers import Cells, Counts
from cmerwatch.shapes import Notice, Slice
from tests.core import watched
from tests.core.watched import DAY, END, HOUR, MINUTES_5


def cells(**counts: tuple[int, int]) -> Cells:
    """`cells(v1_count=(100, 5))`: n and flagged of model version v1 and prompt type count."""
    made = {}
    for name, (n, flagged) in counts.items():
        version, prompt_type = name.split("_")
        key = Slice("/vqa", prompt_type=prompt_type, model_version=version.strip("-"))
        made[key] = Counts(scored=n, n=n, flagged=flagged)
    return Cells(made)


def scene(window: Cells, week: Cells, **of: str) -> Scene:
    return Scene(of, END - HOUR, END, window, week)


def test_the_worst_within_are_ranked_by_their_lower_bound_and_need_twenty() -> None:
    window = cells(v1_count=(300, 30), v2_count=(60, 40), v2_describe=(19, 19), v3_describe=(25, 2))
    assert scene(window, window).worst("cmer") == [
        ("model_version", "v2", pytest.approx(59 / 79), 79),
        ("prompt_type", "describe", pytest.approx(21 / 44), 44),
        ("prompt_type", "count", pytest.approx(70 / 360), 360),
    ]


def test_a_dimension_that_is_fixed_or_has_one_value_is_no_sub_slice() -> None:
    window = cells(v2_count=(60, 40), v2_describe=(60, 1))
    found = scene(window, window, model_version="v2").worst("cmer")
    assert [one[:2] for one in found] == [("prompt_type", "count"), ("prompt_type", "describe")]


def test_a_new_version_is_named_with_its_share() -> None:
    found = scene(cells(v1_count=(60, 3), v2_count=(40, 20)), cells(v1_count=(1000, 50))).changes()
    assert found == [
        "Model version “v2” is new: 40% of these outputs, none in the seven days before.",
        "Model version “v1” went from 100% to 60% of the outputs.",
        "The mix of prompt types is that of the seven days before.",
    ]


def test_a_mix_of_prompts_that_moved_is_named() -> None:
    found = scene(
        cells(v1_count=(80, 3), v1_describe=(20, 1)), cells(v1_count=(500, 3), v1_describe=(500, 1))
    ).changes()
    assert found[0] == "The model versions are those of the seven days before."
    assert found[1].startswith("The mix of prompt types moved: Prompt type “count” went from 50% to 80%")


def test_nothing_known_before_is_said() -> None:
    assert scene(cells(v1_count=(80, 3)), cells()).changes() == [
        "Nothing of this slice is known from the seven days before, so no change can be told."
    ]


def test_long_names_are_cut() -> None:
    assert len(alert_notices.named("x" * 5000)) == alert_notices.MAX_NAMED + 2


HOSTILE = "</a><script>&x=1#/?\u202e%20\n"


def test_links_carry_window_and_slice_whatever_the_names_hold(
    configured: Callable[..., settings.Settings],
) -> None:
    configured(public_url="https://watch.example/")
    found = urlsplit(alert_notices.link("/events", END - HOUR, END, {"endpoint": HOSTILE}, show="flagged"))
    assert (found.scheme, found.netloc, found.path) == ("https", "watch.example", "/events")
    assert parse_qs(found.query, keep_blank_values=True) == {
        "from": ["2026-03-18T11:00:00Z"],
        "to": ["2026-03-18T12:00:00Z"],
        "endpoint": [HOSTILE],
        "show": ["flagged"],
    }


def test_a_message_says_all_that_the_contract_names(session: orm.Session, project: models.Project) -> None:
    watched.channel(session, project.id)
    watched.rule(session, project.id, "baseline", scopes=("endpoint",), name="far above", severity="critical")
    watched.lay_week(session, project.id, model_version="v1", prompt_type="describe")
    for back in range(12):
        at = END - HOUR + back * MINUTES_5
        watched.lay(session, project.id, at, 15, 9, model_version="v2", prompt_type="count")
        watched.lay(session, project.id, at, 15, 1, model_version="v1", prompt_type="describe")
    watched.tick(session, project.id)
    [message] = watched.messages(session, project.id)
    said: dict[str, Any] = message.notice
    notice = Notice(**said)
    assert (notice.status, notice.severity, notice.rule, notice.project) == ("firing", "critical", "far above", "acme")
    assert notice.slice == {"endpoint": "/describe"}
    assert (notice.n, notice.value, notice.coverage) == (360, pytest.approx(1 / 3), 1.0)
    assert notice.baseline == pytest.approx(0.05)
    assert notice.condition == "CMER over 2x its usual rate, in 1 h"
    assert (notice.window_start, notice.window_end) == ("2026-03-18T11:00:00Z", "2026-03-18T12:00:00Z")
    assert notice.worst[0][:2] in (["model_version", "v2"], ["prompt_type", "count"])
    assert notice.changes[0].startswith("Model version “v2” is new: 50%")
    assert "endpoint=%2Fdescribe" in notice.link
    assert "show=flagged" in notice.events_link
    for link in (notice.link, notice.events_link):
        assert f"project={notice.project}" in link, "who works in several projects must land in this one"
    assert (notice.fired_at, notice.resolved_at) == ("2026-03-18T12:00:00Z", None)


def test_an_alert_of_uer_links_to_all_outputs(session: orm.Session, project: models.Project) -> None:
    """The list has no tab for low similarity of unknown confidence."""
    watched.rule(session, project.id, metric="uer")
    watched.lay(session, project.id, END - HOUR, 100, flagged=60, confidence=None)
    watched.tick(session, project.id)
    [row] = alert_views.find(session, project.id).rows
    notice = row.notice("acme")
    assert notice is not None
    assert "show=all" in notice.events_link


def test_an_episodes_history_begins_with_what_led_to_it(session: orm.Session, project: models.Project) -> None:
    watched.rule(session, project.id, window_seconds=300, for_seconds=300, keep_firing_seconds=300)
    for step, flagged in enumerate((60, 60, 1, 1)):
        watched.lay(session, project.id, END - MINUTES_5 + step * MINUTES_5, 100, flagged)
    watched.tick(session, project.id)
    for step in range(1, 4):
        watched.tick(session, project.id, step * MINUTES_5)
    [alert] = watched.episodes(session, project.id)
    found = [one.to_state for one in alert_views.transitions(session, alert)]
    assert found == ["no_data", "pending", "firing", "recovering", "ok"]


def test_times_of_other_zones_are_written_in_utc() -> None:
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
    link = alert_notices.link("/", END.astimezone(zone), (END + DAY).astimezone(zone), {})
    assert parse_qs(urlsplit(link).query)["from"] == ["2026-03-18T12:00:00Z"]
