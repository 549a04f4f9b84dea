"""The reviewer's pages over plain HTTP, as a browser without a script uses them."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, models
from cmerwatch_web.console import pages, review_form
from tests.web import seeded

Sender = Callable[..., uuid.UUID]
Person = Callable[..., TestClient]
Browser = TestClient
PASSWORD = "correct horse battery"
OUTPUT = "A red circle.\nIt stands on a green ground."


@pytest.fixture
def person(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> Person:
    """A browser in which somebody of this role is signed in."""

    def make(
        login: str = "rita", role: str = "reviewer", of: models.Project | None = None, password: str | None = None
    ) -> TestClient:
        user = access.create_user(session, (of or project).id, login, login.title(), role, password=password)
        cookie = access.open_console_session(session, user.id)
        session.commit()
        return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})

    return make


@pytest.fixture
def rita(person: Person) -> Browser:
    return person()


@pytest.fixture
def flagged(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Sender:
    """The review item of a fresh event, flagged unless the judge finds otherwise."""

    def make(judge: seeded.Judge | None = None, audit_rate: float = 0.0, **details: object) -> uuid.UUID:
        event = seeded.event(session, blob_store, project.id, **details)  # type: ignore[arg-type]
        seeded.check(session, judge or seeded.scored(0.12, 0.004), audit_rate=audit_rate)
        session.commit()
        return session.scalars(sa.select(models.ReviewItem.id).where(models.ReviewItem.event_id == event)).one()

    return make


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def lease(page: str) -> str:
    found = re.search(r'name="lease_token" value="([0-9a-f-]{36})"', page)
    assert found, words(page)
    return found[1]


def start(browser: Browser) -> tuple[str, str]:
    """Take the next item: its address and its lease."""
    answer = browser.post("/review/next")
    assert answer.status_code == 303
    address = answer.headers["location"]
    return address, lease(browser.get(address).text)


def end_leases(session: orm.Session) -> None:
    """As if their time had passed."""
    session.execute(sa.text("UPDATE review_items SET lease_until = now() - interval '1 second'"))
    session.commit()


def acts(session: orm.Session) -> list[models.Review]:
    session.expire_all()
    return list(session.scalars(sa.select(models.Review).order_by(models.Review.id)))


# The queue


def test_opening_the_queue_takes_nothing_from_others(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged()
    assert "1 item waits for a verdict" in words(rita.get("/review").text)
    session.expire_all()
    assert session.scalars(sa.select(models.ReviewItem.state)).all() == ["open"]


def test_opening_an_item_takes_nothing_either(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    item = flagged()
    page = rita.get(f"/review/{item}").text
    assert "nobody else does" in page
    assert "Take this item" in page
    session.expire_all()
    assert session.scalars(sa.select(models.ReviewItem.state)).all() == ["open"]
    assert rita.post(f"/review/{item}/hold").headers["location"] == f"/review/{item}"
    assert lease(rita.get(f"/review/{item}").text)


def test_an_empty_queue_says_what_comes_and_that_it_looks_again(rita: Browser) -> None:
    page = rita.get("/review").text
    assert "Nothing waits for you" in page
    assert "2.0% of the rest drawn at random" in words(page)
    assert 'data-poll="/review/state" data-state="empty"' in page
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in page
    assert rita.get("/review/state").json() == {"state": "empty"}
    assert rita.post("/review/next").headers["location"] == "/review"


def test_the_empty_queue_notices_what_came(rita: Browser, flagged: Sender) -> None:
    flagged()
    assert rita.get("/review/state").json() == {"state": "waiting"}


def test_a_queue_in_other_hands_says_when_the_first_item_may_come_back(
    rita: Browser, person: Person, flagged: Sender
) -> None:
    flagged()
    start(person("otto"))
    page = words(rita.get("/review").text)
    assert re.search(r"1 item is with other reviewers\. The first comes back at \d\d:\d\d UTC unless", page)


def test_the_queue_goes_on_with_the_item_held(rita: Browser, flagged: Sender) -> None:
    flagged(), flagged()
    address, _ = start(rita)
    assert rita.get("/review").headers["location"] == address
    assert rita.post("/review/next").headers["location"] == address


def test_the_navigation_counts_what_nobody_holds(rita: Browser, flagged: Sender) -> None:
    flagged(), flagged()
    assert "Review 2 waiting" in words(rita.get("/").text)
    start(rita)
    assert "Review 1 waiting" in words(rita.get("/").text)


# The item


def test_the_page_shows_picture_prompt_output_and_why_in_this_order(rita: Browser, flagged: Sender) -> None:
    flagged(prompt="What is this?", output=OUTPUT, confidence=0.94)
    address, _ = start(rita)
    page = rita.get(address).text
    places = [page.index(part) for part in ('<img src="/media/', "What is this?", "A red circle.", "Why it is here")]
    assert places == sorted(places)
    said = words(page)
    assert "Confidence 0.94 sure over 0.80 Score 0.004 low below 0.05" in said
    assert "The output fits the picture better than 0.4% of matching outputs do." in said
    for name in ("1 Correct", "2 Partly correct", "3 Hallucinated", "4 Cannot tell", "Skip S", "Escalate E"):
        assert name in said


def test_low_confidence_tokens_are_underlined_inside_the_tinted_sentences(rita: Browser, flagged: Sender) -> None:
    flagged(output="A red circle.", tokens=["A", " red", " circle", "."], logprobs=[-0.01, -0.75, 0.0, 0.0])
    address, _ = start(rita)
    page = rita.get(address).text
    assert re.search(r'<mark class="claim t0"[^>]*><span data-at="0">A</span><span data-at="1" class="p1"', page)


def test_an_audit_item_is_worded_like_any_other(rita: Browser, flagged: Sender) -> None:
    flagged(seeded.scored(0.31, 0.6), audit_rate=1.0)
    address, _ = start(rita)
    said = words(rita.get(address).text)
    assert "Some items were flagged, others drawn at random. These numbers hint at which; let your verdict rest" in said
    assert "The output fits the picture better than 60.0% of matching outputs do." in said
    for telling in ("audit", "Not flagged", "Flagged", "low_similarity_unconfirmed"):
        assert telling not in said


def test_the_pictures_of_the_next_items_are_fetched_ahead(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged(), flagged()
    address, _ = start(rita)
    ahead = re.search(r'data-ahead="([^"]*)"', rita.get(address).text)
    other = session.scalars(sa.select(models.ReviewItem.event_id).where(models.ReviewItem.state == "open")).one()
    assert ahead is not None
    assert ahead[1] == f"/media/{other}/0"


def test_without_claims_or_picture_the_page_still_stands(rita: Browser, flagged: Sender) -> None:
    flagged(display=None, prompt=None)
    address, _ = start(rita)
    page = words(rita.get(address).text)
    assert "No copy to show." in page
    assert "none was sent" in page


# Verdicts


def test_a_verdict_is_stored_and_leads_straight_to_the_next_item(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    flagged(output=OUTPUT), flagged(output=OUTPUT)
    first, token = start(rita)
    said = {
        "verdict": "partially_correct",
        "error_types": ["object", "count"],
        "note": " there is no dog ",
        "correction": "A blue circle.\r\nIt stands on a green ground.",
        "spans": "[[2, 5]]",
    }
    answer = rita.post(f"{first}/verdict", data={"lease_token": token, **said})
    assert answer.status_code == 303
    assert answer.headers["location"] not in (first, "/review")
    [review] = acts(session)
    assert (review.verdict, review.error_types) == ("partially_correct", ["object", "count"])
    assert (review.note, review.correction) == ("there is no dog", "A blue circle.\nIt stands on a green ground.")
    assert review.spans == [{"start": 2, "end": 5}]
    page = words(rita.get(answer.headers["location"]).text)
    assert "Marked partly correct. Undo U" in page
    assert "1 by you today" in page


def test_an_output_left_as_it_was_is_no_correction(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged(output=OUTPUT)
    address, token = start(rita)
    page = rita.get(address).text
    filled = re.search(r'<textarea id="correction"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert filled is not None
    as_sent = html.unescape(filled[1]).replace("\n", "\r\n")  # how every browser sends line ends
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct", "correction": as_sent})
    assert [review.correction for review in acts(session)] == [None]


def test_the_last_verdict_leads_to_the_empty_queue_where_it_can_be_undone(rita: Browser, flagged: Sender) -> None:
    flagged()
    address, token = start(rita)
    answer = rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct"})
    assert answer.headers["location"] == "/review"
    assert "Marked correct. Undo U" in words(rita.get("/review").text)


def test_undo_brings_the_item_back_as_it_was_filled_in(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged(output=OUTPUT), flagged()
    address, token = start(rita)
    said = {"verdict": "hallucinated", "error_types": "relation", "note": "upside down", "spans": "[[2, 5]]"}
    rita.post(f"{address}/verdict", data={"lease_token": token, **said})
    assert rita.post(f"{address}/undo").headers["location"] == address
    page = rita.get(address).text
    assert "You had said hallucinated." in words(page)
    assert "upside down</textarea>" in page
    assert 'value="relation" checked' in page
    assert 'name="spans" data-spans="[[2, 5]]"' in page
    rita.post(f"{address}/verdict", data={"lease_token": lease(page), "verdict": "correct"})
    assert [(act.action, act.verdict) for act in acts(session)] == [
        ("verdict", "hallucinated"),
        ("undo", None),
        ("verdict", "correct"),
    ]


def test_after_an_undone_item_comes_the_one_that_was_held(rita: Browser, flagged: Sender) -> None:
    flagged(), flagged()
    first, token = start(rita)
    second = rita.post(f"{first}/verdict", data={"lease_token": token, "verdict": "correct"}).headers["location"]
    rita.post(f"{first}/undo")
    token = lease(rita.get(first).text)
    answer = rita.post(f"{first}/verdict", data={"lease_token": token, "verdict": "cannot_tell"})
    assert answer.headers["location"] == second


def test_a_skip_takes_its_reason_from_the_list_and_the_words_beside_it(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    flagged()
    address, token = start(rita)
    chosen = {"choice": "I do not know this subject well enough", "reason": "X-ray"}
    assert rita.post(f"{address}/skip", data={"lease_token": token, **chosen}).status_code == 303
    assert [act.reason for act in acts(session)] == ["I do not know this subject well enough: X-ray"]
    page = words(rita.get("/review").text)
    assert "Skipped. Undo U" in page
    assert "Nothing waits for you 1 item you skipped goes to others first" in page
    assert rita.get("/review/state").json() == {"state": "empty"}


def test_a_skip_taken_back_waits_again(rita: Browser, flagged: Sender) -> None:
    flagged()
    address, token = start(rita)
    rita.post(f"{address}/skip", data={"lease_token": token, "reason": "by mistake"})
    rita.post(f"{address}/undo")
    rita.post(f"{address}/give-back", data={"lease_token": lease(rita.get(address).text)})
    assert "1 item waits for a verdict" in words(rita.get("/review").text)


def test_another_reason_has_to_be_named(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged()
    address, token = start(rita)
    answer = rita.post(f"{address}/skip", data={"lease_token": token, "choice": "Another reason", "reason": " "})
    assert answer.status_code == 422
    assert "`reason` is empty; say in a few words why." in words(answer.text)
    assert acts(session) == []
    assert lease(answer.text) == token


def test_an_escalated_item_reaches_a_lead_with_its_reason_and_nobody_else(
    rita: Browser, person: Person, flagged: Sender
) -> None:
    item = flagged()
    address, token = start(rita)
    rita.post(f"{address}/escalate", data={"lease_token": token, "reason": "is a sign text?"})
    assert "Nothing waits for you" in rita.get("/review").text
    assert "escalated" in words(rita.get(f"/review/{item}").text)
    refused = rita.post(f"/review/{item}/hold")
    assert refused.status_code == 409
    assert "a lead will answer it" in words(refused.text)
    lead = person("lena", "lead")
    assert "is a sign text?" in words(lead.get("/review/escalated").text)
    assert lead.post(f"/review/{item}/hold").headers["location"] == address
    page = lead.get(address).text
    assert "Before you Escalated rita," in words(page)
    assert "Reason is a sign text?" in words(page)
    answer = lead.post(f"{address}/verdict", data={"lease_token": lease(page), "verdict": "correct"})
    assert answer.status_code == 303


def test_an_item_given_back_is_free_at_once(rita: Browser, person: Person, flagged: Sender) -> None:
    flagged()
    address, token = start(rita)
    assert rita.post(f"{address}/give-back", data={"lease_token": token}).headers["location"] == "/review"
    assert start(person("otto"))[0] == address


# What goes wrong loses no words

TYPED = {
    "verdict": "hallucinated",
    "error_types": ["object", "text"],
    "note": "no <b>dog</b> here",
    "correction": "A blue circle.",
    "spans": "[[2, 5]]",
}


def has_typed(page: str) -> bool:
    wanted = (
        "no &lt;b&gt;dog&lt;/b&gt; here</textarea>",
        "A blue circle.</textarea>",
        'value="object" checked',
        'value="text" checked',
        'name="spans" data-spans="[[2, 5]]"',
    )
    return all(part in page for part in wanted)


def test_a_lease_that_ran_out_offers_the_item_again_with_what_was_typed(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    flagged(output=OUTPUT)
    address, token = start(rita)
    end_leases(session)
    lost = rita.post(f"{address}/verdict", data={"lease_token": token, **TYPED})
    assert lost.status_code == 409
    assert "Your time on this item ended at" in words(lost.text)
    assert "Nothing was stored; what you typed is still here." in words(lost.text)
    assert "Take it again and go on" in lost.text
    assert has_typed(lost.text)
    again = rita.post(f"{address}/resume", data=TYPED)
    assert again.status_code == 200
    assert has_typed(again.text)
    assert rita.post(f"{address}/verdict", data={"lease_token": lease(again.text), **TYPED}).status_code == 303
    assert [act.note for act in acts(session)] == ["no <b>dog</b> here"]


def test_an_untouched_output_is_not_shown_as_typed(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged(output=OUTPUT)
    address, token = start(rita)
    end_leases(session)
    as_filled = OUTPUT.replace("\n", "\r\n")
    said = {"lease_token": token, "verdict": "correct", "correction": as_filled}
    assert "<details><summary>Corrected output" in rita.post(f"{address}/verdict", data=said).text
    said["correction"] = as_filled + " And more."
    assert "<details open><summary>Corrected output" in rita.post(f"{address}/verdict", data=said).text


def test_an_item_somebody_else_took_names_them_and_the_time_and_keeps_the_words(
    rita: Browser, person: Person, flagged: Sender, session: orm.Session
) -> None:
    flagged(output=OUTPUT)
    address, token = start(rita)
    end_leases(session)
    start(person("otto"))
    lost = rita.post(f"{address}/verdict", data={"lease_token": token, **TYPED})
    assert lost.status_code == 409
    assert re.search(r"otto holds this item, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\.", words(lost.text))
    assert has_typed(lost.text)
    assert has_typed(rita.post(f"{address}/resume", data=TYPED).text)
    assert acts(session) == []


def test_a_second_submit_of_the_same_form_changes_nothing(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    flagged()
    address, token = start(rita)
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct"})
    again = rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "hallucinated"})
    assert again.status_code == 409
    assert "You, in this tab or another, answered this item at" in words(again.text)
    assert "rita answered" not in words(again.text)
    assert [act.verdict for act in acts(session)] == ["correct"]


def test_an_expired_session_carries_the_form_through_the_sign_in(person: Person, flagged: Sender) -> None:
    rita = person(password=PASSWORD)
    flagged(output=OUTPUT)
    address, token = start(rita)
    rita.cookies.clear()
    ended = rita.post(f"{address}/verdict", data={"lease_token": token, **TYPED})
    assert ended.status_code == 401
    assert "Nothing you typed is lost" in words(ended.text)
    kept = hidden(ended.text, "kept")
    wrong = rita.post("/sign-in", data={"login": "rita", "password": "wrong", "next": address, "kept": kept})
    assert hidden(wrong.text, "kept") == kept
    back = rita.post("/sign-in", data={"login": "rita", "password": PASSWORD, "next": address, "kept": kept})
    assert "cmw" in rita.cookies
    assert f'action="{address}/resume"' in back.text
    assert "no &lt;b&gt;dog&lt;/b&gt; here" in back.text
    assert "marks and a corrected output come back with it too" in words(back.text)
    page = rita.post(f"{address}/resume", data={"kept": hidden(back.text, "kept")})
    assert has_typed(page.text)
    assert "You had said hallucinated." in words(page.text)
    assert rita.post(f"{address}/verdict", data={"lease_token": lease(page.text), **TYPED}).status_code == 303


def hidden(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found
    return html.unescape(found[1])


def test_who_signed_in_by_a_link_elsewhere_goes_on_from_the_sign_in_page(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    flagged(output=OUTPUT)
    address, token = start(rita)
    cookie = rita.cookies["cmw"]
    rita.cookies.clear()
    ended = rita.post(f"{address}/verdict", data={"lease_token": token, **TYPED})
    assert f'action="{address}/resume"' in ended.text
    still = rita.post(f"{address}/resume", data={"kept": hidden(ended.text, "kept")})
    assert still.status_code == 401
    assert hidden(still.text, "kept") == hidden(ended.text, "kept")
    rita.cookies.set("cmw", cookie)
    assert has_typed(rita.post(f"{address}/resume", data={"kept": hidden(ended.text, "kept")}).text)


@pytest.mark.parametrize("kept", ["", "x", "[1]", '{"a": 1}', "[" * 100_000, '[["note", "\\ud800\\u0000"]]'])
def test_a_tampered_sign_in_form_still_signs_in(person: Person, kept: str) -> None:
    browser = person("otto", password=PASSWORD)
    browser.cookies.clear()
    address = f"/review/{uuid.uuid4()}"
    answer = browser.post("/sign-in", data={"login": "otto", "password": PASSWORD, "next": address, "kept": kept})
    assert answer.status_code == (200 if kept else 303)
    assert browser.post(f"{address}/resume", data={"kept": kept}).status_code == 404


def test_other_forms_are_not_kept(rita: Browser, flagged: Sender) -> None:
    address, token = start_of(rita, flagged)
    rita.cookies.clear()
    answer = rita.post(f"{address}/give-back", data={"lease_token": token})
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in")


def start_of(browser: Browser, flagged: Sender) -> tuple[str, str]:
    flagged()
    return start(browser)


def test_correct_with_an_error_type_asks_which_is_meant(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    address, token = start_of(rita, flagged)
    said = {"verdict": "correct", "error_types": "count", "note": "kept"}
    answer = rita.post(f"{address}/verdict", data={"lease_token": token, **said})
    assert answer.status_code == 422
    assert "You chose Correct and an error type." in words(answer.text)
    assert "kept</textarea>" in answer.text
    assert acts(session) == []


def test_correct_with_marked_words_asks_which_is_meant(rita: Browser, flagged: Sender, session: orm.Session) -> None:
    address, token = start_of(rita, flagged)
    answer = rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct", "spans": "[[2, 5]]"})
    assert answer.status_code == 422
    assert "You chose Correct and marked words as wrong." in words(answer.text)
    assert "Nothing is stored now until you say it again" not in words(answer.text)
    assert acts(session) == []


def test_a_mark_carries_its_kind_which_is_among_the_error_types(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    item = flagged(output=OUTPUT)
    address, token = start(rita)
    said = {"verdict": "hallucinated", "error_types": "count", "spans": '[[2, 5, "attribute"], [6, 12]]'}
    assert rita.post(f"{address}/verdict", data={"lease_token": token, **said}).status_code == 303
    [review] = acts(session)
    assert review.spans == [{"start": 2, "end": 5, "error_type": "attribute"}, {"start": 6, "end": 12}]
    assert review.error_types == ["count", "attribute"]
    page = rita.get(f"/events/{session.get_one(models.ReviewItem, item).event_id}").text
    assert "Marked red attribute circle wrong" in words(page)
    assert "2 stretches of the output marked" in words(rita.get("/review/history").text)


def test_without_a_script_a_sentence_is_marked_by_its_box_and_its_kind(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    """A kind that was chosen marks its sentence too: nobody chooses one for a sentence that is right."""
    flagged(seeded.scored(0.12, 0.004, [(0, 13), (14, len(OUTPUT))]), output=OUTPUT)
    address, token = start(rita)
    page = rita.get(address).text
    assert 'name="marked" value="0-13">' in page
    said = {"verdict": "hallucinated", "marked": ["0-13", "x", "99"], f"type-14-{len(OUTPUT)}": "relation"}
    assert rita.post(f"{address}/verdict", data={"lease_token": token, **said}).status_code == 303
    [review] = acts(session)
    assert review.spans == [
        {"start": 0, "end": 13},
        {"start": 14, "end": len(OUTPUT), "error_type": "relation"},
    ]
    assert review.error_types == ["relation"]
    rita.post(f"{address}/undo")
    page = rita.get(address).text
    assert 'name="marked" value="0-13" checked>' in page
    assert '<option value="relation" selected>' in page


@pytest.mark.parametrize(
    ("field", "value"), [("note", "n" * 1_000_000), ("correction", "c" * 10_001), ("spans", "[[0, 99999]]")]
)
def test_what_is_over_a_limit_is_refused_by_name_and_kept(
    rita: Browser, flagged: Sender, session: orm.Session, field: str, value: str
) -> None:
    address, token = start_of(rita, flagged)
    answer = rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "hallucinated", field: value})
    assert answer.status_code == 422
    assert f"`{field}" in words(answer.text)
    assert value in answer.text
    assert acts(session) == []


def test_hidden_characters_in_a_note_are_stored_harmless_and_shown_by_name(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    address, token = start_of(rita, flagged)
    note = "a\0b\u202e<script>alert(1)</script>"
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct", "note": note})
    assert [act.note for act in acts(session)] == ["a\ufffdb\u202e<script>alert(1)</script>"]
    page = rita.get("/review/history").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "U+202E" in page


@pytest.mark.parametrize(
    "spans",
    [
        "x",
        "[[1]]",
        "[[1, 2, 3]]",
        '[[1, 2, "hue"]]',
        '[[1, 2, ["text"]]]',
        '{"a": 1}',
        "[" * 50_000,
        "[[null, 2]]",
        "[[1e999, 2]]",
    ],
)
def test_spans_that_no_page_sends_are_passed_over(
    rita: Browser, flagged: Sender, session: orm.Session, spans: str
) -> None:
    address, token = start_of(rita, flagged)
    answer = rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct", "spans": spans})
    assert answer.status_code == 303
    assert [act.spans for act in acts(session)] == [[]]


# The heartbeat


def test_a_heartbeat_renews_and_a_lost_lease_says_who_has_it(
    rita: Browser, person: Person, flagged: Sender, session: orm.Session
) -> None:
    address, token = start_of(rita, flagged)
    assert rita.post(f"{address}/heartbeat", data={"lease_token": token}).json()["seconds"] > 290
    end_leases(session)
    assert "nobody has taken it since" in rita.post(f"{address}/heartbeat", data={"lease_token": token}).json()["lost"]
    start(person("otto"))
    lost = rita.post(f"{address}/heartbeat", data={"lease_token": token})
    assert lost.status_code == 409
    assert "otto holds this item" in lost.json()["lost"]


def test_a_heartbeat_with_a_made_up_token_renews_nothing(rita: Browser, flagged: Sender) -> None:
    address, _ = start_of(rita, flagged)
    for made_up in ("", "x", str(uuid.uuid4())):
        assert rita.post(f"{address}/heartbeat", data={"lease_token": made_up}).status_code == 409


# Who may


def test_a_viewer_is_told_which_role_reviewing_needs_and_sees_no_link(person: Person, flagged: Sender) -> None:
    item = flagged()
    viewer = person("vera", "viewer")
    assert 'href="/review"' not in viewer.get("/").text
    for path in ("/review", "/review/history", "/review/state", f"/review/{item}"):
        answer = viewer.get(path)
        assert answer.status_code == 403
        assert "Reviewing needs the role reviewer, lead, engineer or admin in acme; yours is viewer." in answer.text
    for act in ("verdict", "skip", "escalate", "undo", "hold", "resume", "give-back", "heartbeat"):
        assert viewer.post(f"/review/{item}/{act}", data={"verdict": "correct"}).status_code == 403
    assert viewer.post("/review/next").status_code == 403


def test_another_projects_item_does_not_exist(
    person: Person, flagged: Sender, stranger: models.Project, session: orm.Session
) -> None:
    item = flagged()
    foreign = person("sam", "admin", of=stranger)
    assert foreign.get(f"/review/{item}").status_code == 404
    for act in ("verdict", "skip", "escalate", "undo", "hold", "resume", "heartbeat"):
        data = {"verdict": "correct", "reason": "x", "lease_token": str(uuid.uuid4())}
        assert foreign.post(f"/review/{item}/{act}", data=data).status_code in (404, 409 if act == "heartbeat" else 404)
    assert acts(session) == []
    assert foreign.get(f"/review/{uuid.uuid4()}").status_code == 404
    assert foreign.get("/review/not-an-item").status_code == 404


def test_only_a_lead_sees_the_escalated_and_what_others_said(rita: Browser, person: Person, flagged: Sender) -> None:
    address, token = start_of(rita, flagged)
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct", "note": "mine alone"})
    otto = person("otto")
    assert otto.get("/review/escalated").status_code == 403
    assert "mine alone" not in otto.get("/review/history").text
    assert "rita" not in otto.get(address).text.replace("rita answered this item", "")
    page = words(person("lena", "lead").get("/review/history").text)
    assert "rita," in page
    assert "mine alone" in page


def test_the_history_offers_undo_for_what_can_still_be_undone(
    rita: Browser, flagged: Sender, session: orm.Session
) -> None:
    address, token = start_of(rita, flagged)
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct"})
    assert f'action="{address}/undo"' in rita.get("/review/history").text
    rita.post(f"{address}/undo")
    page = rita.get("/review/history").text
    assert f'action="{address}/undo"' not in page
    assert "taken back" in page


def test_the_event_page_tells_the_verdict_and_only_a_lead_who_gave_it(
    rita: Browser, person: Person, flagged: Sender, session: orm.Session
) -> None:
    item = flagged()
    event = session.get_one(models.ReviewItem, item).event_id
    assert "Review this" in rita.get(f"/events/{event}").text
    assert rita.post(f"/review/{item}/hold").status_code == 303
    assert "A reviewer is looking at it now." in rita.get(f"/events/{event}").text
    token = lease(rita.get(f"/review/{item}").text)
    rita.post(f"/review/{item}/verdict", data={"lease_token": token, "verdict": "hallucinated", "error_types": "text"})
    for role in ("viewer", "lead"):
        page = words(person(f"p-{role}", role).get(f"/events/{event}").text)
        assert "Review Chosen because: confident" in page
        assert "Hallucinated Text" in page
        assert ("rita," in page) == (role == "lead")


def test_a_reviewer_is_not_told_on_the_event_page_why_an_item_was_chosen(
    rita: Browser, person: Person, flagged: Sender, session: orm.Session
) -> None:
    item = flagged(seeded.scored(0.31, 0.6), audit_rate=1.0)
    address = f"/events/{session.get_one(models.ReviewItem, item).event_id}"
    assert "drawn at random" not in rita.get(address).text
    assert rita.get(f"{address}/json").json()["review"]["kind"] is None
    assert person("vera", "viewer").get(f"{address}/json").json()["review"]["kind"] == "audit"


def test_a_lead_sees_the_queue_in_numbers_and_nobody_else(rita: Browser, person: Person, flagged: Sender) -> None:
    flagged()
    flagged()
    address, token = start(rita)
    rita.post(f"{address}/verdict", data={"lease_token": token, "verdict": "correct"})
    assert rita.get("/review/figures").status_code == 403
    assert "/review/figures" not in rita.get("/review/history").text
    page = words(person("leo", "lead").get("/review/figures").text)
    assert "Waiting 0 With reviewers 1 Escalated 0 Verdicts today 1" in page
    assert re.search(r"\d{4}-\d\d-\d\d 2 1 0 0 0 1 \d+ s", page)


def test_the_reviewers_guide_names_every_key_of_the_page() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "reviewing.md").read_text()
    for label, meaning, key in review_form.VERDICTS.values():
        assert f"| `{key}` | {label} | {meaning} |" in guide
    for label, meaning, key in review_form.ERROR_TYPES.values():
        assert f"| `{key}` | {label.lower()}: {meaning} |" in guide
    page = (Path(pages.__file__).parent.parent / "templates" / "review_macros.html").read_text()
    for key in ("Space", "J", "K", "← →", "Del", "M", "W", "N", "Esc", "S", "E", "G", "U", "?"):
        assert f"('{key}', " in page
        assert f"`{key}`" in guide
