"""Reviews without the checker's word: nothing of it reaches a reviewer before the verdict, on any page or answer."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, alerts, blindness, blobs, models
from tests.core import watched
from tests.web import seeded

Person = Callable[..., TestClient]
OUTPUT = "A red circle. It stands on a green ground."
SPANS = [(0, 13), (14, len(OUTPUT))]
# What the checker, the judge, the policy and the app's confidence said, in numbers found nowhere else.
TELLING = ("0.123", "0.318", "0.004", "0.0085", "0.612", "0.849", "0.771", "77.2", "88.1", "0.881", "blank")


@pytest.fixture
def person(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> Person:
    """`person("rita", "reviewer")`: a browser in which she is signed in, with a review and read key of hers."""

    def make(login: str, role: str) -> TestClient:
        user = access.create_user(session, project.id, login, login.title(), role)
        cookie = access.open_console_session(session, user.id)
        key = access.create_key(session, project.id, login, ("review", "read"), user.id)
        session.commit()
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})
        client.headers["Authorization"] = f"Bearer {key}"
        return client

    return make


@pytest.fixture
def rita(person: Person) -> TestClient:
    return person("rita", "reviewer")


@pytest.fixture
def boss(person: Person) -> TestClient:
    return person("boss", "lead")


@pytest.fixture
def items(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> list[models.ReviewItem]:
    """One that was flagged, and judged by the judge, and one that was drawn at random."""
    details = {
        "output": OUTPUT,
        "prompt": "Describe it.",
        "tokens": [OUTPUT],
        "logprobs": [-0.0],
        "metadata": {"s": "0.8812"},
    }
    for numbers, rate in (((0.1234, 0.0043), 0.0), ((0.3187, 0.6123), 1.0)):
        seeded.event(session, blob_store, project.id, **details)
        seeded.check(session, seeded.scored(*numbers, SPANS), audit_rate=rate)
    session.execute(sa.update(models.ReviewItem).values(reasons=["blank_image"]))
    rows = session.scalars(sa.select(models.ReviewItem).order_by(models.ReviewItem.kind.desc())).all()
    said = [{"start": start, "end": end, "p_yes": p} for (start, end), p in zip(SPANS, (0.7717, 0.881), strict=True)]
    of = {"event_id": rows[0].event_id, "checker_id": rows[0].checker_id, "project_id": project.id}
    session.add(models.Judgement(**of, state="judged", judge="vlm", p_yes=0.7717, claims=said))
    session.commit()
    assert [row.kind for row in rows] == ["flagged", "audit"]
    return list(rows)


@pytest.fixture
def blind(boss: TestClient, session: orm.Session, items: list[models.ReviewItem]) -> None:
    assert boss.post("/settings/reviews", data={"seen": "blind"}).status_code == 303
    begin(session)


def begin(session: orm.Session) -> None:
    """As if blindness began with this test's one transaction, whose now() every lease has."""
    session.execute(sa.update(models.Project).values(blind_since=sa.func.now()))
    session.commit()


def leased(rita: TestClient, item: models.ReviewItem) -> tuple[dict[str, object], str]:
    answer = rita.post(f"/v1/reviews/{item.id}/hold")
    assert answer.status_code == 200, answer.text
    return answer.json()["item"], answer.json()["lease"]["token"]


def seen(rita: TestClient, item: models.ReviewItem) -> dict[str, str]:
    """All that a reviewer can open about an item they hold, by address."""
    event = item.event_id
    found = {"hold": rita.post(f"/v1/reviews/{item.id}/hold"), "held": rita.get("/v1/reviews/held")}
    for path in (f"/review/{item.id}", f"/events/{event}", f"/events/{event}/json", "/events", f"/v1/events/{event}"):
        found[path] = rita.get(path)
    found |= {path: rita.get(path) for path in ("/v1/events", "/review/history", "/review")}
    assert all(answer.status_code in (200, 303) for answer in found.values()), found
    return {path: plain(answer.text) for path, answer in found.items()}


