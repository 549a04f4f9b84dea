"""Settings, channels: what the page shows, what its forms do, and who may see it."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from typing import Any

import fastapi
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, channels, models
from tests import alerting

PATH = "/settings/channels"
URL = "https://192.0.2.1/hooks/very-secret-path-token"
EVIL = "<script>alert(1)</script>\u202e"


@pytest.fixture(autouse=True)
def allowed(configured: Any) -> None:
    configured(allow_private_targets="192.0.2.0/24")


@pytest.fixture
def browser(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> TestClient:
    """An engineer is signed in."""
    user = access.create_user(session, project.id, "grace", "Grace", "engineer")
    cookie = access.open_console_session(session, user.id)
    session.commit()
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})


@pytest.fixture
def channel(session: orm.Session, project: models.Project) -> models.Channel:
    made = alerting.channel(session, project.id, "webhook", URL)
    session.commit()
    return made


def test_a_webhook_made_by_the_form_shows_its_secret_once(browser: TestClient, session: orm.Session) -> None:
    answer = browser.post(PATH, data={"kind": "webhook", "name": "ours", "url": URL, "min_severity": "warning"})
    assert answer.status_code == 200
    [secret] = re.findall(r"whsec_[A-Za-z0-9+/=]+", answer.text)
    [stored] = session.query(models.Channel).all()
    assert alerting.opened(stored)["secret"] == secret
    assert (stored.min_severity, stored.created_by) == ("warning", "user:grace")
    again = browser.get(PATH).text
    assert secret not in again
    assert "very-secret-path" not in again
    assert "ours" in again


def test_a_refused_form_keeps_what_was_typed_but_no_secret(browser: TestClient) -> None:
    form = {"kind": "webhook", "name": "ours", "url": "https://127.0.0.1/hook", "secret": "whsec_c2hvcnQ="}
    answer = browser.post(PATH, data=form)
    assert answer.status_code == 422
    assert "“Signing secret” must be" in answer.text
    assert 'value="ours"' in answer.text
    assert 'value="https://127.0.0.1/hook"' in answer.text
    assert "whsec_c2hvcnQ" not in answer.text
    answer = browser.post(PATH, data=form | {"secret": ""})
    assert "private or reserved network address" in answer.text


def test_a_refusal_calls_a_field_what_its_form_calls_it(browser: TestClient) -> None:
    answer = browser.post(PATH, data={"kind": "pagerduty", "name": "pages", "routing_key": "short"})
    assert answer.status_code == 422
    assert "“Integration key” must be the 32 letters and digits" in answer.text
    assert "`routing_key`" not in answer.text


def test_a_channel_that_was_disabled_says_so_loudly_and_can_be_switched_on(
    browser: TestClient, session: orm.Session, channel: models.Channel
) -> None:
    channel.disabled_at, channel.disabled_reason = dt.datetime.now(dt.UTC), "The receiver answered 410."
    session.commit()
    page = browser.get(PATH).text
    assert "nothing is sent here" in page
    assert "The receiver answered 410." in page
    answer = browser.post(f"{PATH}/{channel.id}/enable")
    assert answer.status_code == 303
    session.refresh(channel)
    assert channel.disabled_at is None


def test_the_last_error_and_every_message_are_shown(
    browser: TestClient, session: orm.Session, project: models.Project, channel: models.Channel
) -> None:
    delivery = alerting.message(session, channel, alerting.alert(session, project.id), rule=EVIL)
    delivery.attempts, delivery.last_error = 3, "The service answered 503."
    channel.last_error, channel.last_error_at = "The service answered 503.", dt.datetime.now(dt.UTC)
    session.commit()
    page = browser.get(PATH).text
    assert page.count("The service answered 503.") == 2
    assert "failing" in page
    assert "retrying" in page
    assert f'<a href="/alerts/{delivery.alert_id}">' in page
    assert "<script>alert" not in page
    assert "U+202E" in page


@pytest.mark.parametrize(
    "state, error, shown",
    [
        ("delivered", None, "The test arrived."),
        ("dead", "The connection was refused.", "The connection was refused."),
        ("pending", None, "No worker took the test within 15 seconds."),
    ],
)
def test_the_result_of_a_test_is_on_the_page(
    browser: TestClient, session: orm.Session, channel: models.Channel, state: str, error: str | None, shown: str
) -> None:
    principal = alerting.principal(channel.project_id)
    delivery = channels.test(session, principal, channel.id)
    delivery.state, delivery.last_error = state, error
    session.commit()
    assert shown in browser.get(f"{PATH}?test={delivery.id}").text


def test_pressing_test_leads_to_the_page_with_the_result(
    browser: TestClient, session: orm.Session, channel: models.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch_web.api.channels.TEST_SECONDS", 0.0)
    answer = browser.post(f"{PATH}/{channel.id}/test")
    assert answer.status_code == 303
    [delivery] = session.query(models.Delivery).all()
    assert answer.headers["location"] == f"{PATH}?test={delivery.id}"
    assert delivery.kind == "test"


def test_an_edit_keeps_the_secret_that_was_left_empty(
    browser: TestClient, session: orm.Session, channel: models.Channel
) -> None:
    secret = alerting.opened(channel)["secret"]
    form = {"name": "renamed", "min_severity": "critical", "url": "", "secret": ""}
    assert browser.post(f"{PATH}/{channel.id}", data=form).status_code == 303
    session.refresh(channel)
    assert (channel.name, channel.min_severity) == ("renamed", "critical")
    assert alerting.opened(channel) == {"url": URL, "secret": secret}


def test_a_refused_edit_says_why_beside_its_form(browser: TestClient, channel: models.Channel) -> None:
    answer = browser.post(f"{PATH}/{channel.id}", data={"name": "", "min_severity": "info"})
    assert answer.status_code == 422
    assert "“Name” must have 1 to 100 printable characters." in answer.text


@pytest.mark.parametrize("act", ["", "/test", "/enable", "/disable", "/delete", "/rotate"])
def test_another_projects_channel_is_not_found(
    browser: TestClient, session: orm.Session, stranger: models.Project, act: str
) -> None:
    foreign = alerting.channel(session, stranger.id, "webhook", URL)
    session.commit()
    answer = browser.post(f"{PATH}/{foreign.id}{act}", data={"name": "mine", "min_severity": "info"})
    assert answer.status_code == 404
    session.refresh(foreign)
    assert (foreign.name, foreign.disabled_at, foreign.deleted_at) == ("webhook 1", None, None)


def test_a_viewer_may_neither_see_nor_change_channels(console: TestClient, channel: models.Channel) -> None:
    assert console.get(PATH).status_code == 403
    assert console.post(PATH, data={"kind": "webhook", "name": "x", "url": URL}).status_code == 403
    assert console.post(f"{PATH}/{channel.id}/test").status_code == 403


def test_a_form_of_another_site_is_ignored(browser: TestClient, channel: models.Channel) -> None:
    answer = browser.post(f"{PATH}/{channel.id}/delete", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


def test_a_stranger_is_sent_to_the_sign_in(app: fastapi.FastAPI) -> None:
    client = TestClient(app, follow_redirects=False)
    for path in (PATH, f"{PATH}/{uuid.uuid4()}/test"):
        answer = client.post(path, data={"kind": "webhook"})
        assert (answer.status_code, answer.headers["location"][:8]) == (303, "/sign-in")
