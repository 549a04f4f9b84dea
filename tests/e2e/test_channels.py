"""Channels in a real browser: made, tried, disabled and switched on again; the sender is the worker's own."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from cmerwatch import db, models, settings
from cmerwatch import sink as sink_module
from cmerwatch_worker import dispatch
from tests import alerting, receiver
from tests.e2e.conftest import Site
from tests.receiver import Receiver, answering

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("browser")]

SignedIn = Callable[..., Page]
EVIL = "</h2><script>document.title='owned'</script><!channel>\u202etxt.exe"
NETWORK = "127.0.0.0/8"


@pytest.fixture
def engineer(site: Site) -> None:
    """The site's user may change channels."""
    with db.transaction() as session:
        membership = session.get_one(models.Membership, (site.project_id, site.user_id))
        membership.role = "engineer"


@pytest.fixture
def sink(configured: Callable[..., settings.Settings]) -> Iterator[Receiver]:
    configured(allow_private_targets=NETWORK)
    with receiver.receiver() as made:
        yield made


@contextlib.contextmanager
def sending() -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=dispatch.Dispatcher(settings.current()).run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def add_webhook(page: Page, site: Site, url: str, name: str = "on-call") -> None:
    page.goto(f"{site.url}/settings/channels")
    page.get_by_text("Posts signed JSON").click()
    form = page.locator("form:has(input[value=webhook])")
    form.get_by_label("Name").fill(name)
    form.get_by_label("URL").fill(url)
    form.get_by_role("button", name="Add Webhook").click()


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found]


@pytest.mark.usefixtures("engineer")
@pytest.mark.parametrize("java_script_enabled", [True, False])
def test_a_webhook_is_made_tried_and_seen_to_work(
    site: Site, signed_in: SignedIn, sink: Receiver, java_script_enabled: bool
) -> None:
    page = signed_in(java_script_enabled=java_script_enabled)
    add_webhook(page, site, sink.url)
    expect(page.get_by_label("signing secret", exact=True)).to_contain_text("whsec_")
    with sending():
        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_text("The test arrived.")).to_be_visible()
    expect(page.get_by_role("region", name="on-call").get_by_text("works")).to_be_visible()
    assert json.loads(sink.got[0].body)["type"] == "alert.test"
    expect(page.locator("body")).not_to_contain_text("whsec_")


@pytest.mark.usefixtures("engineer")
def test_a_receiver_that_is_gone_switches_its_channel_off_until_a_person_switches_it_on(
    site: Site, signed_in: SignedIn, sink: Receiver
) -> None:
    page = signed_in()
    add_webhook(page, site, sink.url)
    sink.answer = answering(410)
    with sending():
        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_text("The test did not arrive.")).to_be_visible()
        expect(page.get_by_text("nothing is sent here")).to_be_visible()
        page.get_by_role("button", name="Switch on again").click()
        expect(page.get_by_text("The channel is on again.")).to_be_visible()
        sink.answer = answering(204)
        page.get_by_role("button", name="Send a test").click()
        expect(page.get_by_text("The test arrived.")).to_be_visible()


@pytest.mark.usefixtures("engineer")
def test_a_private_address_is_refused_beside_its_form(site: Site, signed_in: SignedIn, complaints: list[str]) -> None:
    page = signed_in()
    add_webhook(page, site, "https://10.0.0.1/hook")
    expect(page.get_by_role("alert")).to_contain_text("private or reserved network address")
    expect(page.locator("form:has(input[value=webhook])").get_by_label("URL")).to_have_value("https://10.0.0.1/hook")
    complaints.clear()  # Chromium logs every 422 as an error


@pytest.mark.usefixtures("engineer", "sink")
def test_hostile_names_run_nothing_and_every_state_is_accessible(site: Site, signed_in: SignedIn) -> None:
    with db.transaction() as session:
        for kind in ("slack", "pagerduty", "webhook"):
            channel = alerting.channel(session, site.project_id, kind, "http://127.0.0.1:9/hook")
            channel.last_error, channel.last_error_at = EVIL, sa.func.now()
            alerting.message(session, channel, alerting.alert(session, site.project_id), rule=EVIL)
            if kind == "slack":
                channel.disabled_at, channel.disabled_reason = sa.func.now(), EVIL
    for scheme in ("light", "dark"):
        page = signed_in(color_scheme=scheme)
        page.goto(f"{site.url}/settings/channels")
        for summary in page.locator(".channel details > summary, .kinds summary").all():
            if not summary.evaluate("node => node.parentElement.open"):
                summary.click()
        expect(page).not_to_have_title("owned")
        assert violations(page) == []


@pytest.mark.usefixtures("engineer", "sink")
def test_the_page_stays_within_a_phone(site: Site, signed_in: SignedIn) -> None:
    with db.transaction() as session:
        channel = alerting.channel(session, site.project_id, "webhook", "http://127.0.0.1:9/" + "x" * 1500)
        channel.name, channel.last_error, channel.last_error_at = "W" * 100, "E" * 300, sa.func.now()
    page = signed_in(viewport={"width": 390, "height": 900})
    page.goto(f"{site.url}/settings/channels")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.usefixtures("engineer")
def test_the_sink_shows_exact_bodies_as_text_and_is_accessible(site: Site, signed_in: SignedIn) -> None:
    with db.transaction() as session:
        slug = session.get_one(models.Project, site.project_id).slug
        bodies = {kind: json.dumps({"text": EVIL, "kind": kind}, ensure_ascii=False) for kind in sink_module.KINDS}
        for kind, body in bodies.items():
            sink_module.store(session, slug, kind, {"webhook-id": EVIL}, body.encode())
    page = signed_in()
    page.goto(f"{site.url}/sink")
    expect(page.get_by_role("region", name="Slack")).to_contain_text("<script>document.title='owned'</script>")
    expect(page).not_to_have_title("owned")
    assert violations(page) == []