def told(pages: dict[str, str]) -> set[str]:
    return {f"{number} in {path}" for path, page in pages.items() for number in TELLING if number in page}


def test_everything_is_shown_before_the_verdict_as_it_always_was(
    rita: TestClient, items: list[models.ReviewItem]
) -> None:
    """And so the next test looks for what is there to be found."""
    pages = seen(rita, items[0])
    for number in ("0.004", "0.0085", "0.771", "0.123", "blank"):
        assert any(number in page for page in pages.values()), number
    assert "77.2%" in pages[f"/review/{items[0].id}"]
    assert "Judged by vlm, a second opinion beside the checker" in pages[f"/review/{items[0].id}"]


@pytest.mark.usefixtures("blind")
def test_nothing_of_the_checkers_reaches_a_reviewer_before_the_verdict(
    rita: TestClient, items: list[models.ReviewItem]
) -> None:
    for item in items:
        pages = seen(rita, item)
        assert told(pages) == set()
        page = pages[f"/review/{item.id}"]
        assert OUTPUT[:13] in page
        for mark in ('class="claim t', "swatch", "gauge", "flagged</", 'title="0', 'class="p0"', 'class="p1"', "vlm"):
            assert mark not in page, mark


@pytest.mark.usefixtures("blind")
def test_an_event_that_nobody_has_to_review_tells_no_more(
    rita: TestClient, boss: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    """It may come into the queue yet, when history is decided again."""
    event = seeded.event(session, blob_store, project.id, output=OUTPUT)
    seeded.check(session, seeded.scored(0.3187, 0.6123, SPANS), audit_rate=0.0)
    session.commit()
    assert session.scalar(sa.select(models.ReviewItem).where(models.ReviewItem.event_id == event)) is None
    paths = (f"/events/{event}", f"/events/{event}/json", f"/v1/events/{event}")
    assert told({path: plain(rita.get(path).text) for path in paths}) == set()
    assert all("0.61" in boss.get(path).text or "0.31" in boss.get(path).text for path in paths)


def plain(text: str) -> str:
    """Without what differs between any two items: ids, times, the numbers of this moment."""
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{64}\b", "ID", text)
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00)?|\d\d:\d\d|\d+ s ago|data-seconds=\"\d+\"", "TIME", text)


@pytest.mark.usefixtures("blind")
def test_flagged_and_drawn_items_look_the_same(rita: TestClient, items: list[models.ReviewItem]) -> None:
    found = []
    for item in items:
        _, token = leased(rita, item)
        pages = [rita.post(f"/v1/reviews/{item.id}/hold").text]
        pages += [rita.get(path).text for path in (f"/review/{item.id}", f"/v1/events/{item.event_id}")]
        pages.append(rita.get(f"/events/{item.event_id}").text)
        found.append([plain(page) for page in pages])
        rita.post(f"/v1/reviews/{item.id}/release", json={"lease_token": token})
    assert found[0] == found[1]


@pytest.mark.usefixtures("blind")
def test_what_would_tell_by_a_filter_is_refused(rita: TestClient, boss: TestClient) -> None:
    for query in ("flagged=true", "flagged=false", "outcome=scored"):
        assert rita.get(f"/v1/events?{query}").status_code == 403
        assert boss.get(f"/v1/events?{query}").status_code == 200
    refused = rita.get("/events?show=flagged")  # where an alert's page leads
    assert (refused.status_code, "Reviews are blind in this project" in refused.text) == (403, True)
    assert "show=flagged" not in rita.get("/events").text
    assert boss.get("/events?show=flagged").status_code == 200


