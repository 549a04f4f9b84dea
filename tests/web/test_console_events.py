"""From a number to the picture behind it: the list, the event page, the picture, and who may see them."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, models
from cmerwatch.shapes import CheckResult, Claimed, ClaimScore
from tests.web import seeded

Sender = Callable[..., uuid.UUID]
OUTPUT = "A red circle. It stands on a green ground."
SPANS = [(0, 13), (14, 42)]


@pytest.fixture
def send(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Sender:
    def make(**details: object) -> uuid.UUID:
        made = seeded.event(session, blob_store, project.id, **details)  # type: ignore[arg-type]
        session.commit()
        return made

    return make


@pytest.fixture
def checked(session: orm.Session, send: Sender) -> Sender:
    """An event that `judge` has judged."""

    def make(judge: seeded.Judge, is_calibrated: bool = True, **details: object) -> uuid.UUID:
        made = send(**details)
        seeded.check(session, judge, is_calibrated=is_calibrated)
        session.commit()
        return made

    return make


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_picture_comes_before_the_text(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, 0.5))
    page = console.get(f"/events/{event}").text
    assert page.index(f"/media/{event}/0") < page.index("Prompt") < page.index("Output")


def test_a_flagged_event_says_why_in_one_sentence(console: TestClient, checked: Sender) -> None:
    page = words(console.get(f"/events/{checked(seeded.scored(0.12, 0.004), confidence=0.94)}").text)
    assert (
        "Flagged The model was sure (confidence 0.94 is over 0.80), yet the text fits the picture worse than "
        "99.6% of matching outputs do (score 0.004 is below 0.05)." in page
    )
    assert "Policy version 1" in page
    assert seeded.LABEL in page


def test_each_sentence_shows_its_cosine_and_percentile_and_is_tinted(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.123, 0.03, SPANS), output=OUTPUT)
    page = console.get(f"/events/{event}").text
    assert '<mark class="claim t1">A red circle.</mark><sup>1</sup>' in page
    assert '<mark class="claim t1">It stands on a green ground.</mark><sup>2</sup>' in page
    assert words(page).count("0.123 3.0% of matching sentences score lower") == 2


def test_an_unsure_model_is_not_flagged_and_the_page_says_so(console: TestClient, checked: Sender) -> None:
    page = words(console.get(f"/events/{checked(seeded.scored(0.1, 0.001), confidence=0.5)}").text)
    assert "Not flagged" in page
    assert "the model was not sure (confidence 0.50 is not over 0.80)" in page


def test_unknown_confidence_is_doubtful_never_flagged(console: TestClient, checked: Sender) -> None:
    page = words(console.get(f"/events/{checked(seeded.scored(0.1, 0.001), confidence=None)}").text)
    assert "Doubtful Not flagged, because the confidence is not known" in page


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (seeded.ended("unscorable", "short_answer"), "Not scorable"),
        (seeded.ended("invalid_image", "truncated"), "This picture could not be decoded."),
        (seeded.ended("model_error"), "Check failed"),
    ],
)
def test_an_outcome_that_is_no_score_is_explained(
    console: TestClient, checked: Sender, judge: seeded.Judge, said: str
) -> None:
    assert said in words(console.get(f"/events/{checked(judge, display=None)}").text)


def test_a_calibrating_checker_leaves_events_undecided(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, None), is_calibrated=False)
    page = words(console.get(f"/events/{event}").text)
    assert "Calibrating Scored, but not decided" in page
    assert "not calibrated" in page


def test_a_waiting_event_looks_again_with_and_without_a_script(console: TestClient, send: Sender) -> None:
    event = send(display=None)
    page = console.get(f"/events/{event}").text
    assert "The picture appears once a worker has decoded it." in page
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in page
    assert f'data-poll="/events/{event}/state" data-state="waiting"' in page
    assert console.get(f"/events/{event}/state").json() == {"state": "waiting"}


def test_a_checked_event_never_reloads(console: TestClient, checked: Sender) -> None:
    page = console.get(f"/events/{checked(seeded.scored(0.3, 0.5))}").text
    assert "http-equiv" not in page
    assert "data-poll" not in page
    assert "<script" not in page


def test_a_quarantined_event_shows_its_last_error(console: TestClient, send: Sender, session: orm.Session) -> None:
    event = send(display=None)
    session.execute(sa.update(models.Work).values(state=models.QUARANTINED, attempts=4, last_error="out of memory"))
    session.commit()
    page = words(console.get(f"/events/{event}").text)
    assert "Quarantined" in page
    assert "Last error: out of memory. Attempts: 4." in page


def test_unsure_tokens_are_underlined(console: TestClient, checked: Sender) -> None:
    event = checked(
        seeded.scored(0.3, 0.5), tokens=["A", " red", " circle"], logprobs=[-0.01, -1.0, -4.0], output="A red circle"
    )
    page = console.get(f"/events/{event}").text
    assert '<span class="p1" title="0.37"> red</span>' in page
    assert '<span class="p0" title="0.02"> circle</span>' in page
    assert '<span title="0.99">A</span>' in page


def test_dimensions_lead_to_their_slice(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, 0.5), customer="a&b")
    page = console.get(f"/events/{event}").text
    assert '<a href="/?customer=a%26b"><bdi>a&amp;b</bdi></a>' in page


def test_the_json_is_what_the_api_answers(console: TestClient, checked: Sender, read: dict[str, str]) -> None:
    event = checked(seeded.scored(0.3, 0.5))
    assert console.get(f"/events/{event}/json").json() == console.get(f"/v1/events/{event}", headers=read).json()


EVIL = "</p><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7919*7907 }} \u202etxt.exe\u2066 a\u200bb \x1b[31m"


def test_hostile_text_is_shown_and_never_obeyed(console: TestClient, checked: Sender) -> None:
    event = checked(
        seeded.scored(0.3, 0.5),
        output=EVIL,
        prompt=EVIL,
        endpoint=EVIL,
        customer=EVIL,
        tokens=[EVIL, "x"],
        logprobs=[-3.0, -0.1],
        metadata={EVIL: EVIL},
    )
    for path in (f"/events/{event}", "/events"):
        page = console.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert str(7919 * 7907) not in page
        for character in "\u202e\u2066\u200b\x1b":
            assert character not in page
    page = console.get(f"/events/{event}").text
    for name in ("U+202E", "U+2066", "U+200B", "U+001B"):
        assert f'<span class="hidden-char" title="a character that would not be seen">{name}</span>' in page


def test_a_hundred_thousand_characters_without_a_space_are_served_whole(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, 0.5), output="W" * 100_000)
    page = console.get(f"/events/{event}")
    assert "W" * 100_000 in page.text
    assert len(console.get("/events").text) < 20_000


def test_another_projects_event_picture_and_json_do_not_exist(
    console: TestClient, session: orm.Session, blob_store: blobs.BlobStore, stranger: models.Project
) -> None:
    event = seeded.event(session, blob_store, stranger.id)
    session.commit()
    for path in (f"/events/{event}", f"/media/{event}/0", f"/events/{event}/json", f"/events/{event}/state"):
        assert console.get(path).status_code == 404
    assert str(event) not in console.get("/events").text
    assert "There is no event" in console.get(f"/events?find={event}").text


def test_a_refusal_is_a_page_not_json(console: TestClient) -> None:
    answer = console.get("/events/not-an-id")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "<h1>Not found</h1>" in answer.text


def test_the_picture_is_the_workers_copy_and_cannot_act(console: TestClient, checked: Sender) -> None:
    answer = console.get(f"/media/{checked(seeded.scored(0.3, 0.5))}/0")
    assert answer.content == seeded.WEBP
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"].startswith("private")


def test_a_picture_no_worker_has_made_is_not_replaced_by_what_was_sent(console: TestClient, send: Sender) -> None:
    assert console.get(f"/media/{send(display=None)}/0").status_code == 404


@pytest.mark.parametrize("number", ["1", "-1", "99999999999999999999", "x"])
def test_a_picture_the_event_does_not_have_is_not_found(console: TestClient, checked: Sender, number: str) -> None:
    assert console.get(f"/media/{checked(seeded.scored(0.3, 0.5))}/{number}").status_code == 404


def test_a_picture_opened_as_a_page_of_its_own_is_refused(console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, 0.5))
    assert console.get(f"/media/{event}/0", headers={"sec-fetch-dest": "document"}).status_code == 404


def test_pictures_need_a_session(app: fastapi.FastAPI, console: TestClient, checked: Sender) -> None:
    event = checked(seeded.scored(0.3, 0.5))
    assert TestClient(app, follow_redirects=False).get(f"/media/{event}/0").status_code == 303


def test_the_list_pages_back_without_gaps_or_doubles(
    console: TestClient, checked: Sender, send: Sender, session: orm.Session
) -> None:
    sent = {str(send()) for _ in range(90)}
    seen: list[str] = []
    path = "/events"
    for _ in range(3):
        page = console.get(path).text
        seen += re.findall(r'<p class="line">.*?href="/events/([0-9a-f-]{36})"', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        if older is None:
            break
        path = html.unescape(older.group(1))
    assert len(seen) == 90
    assert set(seen) == sent
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(("show", "expected"), [("flagged", 1), ("waiting", 1), ("unscorable", 1), ("all", 4)])
def test_the_tabs_show_what_they_say(
    console: TestClient, checked: Sender, send: Sender, show: str, expected: int
) -> None:
    checked(seeded.scored(0.1, 0.001))
    checked(seeded.scored(0.3, 0.5))
    checked(seeded.ended("unscorable"))
    send()
    assert console.get(f"/events?show={show}").text.count('<li class="card event-row">') == expected


def test_an_event_is_found_by_its_id_and_by_the_apps(console: TestClient, send: Sender) -> None:
    event = send(event_id="order 17")
    assert console.get(f"/events?find={event}").headers["location"] == f"/events/{event}"
    assert console.get("/events?find=order+17").headers["location"] == f"/events/{event}"


def test_a_bad_cursor_or_tab_is_refused_by_name(console: TestClient) -> None:
    assert "cursor" in console.get("/events?cursor=x").text
    answer = console.get("/events?show=everything")
    assert answer.status_code == 422
    assert "show" in answer.text


def test_a_list_touches_no_picture_and_no_original(
    console: TestClient, checked: Sender, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(seeded.scored(0.3, 0.5))

    def refuse(*_: object) -> bytes:
        raise AssertionError("a list read an image")

    monkeypatch.setattr(blobs.FolderStore, "get", refuse)
    monkeypatch.setattr(blobs.FolderStore, "get_display", refuse)
    assert console.get("/events").status_code == 200


def test_the_review_queue_is_named_when_the_event_is_in_it(console: TestClient, checked: Sender) -> None:
    page = words(console.get(f"/events/{checked(seeded.scored(0.1, 0.001))}").text)
    assert "Chosen because: confident, and poorly supported by the picture. It waits in the queue." in page


def test_a_viewer_of_two_kinds_of_role_sees_the_same_event(
    app: fastapi.FastAPI, session: orm.Session, project: models.Project, checked: Sender
) -> None:
    event = checked(seeded.scored(0.3, 0.5))
    for role in models.ROLES:
        user = access.create_user(session, project.id, f"u-{role}", role, role)
        cookie = access.open_console_session(session, user.id)
        session.commit()
        browser = TestClient(app, follow_redirects=False, cookies={"cmw": cookie})
        assert browser.get(f"/events/{event}").status_code == 200


def test_a_short_answer_shows_the_statement_it_was_read_as_and_a_denial_says_so(
    console: TestClient, checked: Sender
) -> None:
    def judge(claimed: Claimed) -> CheckResult:
        claims = (
            ClaimScore(0, 1, 0.3, 0.5, statement="There are <b>3</b> dogs."),
            ClaimScore(2, 4, 0.1, 0.04, statement="There is a cat.", negated=True),
        )
        return CheckResult(claimed, "scored", 0.3, 0.07, None, claims)

    page = console.get(f"/events/{checked(judge, output='3 no')}").text
    assert "<b>3</b>" not in page
    assert "read as: There are <b>3</b> dogs." in words(page).replace("&lt;", "<").replace("&gt;", ">")
    assert re.search(r"denied: There is a cat\. 4\S* ?% of texts about other pictures fit better", words(page))
