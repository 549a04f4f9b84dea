"""What admins and engineers do in a real browser: keys, people, policies, the quarantine; without a script too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect

from cmerwatch import access, audits, checks, db, models, people
from tests.e2e.conftest import Opener, Site
from tests.web import seeded

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("browser")]

SignedIn = Callable[..., Page]
EVIL = "</p><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> {{7*7}}"
PATHS = (
    "/settings/policies",
    "/settings/policies/edit",
    "/settings/reviews",
    "/settings/keys",
    "/settings/people",
    "/settings/audit",
    "/settings/account",
    "/quarantine",
    "/nothing-is-here",
)


TOO_WIDE = """() => document.documentElement.scrollWidth <= document.documentElement.clientWidth ? [] :
    [...document.querySelectorAll("main *")].filter((one) => !one.closest(".scroll") || one.matches(".scroll"))
    .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map((one) => one.outerHTML.slice(0, 120))"""


@pytest.fixture
def site(site: Site) -> Site:
    """The site's user is the admin here."""
    with db.transaction() as session:
        people.change_role(session, site.project_id, site.user_id, "admin")
    return site


@pytest.fixture
def lived_in(site: Site) -> Site:
    """People, keys, versions and quarantined events, with hostile text wherever somebody can type."""
    site.lay(60, seeded.scored(0.31, 0.6), endpoint="/good")
    site.lay(12, seeded.scored(0.12, 0.03), endpoint="/scan")
    broken = site.lay(2, display=None, output=EVIL, endpoint="/scan")
    with db.transaction() as session:
        grace = access.create_user(session, site.project_id, f"grace-{site.login}", f"Grace {EVIL}"[:200], "reviewer")
        access.create_user(session, site.project_id, f"<b>{site.login}</b>", "Linus", "engineer")
        access.create_key(session, site.project_id, EVIL[:100], ["ingest"])
        access.create_key(session, site.project_id, "reviews", ["review"], grace.id)
        access.audit(session, "user:" + EVIL, "key.create", EVIL, site.project_id, name=EVIL)
        audits.refused_sign_in(session, site.login, EVIL)
        rules = [{"match": {"endpoint": "/scan", "customer": EVIL}, "sim_threshold": 0.1}, {"sim_threshold": "auto"}]
        row = {"project_id": site.project_id, "version": 2, "rules": rules, "created_by": "user:" + EVIL}
        session.execute(sa.insert(models.PolicyVersion).values(row))
        state = {"state": models.QUARANTINED, "attempts": checks.MAX_ATTEMPTS, "last_error": f"OSError: {EVIL}"}
        waiting = models.Work.project_id == site.project_id
        session.execute(sa.update(models.Work).where(waiting).values(**state))
    assert broken
    return site


def shot(page: Page, name: str) -> None:
    """Kept where SHOTS says, for eyes; no test reads them."""
    if folder := os.environ.get("SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_every_page_passes_axe(lived_in: Site, signed_in: SignedIn, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = signed_in(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    page.on("response", lambda answer: None)
    found = []
    for path in PATHS[:-1]:
        page.goto(lived_in.url + path)
        for closed in page.locator("details.confirm > summary, main > * details.card > summary").all()[:2]:
            closed.click()
        found += _violations(axe, page, path)
        assert page.evaluate(TOO_WIDE) == [], f"{path} scrolls sideways at {width} px"
        shot(page, f"{path.strip('/').replace('/', '-')}-{scheme}-{width}")
        assert page.title() != "owned"
    page.goto(f"{lived_in.url}/settings/policies/edit")
    page.get_by_label("below").last.fill("0.1")
    page.get_by_role("button", name="Preview").last.click()
    expect(page.get_by_role("status")).to_contain_text("would have flagged")
    found += _violations(axe, page, "preview")
    shot(page, f"preview-{scheme}-{width}")
    page.goto(f"{lived_in.url}/settings/keys")
    page.get_by_label("What it is for").fill("captions")
    page.locator("[name=scope][value=read]").check()
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("region", name="The new key")).to_be_visible()
    found += _violations(axe, page, "new key")
    shot(page, f"key-{scheme}-{width}")
    page.goto(f"{lived_in.url}/settings/people")
    page.get_by_label("Login", exact=True).fill("<b>eve</b>")
    page.get_by_label("Name", exact=True).fill(EVIL[:150])
    page.get_by_role("button", name="Make an invitation").click()
    found += _violations(axe, page, "invited")
    assert page.evaluate(TOO_WIDE) == []
    shot(page, f"invited-{scheme}-{width}")
    page.goto(page.locator("#link").inner_text())
    found += _violations(axe, page, "invitation")
    shot(page, f"invitation-{scheme}-{width}")
    assert found == []