def test_no_page_leads_to_the_list_that_is_refused(
    rita: TestClient, boss: TestClient, session: orm.Session, project: models.Project
) -> None:
    now = dt.datetime.now(dt.UTC)
    watched.rule(session, project.id)
    watched.lay(session, project.id, alerts.last_closed(now) - watched.MINUTES_10, 60, flagged=40, endpoint="/vqa")
    alerts.evaluate(session, project.id, now)
    [alert, *_] = watched.episodes(session, project.id)
    boss.post("/settings/reviews", data={"seen": "blind"})
    for path in ("/", "/alerts", f"/alerts/{alert.id}"):
        assert "show=flagged" in boss.get(path).text, path
        page = rita.get(path)
        assert (page.status_code, "show=flagged" in page.text) == (200, False), path


@pytest.mark.usefixtures("blind")
def test_after_the_verdict_the_pages_say_what_the_checker_said(
    rita: TestClient, items: list[models.ReviewItem], session: orm.Session
) -> None:
    item, token = items[0], leased(rita, items[0])[1]
    answer = rita.post(f"/v1/reviews/{item.id}/verdict", json={"lease_token": token, "verdict": "hallucinated"})
    assert answer.json()["review"]["is_blind"] is True
    for path in (f"/review/{item.id}", f"/events/{item.event_id}"):
        assert 'class="gauges"' in rita.get(path).text, path
    assert rita.get(f"/v1/events/{item.event_id}").json()["check"]["score"] is not None
    history = rita.get("/review/history").text
    assert "The checker: flagged, score 0.01" in history
    assert ">blind</span>" in history
    # Taken back, the item is to be judged again: but what was seen was seen.
    token = rita.post(f"/v1/reviews/{item.id}/undo").json()["lease"]["token"]
    assert told(seen(rita, item)) == set()
    again = rita.post(f"/v1/reviews/{item.id}/verdict", json={"lease_token": token, "verdict": "correct"})
    assert again.json()["review"]["is_blind"] is False


def verdict(client: TestClient, item: models.ReviewItem) -> bool:
    token = leased(client, item)[1]
    answer = client.post(f"/v1/reviews/{item.id}/verdict", json={"lease_token": token, "verdict": "cannot_tell"})
    return bool(answer.json()["review"]["is_blind"])


def test_a_verdict_counts_as_blind_only_where_its_whole_lease_was(
    rita: TestClient, boss: TestClient, items: list[models.ReviewItem], session: orm.Session
) -> None:
    token = leased(rita, items[0])[1]
    boss.post("/settings/reviews", data={"seen": "blind"})
    answer = rita.post(f"/v1/reviews/{items[0].id}/verdict", json={"lease_token": token, "verdict": "cannot_tell"})
    assert answer.json()["review"]["is_blind"] is False
    begin(session)
    assert verdict(rita, items[1]) is True


@pytest.mark.usefixtures("blind")
def test_a_leads_page_is_blind_too_but_not_their_verdict_for_they_see_more_elsewhere(
    boss: TestClient, person: Person, items: list[models.ReviewItem]
) -> None:
    leased(boss, items[0])
    page = boss.get(f"/review/{items[0].id}").text
    assert told({"page": page}) == set()
    assert "does not count as blind" in page
    assert 'class="gauges"' in boss.get(f"/events/{items[0].event_id}").text
    assert verdict(boss, items[0]) is False
    assert verdict(person("eng", "engineer"), items[1]) is False


@pytest.mark.usefixtures("blind")
def test_who_skipped_an_item_blind_may_still_answer_it_blind(rita: TestClient, items: list[models.ReviewItem]) -> None:
    token = leased(rita, items[0])[1]
    rita.post(f"/v1/reviews/{items[0].id}/skip", json={"lease_token": token, "reason": "too dark"})
    rita.post(f"/v1/reviews/{items[0].id}/undo")
    assert verdict(rita, items[0]) is True


def test_only_a_lead_changes_it_and_the_log_says_so(
    rita: TestClient, boss: TestClient, session: orm.Session, project: models.Project
) -> None:
    assert rita.post("/settings/reviews", data={"seen": "blind"}).status_code == 403
    assert boss.post("/settings/reviews", data={"seen": "x"}).status_code == 422
    assert not blindness.is_on(session, project.id)
    for seen_now in ("blind", "blind", "everything"):
        assert boss.post("/settings/reviews", data={"seen": seen_now}).status_code == 303
        assert f'value="{seen_now}" checked' in boss.get("/settings/reviews").text
    logged = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "review.visibility"))
    assert [entry.details for entry in logged] == [{"blind": "yes"}, {"blind": "no"}]


