"""The front page: every rate with its n, interval and coverage, and a way to what stands behind it."""

from __future__ import annotations

import datetime as dt
import html
import re

import fastapi
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, models, policies
from cmerwatch_web.console import overview, views
from tests.web import seeded

LOW = seeded.scored(0.12, 0.004)
FINE = seeded.scored(0.31, 0.6)


@pytest.fixture
def lay(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project):  # type: ignore[no-untyped-def]
    """`lay(8, 2, endpoint="/a")`: 8 fine and 2 flagged outputs, checked."""

    def make(fine: int, low: int = 0, **details: object) -> None:
        for count, judge in ((fine, FINE), (low, LOW)):
            for _ in range(count):
                seeded.event(session, blob_store, project.id, **details)  # type: ignore[arg-type]
            seeded.check(session, judge)
        session.commit()

    return make


def words(page: str) -> str:
    """What a person reads: tags dropped, entities resolved, spaces folded."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def row(page: str, dimension: str, value: str) -> str:
    """One row of one of the tables, in words."""
    table = page.split(f'id="{dimension}"')[1].split("</table>")[0]
    [found] = [words(one) for one in table.split("<tr")[2:] if words(one.split("</th>")[0].split(">", 1)[1]) == value]
    return found.split(">", 1)[1].strip()


def test_a_fresh_project_is_shown_how_to_send_its_first_event(console: TestClient) -> None:
    page = console.get("/").text
    assert "cmerwatch.record(" in page
    assert "curl -sS http://127.0.0.1:8383/v1/events" in page


def test_the_headline_has_the_rate_its_interval_n_and_coverage(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(90, 10)
    page = words(console.get("/").text)
    assert "CMER 10.0% 95% interval 5.5% to 17.4%" in page
    assert "n 100 Flagged 10 Coverage 100%" in page


def test_a_table_row_has_the_same_numbers_for_its_slice(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(90, 10, endpoint="/good")
    lay(30, 30, endpoint="/bad")
    page = console.get("/").text
    assert row(page, "endpoint", "/bad") == "/bad 50.0% 37.7% – 62.3% 60 30 100% 50.0%"
    assert row(page, "endpoint", "/good") == "/good 10.0% 5.5% – 17.4% 100 10 100% 10.0%"


def test_the_worst_comes_first_and_rows_of_few_outputs_stand_after_the_others(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(90, 10, customer="good")
    lay(30, 30, customer="bad")
    lay(0, 1, customer="lone")
    lay(1, 1, customer="two")
    page = console.get("/").text
    table = words(page.split('id="customer"')[1].split("</table>")[0])
    assert table.index("bad") < table.index("good") < table.index("lone") < table.index("two")


def test_rows_of_few_outputs_are_marked(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(3, 1, customer="small")
    assert "4 few" in row(console.get("/").text, "customer", "small")


def test_waiting_events_lower_the_coverage_and_are_counted(
    console: TestClient,
    lay,
    session: orm.Session,
    blob_store: blobs.BlobStore,
    project: models.Project,  # type: ignore[no-untyped-def]
) -> None:
    lay(9, endpoint="/a")
    seeded.event(session, blob_store, project.id, endpoint="/a")
    session.commit()
    page = console.get("/").text
    assert "Coverage 90.0%" in words(page)
    assert "Waiting 1" in words(page)
    assert "90.0%" in row(page, "endpoint", "/a")


@pytest.mark.parametrize(("unreadable", "is_doubtful"), [(1, False), (2, True)])
def test_unreadable_pictures_are_a_share_of_what_was_accepted_that_stands_out_over_a_twentieth(
    console: TestClient,
    lay,  # type: ignore[no-untyped-def]
    session: orm.Session,
    blob_store: blobs.BlobStore,
    project: models.Project,
    unreadable: int,
    is_doubtful: bool,
) -> None:
    lay(20 - unreadable)
    for _ in range(unreadable):
        seeded.event(session, blob_store, project.id)
    seeded.check(session, seeded.ended("invalid_image", "image_url_403"))
    session.commit()
    page = console.get("/").text
    assert f"Unreadable {unreadable} {unreadable * 5}.0% of accepted" in words(page)
    assert "Coverage 100%" in words(page)
    assert ('class="doubt"' in page.split("Unreadable</abbr>")[1].split("</div>")[0]) == is_doubtful


def test_a_filter_narrows_everything_but_its_own_table(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(50, endpoint="/a", customer="x")
    lay(40, 10, endpoint="/b", customer="y")
    page = console.get("/?endpoint=/b").text
    assert "n 50 Flagged 10" in words(page)
    assert "/a 0% " in row(page, "endpoint", "/a")  # still there to compare with and to switch to
    assert "y 20.0%" in row(page, "customer", "y")
    assert "No" not in row(page, "customer", "y")
    with pytest.raises(ValueError, match="unpack"):
        row(page, "customer", "x")


def test_an_empty_filter_means_events_without_that_dimension(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(7)
    lay(5, customer="x")
    assert "n 7 " in words(console.get("/?customer=").text)


def test_the_count_of_flagged_leads_to_exactly_those(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(5, 2, endpoint="/a")
    lay(5, 3, endpoint="/b")
    table = console.get("/").text.split('id="endpoint"')[1]
    [link] = [html.unescape(one) for one in re.findall(r'href="(/events\?[^"]+)"', table) if "%2Fa" in one][:1]
    assert console.get(link).text.count('<li class="card event-row">') == 2


def test_unknown_confidence_is_left_out_of_cmer_and_counted_in_uer(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(10, 10, confidence=None)
    page = words(console.get("/").text)
    assert "nothing with a known confidence" in page
    assert "UER 50.0% 29.9% – 70.1% of 20" in page


def test_a_calibrating_checker_says_so_instead_of_showing_zero(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    seeded.event(session, blob_store, project.id)
    seeded.check(session, seeded.scored(0.3, None), is_calibrated=False)
    session.commit()
    page = words(console.get("/").text)
    assert "CMER Calibrating" in page
    assert "0%" not in page.split("Over time")[0].split("Calibrating")[1].split("Coverage")[0]


def test_the_checker_is_named_with_what_it_does_not_see(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(1)
    page = words(console.get("/").text)
    assert seeded.LABEL in page
    assert "do not reliably see counts" in page


def test_nowhere_is_cmer_called_a_hallucination_rate(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(5, 5)
    assert "hallucinat" not in console.get("/").text.lower()


def test_a_new_model_version_is_marked_where_it_starts(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    now = dt.datetime.now(dt.UTC)
    lay(60, model_version="v1", at=now - dt.timedelta(hours=20))
    lay(20, 40, model_version="v2")
    page = console.get("/?window=24h").text
    assert f"v2 from {now:%-d %b}" in words(page)
    assert 'class="bar v0"' in page
    assert 'class="bar v1"' in page


def test_a_filter_keeps_the_colour_of_a_version(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(60, model_version="v1")
    lay(60, model_version="v2")
    assert 'class="key v1"></i><bdi>v2' in console.get("/").text
    assert 'class="key v1"></i><bdi>v2' in console.get("/?model_version=v2").text


def test_another_projects_events_count_nowhere(
    console: TestClient,
    lay,
    session: orm.Session,
    blob_store: blobs.BlobStore,
    stranger: models.Project,  # type: ignore[no-untyped-def]
) -> None:
    seeded.event(session, blob_store, stranger.id, endpoint="/secret")
    lay(3)
    page = console.get("/").text
    assert "/secret" not in page
    assert "Accepted 3" in words(page)


def test_a_window_without_events_says_so(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(1)
    assert "No outputs in this window" in console.get("/?from=2026-01-01&to=2026-01-02").text


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("window=9y", "window"),
        ("from=yesterday", "from"),
        ("from=9999-12-01&to=9999-12-31T23:59:59", "years"),
        ("from=0001-01-01T00:00:00%2B14:00", "from"),
        ("to=0001-01-02", "years"),
        ("from=2026-02-01&to=2026-01-01", "from"),
        ("from=1990-01-01&to=2026-01-01", "400 days"),
    ],
)
def test_a_bad_address_is_refused_on_a_page_that_names_the_parameter(
    console: TestClient, query: str, named: str
) -> None:
    answer = console.get(f"/?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"].startswith("text/html")
    assert named in answer.text


def test_the_chart_the_tables_and_the_headline_count_the_same_events() -> None:
    now = dt.datetime(2026, 11, 20, 10, 17, 33, tzinfo=dt.UTC)
    day = overview.aligned(views.read({"window": "24h"}, now))
    assert (day.start.hour, day.start.minute, day.end.hour, day.end.minute) == (10, 0, 11, 0)
    hour = overview.aligned(views.read({"window": "1h"}, now))
    assert (hour.start.minute, hour.end.minute) == (15, 20)


def test_hostile_names_stay_text_everywhere(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    evil = '"><script>alert(1)</script>\u202egnp'
    lay(40, 5, endpoint=evil, customer=evil, prompt_type=evil, model_version=evil)
    page = console.get("/").text
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "U+202E" in page


def test_a_role_that_may_not_read_is_refused_on_a_page(
    app: fastapi.FastAPI, console: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(access.ROLE_ACTIONS, "viewer", set())
    answer = console.get("/")
    assert answer.status_code == 403
    assert "<h1>Refused</h1>" in answer.text


def test_a_changed_policy_is_marked_and_what_was_counted_before_it_stays(
    console: TestClient,
    session: orm.Session,
    project: models.Project,
    lay,  # type: ignore[no-untyped-def]
) -> None:
    lay(9, 1)
    assert "The policy changed" not in console.get("/").text
    policies.create(session, project.id, [{"sim_threshold": 0.7}], "user:ada")
    session.commit()
    page = console.get("/").text
    assert "CMER 10.0%" in words(page)
    assert "The policy changed in this window: version 2 on" in words(page)
    assert "policy 2 from" in page.split('class="timeline"')[1].split('class="foot"')[0]
    lay(5)
    assert "CMER 40.0%" in words(console.get("/").text), "1 of 10 under version 1, all 5 under version 2"


@pytest.fixture
def switched(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> tuple[int, int]:
    """Ten outputs, all flagged, three hours ago by one checker; and since then four, none flagged, by another."""
    ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3)
    old = seeded.checker(session, label="old: drawn", name="old:drawn")
    new = seeded.checker(session, label="new: drawn", name="new:drawn")
    for checker_id, n, at, judge in ((old, 10, ago, LOW), (new, 4, None, FINE)):
        for _ in range(n):
            seeded.event(session, blob_store, project.id, at=at)
        seeded.check(session, judge, checker_id=checker_id)
    session.commit()
    return old, new


def test_rates_of_two_checkers_are_never_added_up_and_the_page_says_where_the_other_ones_are(
    console: TestClient, switched: tuple[int, int]
) -> None:
    page = console.get("/").text
    assert "n 4 Flagged 0" in words(page)
    assert "Checked by new: drawn" in words(page)
    assert "old: drawn ( old:drawn ) looked at 10 outputs , which are not in the numbers here" in words(page)
    assert "checker new: drawn from" in page.split('class="timeline"')[1].split('class="foot"')[0]
    [link] = re.findall(r'href="([^"]*checker=\d+[^"]*)"', page)
    assert f"checker={switched[0]}" in link
    old = console.get(html.unescape(link)).text
    assert "n 10 Flagged 10" in words(old)
    assert "These are the numbers of a checker that is not in use any more" in words(old)
    assert "checker old: drawn from" not in old
    assert f"checker={switched[0]}" in old.split('id="endpoint"')[1], "a click into the table stays with that checker"
    assert "checker=" not in "".join(re.findall(r'href="(/events[^"]*)"', old)), "the list shows every event"


def test_one_checker_alone_has_no_mark_and_no_note(console: TestClient, lay) -> None:  # type: ignore[no-untyped-def]
    lay(5)
    page = console.get("/").text
    assert "never added up" not in page
    assert "checker test" not in page.split('class="timeline"')[1].split('class="foot"')[0]


@pytest.mark.parametrize("value", ["x", "999999", "9999999999", "-1"])
def test_a_checker_that_never_checked_here_is_refused(console: TestClient, value: str) -> None:
    answer = console.get(f"/?checker={value}")
    assert answer.status_code == 422
    assert "checker" in words(answer.text)


def test_a_checker_of_another_project_alone_is_refused(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, stranger: models.Project
) -> None:
    theirs = seeded.checker(session, name="theirs:drawn")
    seeded.event(session, blob_store, stranger.id)
    seeded.check(session, FINE, checker_id=theirs)
    session.commit()
    assert console.get(f"/?checker={theirs}").status_code == 422