def _violations(axe: object, page: Page, path: str) -> list[str]:
    found = axe.run(page).response["violations"]  # type: ignore[attr-defined]
    return [f"{path}: {one['id']} {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_key_is_made_used_and_revoked(site: Site, signed_in: SignedIn, scripts: bool) -> None:
    page = signed_in(java_script_enabled=scripts)
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("navigation", name="Settings").get_by_role("link", name="Keys").click()
    page.get_by_label("What it is for").fill("captions")
    page.locator("[name=scope][value=read]").check()
    page.get_by_role("button", name="Make the key").click()
    key = page.locator("#key").inner_text()
    answer = page.request.get(f"{site.url}/v1/cmer", headers={"Authorization": f"Bearer {key}"})
    assert answer.status == 200
    page.get_by_role("link", name="Keys").click()
    expect(page.locator("body")).not_to_contain_text(key)
    page.locator("summary", has_text="Revoke").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(page.get_by_role("status")).to_contain_text("revoked")
    expect(page.locator("tr.over")).to_contain_text("captions")


def test_an_invited_person_chooses_a_password_on_the_way_in_and_uses_it(
    site: Site, signed_in: SignedIn, open_page: Opener
) -> None:
    page = signed_in()
    page.goto(f"{site.url}/settings/people")
    login = f"grace-{site.login}"
    page.get_by_label("Login", exact=True).fill(login)
    page.get_by_label("Name", exact=True).fill("Grace")
    page.get_by_role("button", name="Make an invitation").click()
    link = page.locator("#link").inner_text()
    other = open_page()
    other.goto(link)
    shot(other, "link")
    other.get_by_label("Password").fill("a much better battery")
    other.get_by_role("button", name="Join").click()
    other.wait_for_url(f"{site.url}/")
    other.get_by_role("button", name="Sign out").click()
    other.get_by_label("Login").fill(login)
    other.get_by_label("Password").fill("a much better battery")
    other.get_by_role("button", name="Sign in").click()
    other.wait_for_url(f"{site.url}/")
    page.goto(f"{site.url}/settings/people")
    row = page.get_by_role("row", name=login)
    row.get_by_role("combobox").select_option("engineer")
    row.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("The role is changed")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_policy_is_tried_saved_and_seen_on_the_chart(site: Site, signed_in: SignedIn, scripts: bool) -> None:
    site.lay(40, seeded.scored(0.31, 0.6))
    site.lay(10, seeded.scored(0.2, 0.08))
    page = signed_in(java_script_enabled=scripts)
    page.goto(f"{site.url}/settings/policies")
    page.get_by_role("link", name="Change the rules").click()
    page.get_by_label("Score below").fill("0.1")
    page.get_by_role("button", name="Preview").last.click()
    expect(page.get_by_role("status")).to_contain_text("would have flagged 10 (20.0%)")
    page.get_by_role("button", name="Save as version 2").click()
    expect(page.locator("#v2")).to_contain_text("score below auto → confidence over 0.8 and score below 0.1")
    site.lay(50, seeded.scored(0.2, 0.08))
    page.goto(site.url)
    expect(page.locator(".big")).to_have_text("50.0%")
    expect(page.locator(".policy-changed")).to_contain_text("version 2")
    page.locator(".policy-changed").get_by_role("link").click()
    expect(page.get_by_role("heading", name="Policies")).to_be_visible()


def test_history_is_decided_again_from_the_page(site: Site, signed_in: SignedIn) -> None:
    site.lay(10, seeded.scored(0.2, 0.08))
    page = signed_in()
    page.goto(f"{site.url}/settings/policies/edit")
    page.get_by_label("Score below").fill("0.1")
    page.get_by_label("also for history").check()
    page.get_by_role("button", name="Save as version 2").click()
    expect(page.get_by_role("status")).to_contain_text("history is decided again")
    expect(page.locator("#v2 progress")).to_have_attribute("value", "0")
    shot(page, "redecide")


def test_a_quarantined_event_is_replayed(lived_in: Site, signed_in: SignedIn) -> None:
    page = signed_in()
    page.goto(f"{lived_in.url}/quarantine")
    expect(page.locator(".event-row")).to_have_count(2)
    page.get_by_role("button", name="Replay the event").first.click()
    expect(page.get_by_role("status")).to_contain_text("1 event got a fresh start. 1 waits for a worker now")
    page.locator("summary", has_text="Replay all").click()
    page.get_by_role("button", name="Replay all 1").click()
    lived_in.check(seeded.scored(0.31, 0.6))
    page.reload()
    expect(page.get_by_role("heading", name="Nothing is quarantined")).to_be_visible()


def test_the_project_is_switched_and_stays(site: Site, signed_in: SignedIn) -> None:
    with db.transaction() as session:
        other = access.create_project(session, f"other-{site.login}")
        session.add(models.Membership(project_id=other.id, user_id=site.user_id, role="viewer"))
    page = signed_in()
    page.locator(".switch summary").click()
    shot(page, "switch")
    page.get_by_role("button", name=other.slug).click()
    expect(page.locator(".switch summary")).to_contain_text(other.slug)
    page.get_by_role("link", name="Events").click()
    expect(page.locator(".switch summary")).to_contain_text(other.slug)