KEPT = ("flagged", "cmer", "low", "high", "uer", "uer_low", "uer_high", "sim_quartiles")


def lay(
    session: orm.Session, store: blobs.BlobStore, project: models.Project, count: int, low: int, endpoint: str
) -> None:
    for number, numbers in ((low, (0.1234, 0.0043)), (count - low, (0.3187, 0.6123))):
        for _ in range(number):
            seeded.event(session, store, project.id, endpoint=endpoint)
        seeded.check(session, seeded.scored(*numbers), audit_rate=0.0)
    session.commit()


def rates(client: TestClient, **query: str) -> dict[str, dict[str, object]]:
    answer = client.get("/v1/cmer", params={"group_by": "endpoint", "bucket": "1d"} | query).json()
    return {row["endpoint"]: row for row in answer["rows"]}


def test_rates_of_few_outputs_are_kept_from_reviewers_and_those_of_many_are_not(
    rita: TestClient, boss: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    lay(session, blob_store, project, blindness.FEWEST - 1, 7, "/few")
    lay(session, blob_store, project, blindness.FEWEST, 7, "/many")
    assert rates(rita) == rates(boss)  # reviews are not blind yet
    boss.post("/settings/reviews", data={"seen": "blind"})
    found, whole = rates(rita), rates(boss)
    assert found["/few"] == whole["/few"] | dict.fromkeys(KEPT)
    assert found["/few"]["n"] == blindness.FEWEST - 1
    assert found["/many"] == whole["/many"]
    assert None not in whole["/few"].values()


def test_the_overview_of_one_flagged_output_is_that_of_one_that_was_not(
    rita: TestClient, boss: TestClient, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    """Headline, chart, numbers by time and tables."""
    lay(session, blob_store, project, 1, 1, "/flagged")
    lay(session, blob_store, project, 1, 0, "/fine")
    said = "a dash stands for the rates of fewer than 50 outputs"

    def pages(client: TestClient) -> list[str]:
        found = [client.get("/", params={"endpoint": name, "window": "1h"}).text for name in ("/flagged", "/fine")]
        assert [said in page for page in found] == [client is rita and is_blind] * 2
        return [page.replace("%2F", "/") for page in found]

    is_blind = False
    assert "1 flagged of 1" in pages(rita)[0]
    assert "0 flagged of 1" in pages(rita)[1]
    boss.post("/settings/reviews", data={"seen": "blind"})
    is_blind = True
    flagged, fine = pages(rita)
    swapped = fine.replace("/fine", "@").replace("/flagged", "/fine").replace("@", "/flagged")
    assert sorted(plain(flagged).splitlines()) == sorted(plain(swapped).splitlines())
    assert told({"flagged": flagged, "fine": fine}) == set()
    assert "1 flagged of 1" in pages(boss)[0]


def test_no_preview_of_a_rule_tells_a_reviewer_the_score_of_one_output(rita: TestClient, boss: TestClient) -> None:
    rule = {"name": "one", "kind": "threshold", "threshold": 0.01, "min_n": 1, "match": {"endpoint": "/a"}}
    previews = {
        "/v1/policies/preview": {"rules": [{"conf_threshold": 0.9, "sim_threshold": 0.065}]},
        "/v1/alert-rules/backtest": rule,
    }

    def statuses(client: TestClient) -> list[int]:
        return [client.post(path, json=body).status_code for path, body in previews.items()]

    assert statuses(rita) == [200, 200]
    boss.post("/settings/reviews", data={"seen": "blind"})
    assert statuses(rita) == [403, 403]
    assert statuses(boss) == [200, 200]
