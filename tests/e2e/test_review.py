"""A reviewer's hour in a real browser: by keyboard alone, without a script, and when something goes wrong."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from playwright.sync_api import Locator, Page, expect

from cmerwatch import access, db, events, models
from cmerwatch.shapes import Slice
from tests.e2e.conftest import Site
from tests.web import seeded

# One group: of four workers one drives the browser, instead of four each starting a server and a Chromium.
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("browser")]

Reviewer = Callable[..., Page]
PASSWORD = "correct horse battery"
OUTPUT = "A red circle 😀. It stands on a green ground."
EVIL = (
    "</p></textarea><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<svg/onload=document.title='owned'> [x](javascript:alert(1)) {{7*7}} 'quoted' \"twice\""
    "\u202etxt.exe\u2066 a\u200bb \x07\x1b[31m"
)


def flag(site: Site, count: int = 1, **details: object) -> str:
    """Lay flagged events; returns the id of the last."""
    return site.lay(count, seeded.scored(0.12, 0.004), **({"output": OUTPUT} | details))


@pytest.fixture
def reviewer(site: Site, signed_in: Callable[..., Page]) -> Reviewer:
    """`reviewer()`: a page of the site's user, who may review."""

    def make(role: str = "reviewer", **options: object) -> Page:
        membership = sa.update(models.Membership).where(models.Membership.user_id == site.user_id)
        with db.transaction() as session:
            session.execute(membership.values(role=role))
        return signed_in(**options)

    return make


@pytest.fixture
def at_work(site: Site, reviewer: Reviewer) -> Reviewer:
    """`at_work()`: a page of somebody who has just taken the first item."""

    def make(**options: object) -> Page:
        page = reviewer(**options)
        page.goto(f"{site.url}/review")
        page.get_by_role("button", name="Start reviewing").click()
        page.wait_for_url(f"{site.url}/review/*-*")
        page.wait_for_load_state("load")  # the script listens by then
        return page

    return make


def acts(site: Site) -> list[models.Review]:
    with db.transaction() as session:
        session.expire_on_commit = False
        found = sa.select(models.Review).where(models.Review.project_id == site.project_id)
        return list(session.scalars(found.order_by(models.Review.id)))


def verdicts(site: Site) -> list[str | None]:
    return [act.verdict or act.action for act in acts(site)]


def item_of(page: Page) -> str:
    return page.url.rpartition("/")[2]


def press_to_next(page: Page, *keys: str) -> None:
    """The last key leads to another page."""
    for key in keys[:-1]:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press(keys[-1])


def told(page: Page) -> Locator:
    return page.locator(".undo")


def end_session(site: Site) -> None:
    with db.transaction() as session:
        session.execute(sa.delete(models.ConsoleSession).where(models.ConsoleSession.user_id == site.user_id))


def end_leases(site: Site) -> None:
    over = sa.update(models.ReviewItem).where(models.ReviewItem.project_id == site.project_id)
    with db.transaction() as session:
        session.execute(over.values(lease_until=sa.func.now() - sa.text("interval '1 second'")))


def taken_by_otto(site: Site, item: str) -> None:
    """Somebody else takes the item, as another browser would."""
    with db.transaction() as session:
        login = f"otto-{uuid.uuid4().hex[:8]}"
        otto = access.create_user(session, site.project_id, login, "Otto", "reviewer")
        taken = sa.update(models.ReviewItem).where(models.ReviewItem.id == uuid.UUID(item))
        until = sa.func.now() + sa.text("interval '5 minutes'")
        session.execute(taken.values(leased_by=otto.id, lease_token=uuid.uuid4(), lease_until=until))


def test_several_items_by_keyboard_alone(site: Site, reviewer: Reviewer) -> None:
    flag(site, 5)
    page = reviewer()
    page.goto(f"{site.url}/review")
    expect(page.get_by_role("button", name="Start reviewing")).to_be_focused()
    press_to_next(page, "Enter")
    picture = page.get_by_role("img", name="Picture 1 of 1")
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 0
    press_to_next(page, "1")
    expect(told(page)).to_contain_text("Marked correct.")
    press_to_next(page, "o", "c", "n", *"two dogs", "Escape", "3")
    press_to_next(page, "r", "r", "a", "2")  # a second press takes it back
    press_to_next(page, "4")
    press_to_next(page, "s", "2", "Enter")
    expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    assert verdicts(site) == ["correct", "hallucinated", "partially_correct", "cannot_tell", "skip"]
    written = acts(site)
    assert (written[1].error_types, written[1].note) == (["object", "count"], "two dogs")
    assert written[2].error_types == ["attribute"]
    assert written[4].reason == "I do not know this subject well enough"
    assert all(act.seconds is not None and act.seconds >= 0 for act in written)


def test_undo_brings_the_item_back_with_what_was_said(site: Site, at_work: Reviewer) -> None:
    flag(site, 2)
    page = at_work()
    first = item_of(page)
    press_to_next(page, "t", "n", *"misread", "Escape", "3")
    press_to_next(page, "u")
    assert item_of(page) == first
    expect(page.get_by_label("Note")).to_have_value("misread")
    expect(page.get_by_role("checkbox", name="Text")).to_be_checked()
    press_to_next(page, "t", "1")
    assert verdicts(site) == ["hallucinated", "undo", "correct"]


def test_space_shows_the_picture_in_full_and_the_arrows_its_neighbours(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    full = page.locator(".full")
    page.keyboard.press(" ")
    expect(full).to_be_visible()
    box = full.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (1280, 720)
    page.keyboard.press("ArrowRight")
    expect(full).to_be_visible()
    page.keyboard.press(" ")
    expect(full).to_be_hidden()
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    page.keyboard.press(" ")
    expect(full).to_be_visible()
    page.keyboard.press(" ")
    page.get_by_role("button", name="Show picture 1 full").click()
    page.keyboard.press("Escape")
    expect(full).to_be_hidden()
    assert page.evaluate("scrollY") == 0


def test_the_arrows_go_from_picture_to_picture_in_full(site: Site, at_work: Reviewer) -> None:
    pictures = [seeded.png(shade=shade) for shade in (10, 20, 30)]
    with db.transaction() as session:
        hashes = [events.store_image(session, site.store, site.project_id, picture) for picture in pictures]
        for sha256 in hashes:
            site.store.put_display(site.project_id, sha256, seeded.WEBP)
        new = events.NewEvent(Slice("/describe"), tuple(hashes), prompt=None, output="Three.", confidence=0.95)
        events.ingest(session, site.project_id, new, None)
    site.check(seeded.scored(0.12, 0.004))
    page = at_work()
    shown = page.locator(".full:popover-open").get_by_role("img")
    for key, number in ((" ", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowRight", 1), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        expect(shown).to_have_count(1)
        expect(shown).to_have_attribute("alt", f"Picture {number} in full")
    press_to_next(page, "4")  # a verdict needs no way back first
    assert verdicts(site) == ["cannot_tell"]


def test_the_help_sheet_names_the_keys_and_can_switch_them_off(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Partly correct")
    page.get_by_label("Single keys are on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.keyboard.press("s")
    expect(page.locator("#skip")).to_be_hidden()
    assert verdicts(site) == []
    page.reload()
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_label("Single keys are on")).not_to_be_checked()
    page.get_by_label("Single keys are on").check()
    page.keyboard.press("Escape")
    press_to_next(page, "3")
    assert verdicts(site) == ["hallucinated"]


def test_a_digit_in_a_field_or_a_sheet_is_no_verdict_and_neither_is_enter(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    page.keyboard.press("n")
    page.keyboard.type("3 dogs, 1 cat")
    page.keyboard.press("Escape")
    page.get_by_role("checkbox", name="Object").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("s")
    page.keyboard.press("3")
    page.get_by_label("In your words").fill("4")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#skip")).to_be_hidden()
    page.keyboard.press("?")
    page.keyboard.press("2")
    expect(page.locator("#keys")).to_be_visible()
    assert verdicts(site) == []
    expect(page.get_by_label("Note")).to_have_value("3 dogs, 1 cat")


def test_enter_in_a_field_is_no_verdict_without_a_script_either(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work(java_script_enabled=False)
    page.get_by_text("Note N").click()
    page.get_by_label("Note").fill("kept")
    page.get_by_role("checkbox", name="Object").check()
    page.keyboard.press("Enter")
    page.wait_for_url("**/resume")
    expect(page.get_by_label("Note")).to_have_value("kept")
    expect(page.get_by_role("checkbox", name="Object")).to_be_checked()
    assert verdicts(site) == []


def test_selected_words_become_a_mark_in_the_servers_characters(site: Site, at_work: Reviewer) -> None:
    """Behind an emoji, which is two units to the browser and one character to the server, and a hidden character."""
    output = "A 😀 red\u200b\u200b circle."
    flag(site, output=output)
    page = at_work()
    page.evaluate(
        """() => {
          const leaf = [...document.querySelectorAll("[data-at]")].find((one) => one.textContent.includes("circle"));
          const range = new Range();
          range.setStart(leaf.firstChild, 1);
          range.setEnd(leaf.firstChild, 7);
          getSelection().addRange(range);
        }"""
    )
    page.keyboard.press("m")
    expect(page.get_by_role("list", name="Marked as wrong")).to_contain_text("circle")
    page.evaluate(
        """() => {
          const leaves = document.querySelectorAll("[data-at]");
          const range = new Range();
          range.setStart(leaves[0].firstChild, 5);
          range.setEnd(leaves[1].firstChild, 3);
          getSelection().addRange(range);
        }"""
    )
    page.keyboard.press("m")
    page.reload()  # what is marked is kept with what is typed
    expect(page.get_by_role("list", name="Marked as wrong").get_by_role("listitem")).to_have_count(2)
    press_to_next(page, "3")
    spans = [(span["start"], span["end"]) for span in acts(site)[0].spans]
    assert [output[start:end] for start, end in spans] == ["red\u200b\u200b", "circle"]


HARD = "A cafe\u0301 \U0001f600 \u05e9\u05dc\u05d5\u05dd red\u202e circle. It stands on a green ground."
SENTENCES = [(0, HARD.index(" It")), (HARD.index("It"), len(HARD))]


def marked(site: Site) -> list[tuple[str, str | None]]:
    return [(HARD[one["start"] : one["end"]], one.get("error_type")) for one in acts(site)[-1].spans]


def test_sentences_and_words_are_marked_by_keyboard_alone(site: Site, at_work: Reviewer) -> None:
    """Through letters of two units, with an accent of their own, from right to left, and beside one that is hidden."""
    site.lay(1, seeded.scored(0.12, 0.004, SENTENCES), output=HARD)
    page = at_work()
    toolbar = page.get_by_role("toolbar", name="Mark the selected words as wrong")
    expect(toolbar).to_be_hidden()
    page.keyboard.press("j")
    expect(toolbar).to_be_visible()
    for key in ("ArrowRight", "ArrowRight", "a"):  # its first word, the second
        page.keyboard.press(key)
    expect(toolbar).to_be_hidden()
    expect(page.get_by_role("checkbox", name="Attribute")).to_be_checked()
    expect(page.get_by_role("list", name="Marked as wrong")).to_contain_text("cafe\u0301 attribute")
    assert page.locator(".marked").evaluate("one => getComputedStyle(one, '::after').content") == '" attribute"'
    for key in ("j", "ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "t"):
        page.keyboard.press(key)
    for key in ("j", "j", "r", "o"):  # the second sentence; then a letter with nothing selected
        page.keyboard.press(key)
    page.reload()
    expect(page.locator(".marked")).to_have_text(["cafe\u0301", "red", "U+202E", " circle", HARD[slice(*SENTENCES[1])]])
    press_to_next(page, "3")
    assert marked(site) == [
        ("cafe\u0301", "attribute"),
        ("red\u202e circle", "text"),
        (HARD[slice(*SENTENCES[1])], "relation"),
    ]
    assert acts(site)[0].error_types == ["object", "attribute", "relation", "text"]


def test_a_click_takes_a_sentence_a_button_marks_it_and_a_second_kind_replaces_the_first(
    site: Site, at_work: Reviewer
) -> None:
    site.lay(1, seeded.scored(0.12, 0.004, SENTENCES), output=HARD)
    page = at_work()
    page.locator("mark").nth(1).click()
    page.get_by_role("button", name="Relation R").click()
    chips = page.get_by_role("list", name="Marked as wrong")
    expect(chips).to_contain_text("relation")
    chips.get_by_role("button", name="It stands").first.click()  # the words are selected again
    page.get_by_role("button", name="Attribute A").click()
    expect(chips.get_by_role("listitem")).to_have_count(1)
    page.locator("mark").nth(0).click()
    page.keyboard.press("m")
    page.locator(".marked").nth(0).click()
    page.keyboard.press("Delete")
    expect(chips.get_by_role("listitem")).to_have_count(1)
    press_to_next(page, "2")
    assert marked(site) == [(HARD[slice(*SENTENCES[1])], "attribute")]
    press_to_next(page, "u")  # an undo brings the marks back
    expect(page.locator(".marked")).to_have_text([HARD[slice(*SENTENCES[1])]])


def test_sentences_are_marked_without_a_script(site: Site, at_work: Reviewer) -> None:
    site.lay(1, seeded.scored(0.12, 0.004, SENTENCES), output=HARD)
    page = at_work(java_script_enabled=False)
    page.get_by_text("Which sentences are wrong").click()
    page.get_by_role("checkbox", name="It stands").check()
    page.get_by_label("What is wrong in sentence 2").select_option("Relation")
    page.get_by_role("button", name="Hallucinated").click()
    expect(told(page)).to_contain_text("Marked hallucinated.")
    assert marked(site) == [(HARD[slice(*SENTENCES[1])], "relation")]


def test_a_mark_can_be_taken_away_again(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    page.locator("[data-output]").select_text()
    page.keyboard.press("m")
    page.get_by_role("button", name="Unmark").click()
    expect(page.get_by_role("list", name="Marked as wrong")).to_be_hidden()
    press_to_next(page, "1")
    assert acts(site)[0].spans == []


def test_delete_with_nothing_selected_takes_the_last_mark_away(site: Site, at_work: Reviewer) -> None:
    site.lay(1, seeded.scored(0.12, 0.004, SENTENCES), output=HARD)
    page = at_work()
    chips = page.get_by_role("list", name="Marked as wrong").get_by_role("listitem")
    for at in (1, 0):  # the second sentence, then the first: the last mark is not the last in the text
        page.locator("mark").nth(at).click()
        page.keyboard.press("m")
    expect(chips).to_have_count(2)
    page.keyboard.press("Delete")
    expect(chips).to_have_count(1)
    expect(page.locator(".marked")).to_have_text([HARD[slice(*SENTENCES[1])]])
    expect(page.locator("[data-marked]")).to_contain_text("Unmarked")
    page.reload()
    page.keyboard.press("Delete")
    expect(chips).to_have_count(0)
    page.keyboard.press("Delete")
    press_to_next(page, "1")
    assert acts(site)[0].spans == []


def test_the_caret_stands_behind_the_output_that_is_to_be_corrected(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    page.keyboard.press("w")
    page.keyboard.type(" So it is.")
    expect(page.get_by_label("Corrected output")).to_have_value(f"{OUTPUT} So it is.")


def test_words_typed_under_skip_are_a_reason(site: Site, at_work: Reviewer) -> None:
    flag(site, 2)
    page = at_work()
    page.keyboard.press("s")
    page.keyboard.press("Enter")  # neither ticked nor typed: nothing is sent
    page.get_by_label("In your words").press_sequentially("an X-ray")
    expect(page.get_by_label("Another reason")).to_be_checked()
    press_to_next(page, "Enter")
    assert [act.reason for act in acts(site)] == ["an X-ray"]


def test_words_typed_under_skip_are_a_reason_without_a_script(site: Site, at_work: Reviewer) -> None:
    flag(site, 2)
    page = at_work(java_script_enabled=False)
    page.get_by_role("button", name="Skip S").click()
    page.get_by_label("In your words").fill("an X-ray")
    page.get_by_role("button", name="Skip Enter").click()
    expect(told(page)).to_contain_text("Skipped.")
    assert [act.reason for act in acts(site)] == ["an X-ray"]


def test_escalating_takes_a_reason_and_reaches_the_lead(site: Site, at_work: Reviewer, reviewer: Reviewer) -> None:
    flag(site)
    page = at_work()
    page.keyboard.press("e")
    page.keyboard.press("Enter")  # nothing is sent without a reason
    press_to_next(page, *"is a sign text", "Enter")
    assert [act.reason for act in acts(site)] == ["is a sign text"]
    lead = reviewer("lead")
    lead.goto(f"{site.url}/review/escalated")
    expect(lead.locator(".event-row")).to_contain_text("is a sign text")
    lead.get_by_role("button", name="Take").click()
    expect(lead.get_by_text("Before you")).to_be_visible()
    press_to_next(lead, "2")
    assert verdicts(site) == ["escalate", "partially_correct"]


def test_an_item_is_answered_without_a_script(site: Site, reviewer: Reviewer) -> None:
    event = flag(site, 2)
    page = reviewer(java_script_enabled=False)
    page.goto(f"{site.url}/events/{event}")
    page.get_by_role("button", name="Review this").click()
    expect(page.get_by_role("img", name="Picture 1 of 1")).to_be_visible()
    page.get_by_role("button", name="Show picture 1 full").click()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("checkbox", name="Object").check()
    page.get_by_text("Note N").click()
    page.get_by_label("Note").fill("no circle\nat all")
    page.get_by_text("Corrected output W").click()
    expect(page.get_by_label("Corrected output")).to_have_value(OUTPUT)
    page.get_by_label("Corrected output").fill("A blue square.")
    page.get_by_role("button", name="Hallucinated").click()
    expect(told(page)).to_contain_text("Marked hallucinated.")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Note")).to_have_value("no circle\nat all")
    page.get_by_role("button", name="Partly correct").click()
    page.get_by_role("button", name="Skip S").click()
    page.get_by_label("Not in a language I read").check()
    page.get_by_role("button", name="Skip Enter").click()
    expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    page.get_by_role("link", name="History").click()
    expect(page.locator(".event-row")).to_have_count(3)
    last = acts(site)[2]
    assert (last.verdict, last.error_types, last.correction) == ("partially_correct", ["object"], "A blue square.")
    assert last.note == "no circle\nat all"


@pytest.mark.parametrize("java_script_enabled", [True, False])
def test_a_session_that_ends_mid_verdict_costs_no_words(
    site: Site, at_work: Reviewer, complaints: list[str], java_script_enabled: bool
) -> None:
    flag(site)
    page = at_work(java_script_enabled=java_script_enabled)
    page.get_by_role("checkbox", name="Count").check()
    page.get_by_text("Note N").click()
    page.get_by_label("Note").fill(f"three, not two\n{EVIL}")
    end_session(site)
    page.get_by_role("button", name="Hallucinated").click()
    expect(page.get_by_role("status")).to_contain_text("Nothing you typed is lost")
    page.get_by_label("Login").fill(site.login)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Go on with your review").click()
    expect(page.get_by_role("status").first).to_contain_text("You had said hallucinated.")
    expect(page.get_by_role("checkbox", name="Count")).to_be_checked()
    assert page.get_by_label("Note").input_value().startswith("three, not two\n</p></textarea><script>")
    page.get_by_role("button", name="Hallucinated").click()
    expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    [act] = acts(site)
    assert (act.verdict, act.error_types) == ("hallucinated", ["count"])
    assert (act.note or "").startswith("three, not two\n")
    assert all("401" in one for one in complaints)  # Chromium logs every refused page as an error
    complaints.clear()


def test_who_signs_in_by_a_link_in_another_tab_goes_on_where_they_were(
    site: Site, at_work: Reviewer, complaints: list[str]
) -> None:
    flag(site)
    page = at_work(java_script_enabled=False)
    page.get_by_text("Note N").click()
    page.get_by_label("Note").fill("kept")
    end_session(site)
    page.get_by_role("button", name="Hallucinated").click()
    other = page.context.new_page()
    other.goto(site.link())
    other.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="I signed in by a link in another tab: go on").click()
    expect(page.get_by_label("Note")).to_have_value("kept")
    page.get_by_role("button", name="Hallucinated").click()
    expect(told(page)).to_contain_text("Marked hallucinated.")
    complaints.clear()


def test_what_is_typed_survives_a_reload_and_a_sign_in_in_this_tab(site: Site, at_work: Reviewer) -> None:
    flag(site, 2)
    page = at_work()
    address = page.url
    for key in ("o", "n", *"kept", "Escape", "w", *"Blue. ", "Escape"):
        page.keyboard.press(key)
    page.reload()
    expect(page.get_by_label("Note")).to_have_value("kept")
    expect(page.get_by_role("checkbox", name="Object")).to_be_checked()
    end_session(site)
    page.goto(site.link())
    page.get_by_role("button", name="Sign in").click()
    page.goto(address)
    expect(page.get_by_label("Note")).to_have_value("kept")
    assert "Blue. " in page.get_by_label("Corrected output").input_value()
    press_to_next(page, "3")
    expect(page.get_by_role("checkbox", name="Object")).not_to_be_checked()
    assert page.evaluate("Object.keys(sessionStorage).length") == 0


def test_a_lost_lease_keeps_the_words_and_names_who_has_the_item(
    site: Site, at_work: Reviewer, complaints: list[str]
) -> None:
    flag(site)
    page = at_work()
    page.keyboard.press("n")
    page.keyboard.type("typed for nothing?")
    page.keyboard.press("Escape")
    end_leases(site)
    press_to_next(page, "3")
    expect(page.get_by_role("alert").first).to_contain_text("Nothing was stored; what you typed is still here.")
    page.get_by_role("button", name="Take it again and go on").click()
    expect(page.get_by_label("Note")).to_have_value("typed for nothing?")
    taken_by_otto(site, page.url.split("/")[4])
    page.get_by_role("button", name="Hallucinated").click()
    expect(page.get_by_role("alert").first).to_contain_text("holds this item, until")
    expect(page.get_by_label("Note")).to_have_value("typed for nothing?")
    end_leases(site)
    page.get_by_role("button", name="Look again, with what you typed").click()
    page.get_by_role("button", name="Hallucinated").click()
    expect(told(page)).to_contain_text("Marked hallucinated.")
    assert [act.note for act in acts(site)] == ["typed for nothing?"]
    assert all("409" in one for one in complaints)
    complaints.clear()


def test_the_page_notices_a_lost_lease_by_its_heartbeat(site: Site, at_work: Reviewer, complaints: list[str]) -> None:
    flag(site)
    page = at_work()
    expect(page.locator("[data-lease]")).to_have_text("yours for 5 min")
    taken_by_otto(site, item_of(page))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as when the tab is looked at again
    expect(page.locator("[data-lost]")).to_contain_text("holds this item, until")
    complaints.clear()  # of the 409


def test_the_lease_is_renewed_while_somebody_is_there_and_not_for_an_empty_chair(
    site: Site, reviewer: Reviewer
) -> None:
    flag(site)
    page = reviewer()
    page.clock.install()
    page.goto(f"{site.url}/review")
    page.get_by_role("button", name="Start reviewing").click()
    expect(page.locator("[data-lease]")).to_have_text("yours for 5 min")
    page.clock.fast_forward("00:40")
    with page.expect_response("**/heartbeat") as renewed:
        page.clock.fast_forward("00:25")
    assert renewed.value.status == 200
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.fast_forward("12:00")
    expect(page.locator("[data-lease]")).to_have_text("your time is over")
    assert asked == []
    page.mouse.move(300, 300)
    with page.expect_response("**/heartbeat"):
        page.clock.run_for("01:01")


def test_the_page_says_so_when_the_session_has_ended(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    end_session(site)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("[data-lost]")).to_contain_text("Your session has ended.")


def test_the_next_picture_is_there_before_its_item(site: Site, at_work: Reviewer) -> None:
    flag(site, 2)
    page = at_work()
    [ahead] = page.locator("[data-ahead]").get_attribute("data-ahead").split()  # type: ignore[union-attr]
    page.wait_for_function("address => performance.getEntriesByName(location.origin + address).length", arg=ahead)
    asked: list[str] = []
    page.on("response", lambda answer: asked.append(answer.url) if not answer.from_service_worker else None)
    press_to_next(page, "1")
    picture = page.get_by_role("img", name="Picture 1 of 1")
    assert picture.evaluate("image => image.src").endswith(ahead)
    from_cache = "address => performance.getEntriesByName(location.origin + address)[0].transferSize"
    assert page.evaluate(from_cache, ahead) == 0


def test_a_double_press_is_one_verdict(site: Site, at_work: Reviewer) -> None:
    flag(site)
    page = at_work()
    leaving = """() => {
      let count = 0;
      addEventListener("submit", (event) => { count += !event.defaultPrevented; event.preventDefault(); });
      for (let i = 0; i < 2; i++) document.querySelector("[value=hallucinated]").click();
      return count;
    }"""
    assert page.evaluate(leaving) == 1


def test_hostile_text_in_output_prompt_and_note_breaks_no_rule_and_runs_nothing(
    site: Site, at_work: Reviewer, reviewer: Reviewer
) -> None:
    tokens = [EVIL[:40], EVIL[40:]]
    event = flag(site, output=EVIL, prompt=EVIL, tokens=tokens, logprobs=[-0.0, -0.0], metadata={EVIL: EVIL})
    page = at_work()
    expect(page.locator("[data-output]")).to_contain_text("<script>document.title='owned'</script>")
    page.keyboard.press("n")
    page.get_by_label("Note").fill(EVIL)
    page.keyboard.press("Escape")
    page.locator("[data-output]").select_text()
    page.keyboard.press("m")
    press_to_next(page, "3")
    lead = reviewer("lead")
    for path in ("/review/history", f"/events/{event}"):
        lead.goto(site.url + path)
        expect(lead).not_to_have_title("owned")
        expect(lead.locator("main")).to_contain_text("Hallucinated")
        assert lead.locator("main script, main svg[onload], main img[src='x']").count() == 0
    press_to_undo = lead.goto(f"{site.url}/review/history")
    assert press_to_undo is not None
    lead.get_by_role("button", name="Undo").click()
    expect(lead.get_by_label("Note")).to_be_visible()
    expect(lead).not_to_have_title("owned")
    # The fixture `complaints` fails this test on any refusal by the content policy, in any of these pages.


def test_on_a_phone_the_output_stands_above_the_verdicts_without_scrolling(site: Site, at_work: Reviewer) -> None:
    flag(site, 2, output="A yellow square.", prompt="What is this?")
    page = at_work(viewport={"width": 375, "height": 740})
    output, deck = page.locator("[data-output]").bounding_box(), page.locator(".deck").bounding_box()
    assert output is not None
    assert deck is not None
    assert output["y"] + output["height"] <= deck["y"]
    page.locator("mark").first.click()
    marker, deck = page.locator("[data-marker]").bounding_box(), page.locator(".deck").bounding_box()
    assert marker is not None
    assert deck is not None
    assert marker["y"] + marker["height"] <= deck["y"]


@pytest.mark.parametrize("width", [1440, 390])
def test_a_hundred_thousand_characters_without_a_space_stay_within_the_page(
    site: Site, at_work: Reviewer, width: int
) -> None:
    wide = "W" * 100_000
    flag(site, 2, output=wide, prompt=wide)
    page = at_work(viewport={"width": width, "height": 900})
    page.keyboard.press("n")
    page.get_by_label("Note").fill("N" * 9_000)
    page.keyboard.press("Escape")
    page.locator("[data-output]").select_text()
    page.keyboard.press("m")
    expect(page.get_by_role("list", name="Marked as wrong")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    press_to_next(page, "3")
    for path in ("/review", "/review/history"):
        page.goto(site.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_a_viewer_finds_no_way_in(site: Site, reviewer: Reviewer, complaints: list[str]) -> None:
    flag(site)
    page = reviewer("viewer")
    assert page.get_by_role("link", name="Review").count() == 0
    page.goto(f"{site.url}/review")
    expect(page.get_by_text("Reviewing needs the role reviewer")).to_be_visible()
    complaints.clear()  # of the 403


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_review_page_breaks_a_rule_of_accessibility(
    site: Site, reviewer: Reviewer, complaints: list[str], scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    flag(site, 3, tokens=["A red circle 😀. It stands", " on a green ground."], logprobs=[-0.0, -0.0])
    page = reviewer("lead", color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    found: list[str] = []

    def check(name: str) -> None:
        broken = axe.run(page).response["violations"]
        found.extend(f"{name}: {one['id']} {one['nodes'][0]['html'][:200]}" for one in broken)

    page.goto(f"{site.url}/review")
    check("queue")
    page.get_by_role("button", name="Start reviewing").click()
    page.wait_for_url(f"{site.url}/review/*-*")
    page.wait_for_load_state("load")
    for key in ("o", "n", *"a note", "Escape", "w", "Escape"):
        page.keyboard.press(key)
    page.locator("[data-output]").select_text()
    check("words selected")
    page.keyboard.press("a")
    check("item")
    for key, name in (("s", "skip"), ("e", "escalate"), ("?", "keys"), (" ", "full")):
        page.keyboard.press(key)
        check(name)
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
    end_leases(site)
    press_to_next(page, "3")
    check("lost")
    page.get_by_role("button", name="Take it again and go on").click()
    page.wait_for_load_state("load")
    press_to_next(page, "3")
    page.get_by_role("button", name="Escalate E").click()
    page.get_by_label("What should they decide?").fill("this")
    press_to_next(page, "Enter")
    with db.transaction() as session:
        blind = sa.update(models.Project).where(models.Project.id == site.project_id)
        session.execute(blind.values(blind_since=sa.func.now()))
    page.goto(f"{site.url}/review")
    expect(page.get_by_text("Reviews are blind in this project")).to_be_visible()
    check("blind")
    for path in ("/review/history", "/review/escalated", "/review/figures"):
        page.goto(site.url + path)
        check(path)
    complaints.clear()  # of the 409
    assert found == []
