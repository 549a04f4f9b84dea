"""Signing in and out: what opens a session, what does not, and what a browser is told to do with the cookie."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models, settings
from cmerwatch_web import app as web
from cmerwatch_web.console import throttle

PAGES = (
    "/",
    "/events",
    "/events/01939f00-0000-7000-8000-000000000000",
    "/events/01939f00-0000-7000-8000-000000000000/json",
    "/events/01939f00-0000-7000-8000-000000000000/state",
    "/ledger",
    "/media/01939f00-0000-7000-8000-000000000000/0",
)
PASSWORD = "correct horse battery"


@pytest.fixture
def anyone(app: fastapi.FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture
def link(session: orm.Session, user: models.User) -> str:
    token = access.create_sign_in_link(session, user.id)
    session.commit()
    return f"/sign-in/{token}"


def test_opening_the_link_does_not_use_it_up_so_link_scanners_do_no_harm(anyone: TestClient, link: str) -> None:
    for _ in range(3):
        answer = anyone.get(link)
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
    assert anyone.post(link).status_code == 303


def test_the_button_signs_in(anyone: TestClient, link: str) -> None:
    answer = anyone.post(link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert anyone.get("/").status_code == 200


def test_a_link_works_once_and_then_says_how_to_get_another(anyone: TestClient, link: str) -> None:
    anyone.post(link)
    anyone.cookies.clear()
    answer = anyone.post(link)
    assert answer.status_code == 401
    assert "cmerwatch user link" in answer.text
    assert "set-cookie" not in answer.headers


def test_an_expired_link_is_refused(anyone: TestClient, session: orm.Session, user: models.User) -> None:
    token = access.create_sign_in_link(session, user.id, dt.timedelta(seconds=-1))
    session.commit()
    assert anyone.post(f"/sign-in/{token}").status_code == 401


def test_an_unknown_link_is_refused(anyone: TestClient) -> None:
    assert anyone.post("/sign-in/guessed").status_code == 401


def test_login_and_password_sign_in_and_lead_to_where_one_was_going(anyone: TestClient, user: models.User) -> None:
    answer = anyone.post("/sign-in", data={"login": "ada", "password": PASSWORD, "next": "/ledger?window=1h"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/ledger?window=1h")
    assert anyone.get("/ledger").status_code == 200


@pytest.mark.parametrize("form", [{"login": "ada", "password": "wrong"}, {"login": "nobody", "password": PASSWORD}, {}])
def test_a_wrong_password_an_unknown_login_and_nothing_at_all_get_the_same_answer(
    anyone: TestClient, user: models.User, form: dict[str, str]
) -> None:
    answer = anyone.post("/sign-in", data=form)
    assert answer.status_code == 401
    assert "Login or password is wrong." in answer.text
    assert "set-cookie" not in answer.headers


def test_guessing_passwords_soon_has_to_wait_and_the_right_one_too(
    app: fastapi.FastAPI, anyone: TestClient, user: models.User
) -> None:
    app.state.tries = throttle.Throttle(now=lambda: 0.0)  # on a busy machine the hashes alone outlast the first wait
    for _ in range(throttle.FREE_TRIES):
        assert anyone.post("/sign-in", data={"login": "ada", "password": "wrong"}).status_code == 401
    answer = anyone.post("/sign-in", data={"login": "ada", "password": PASSWORD})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "one-time link" in answer.text
    assert "set-cookie" not in answer.headers
    assert anyone.post("/sign-in", data={"login": "grace", "password": "wrong"}).status_code == 401


def test_each_try_doubles_the_wait_up_to_five_minutes() -> None:
    clock = [0.0]
    tries = throttle.Throttle(now=lambda: clock[0])
    waits = []
    for _ in range(throttle.FREE_TRIES + 12):
        if wait := tries.begin("ada", "10.0.0.1"):
            assert tries.begin("ada", "10.0.0.1") == wait, "asking again makes it neither longer nor shorter"
            waits.append(wait)
            clock[0] += wait
            assert tries.begin("ada", "10.0.0.1") == 0
    assert waits == [min(2.0**n, throttle.LONGEST_SECONDS) for n in range(12)]
    assert tries.begin("ada", "10.0.0.2") == 0, "another address has tries of its own"
    clock[0] += throttle.FORGOTTEN_SECONDS + 1
    assert [tries.begin("ada", "10.0.0.1") for _ in range(throttle.FREE_TRIES)] == [0.0] * throttle.FREE_TRIES


def test_the_right_password_forgets_the_mistyped_ones() -> None:
    tries = throttle.Throttle()
    for _ in range(3 * throttle.FREE_TRIES):
        assert tries.begin("ada", "10.0.0.1") == 0
        tries.succeed("ada", "10.0.0.1")


def test_what_is_remembered_of_tries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MOST_REMEMBERED", 3)
    tries = throttle.Throttle()
    for n in range(10):
        tries.begin(f"login {n}", "10.0.0.1")
    assert len(tries._tries) == 3


@pytest.mark.parametrize("path", PAGES)
def test_every_page_asks_for_a_sign_in_and_remembers_the_way(anyone: TestClient, path: str) -> None:
    answer = anyone.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in")


@pytest.mark.parametrize(
    "elsewhere",
    ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "\\\\evil", "/\t/evil"],
)
def test_a_sign_in_never_sends_people_to_another_site(anyone: TestClient, user: models.User, elsewhere: str) -> None:
    answer = anyone.post("/sign-in", data={"login": "ada", "password": PASSWORD, "next": elsewhere})
    assert answer.headers["location"] == "/"


def test_under_http_the_cookie_is_plain_and_out_of_reach_of_scripts(anyone: TestClient, link: str) -> None:
    cookie = anyone.post(link).headers["set-cookie"]
    assert cookie.startswith("cmw=")
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie


def test_under_https_the_cookie_is_secure_and_bound_to_the_host(
    configured: Callable[..., settings.Settings], session: orm.Session, link: str
) -> None:
    app = web.create_app(configured(public_url="https://watch.example"))
    browser = TestClient(app, base_url="https://watch.example", follow_redirects=False)
    cookie = browser.post(link).headers["set-cookie"]
    assert cookie.startswith("__Host-cmw=")
    assert "Secure" in cookie
    assert "Domain" not in cookie
    assert browser.get("/").status_code == 200


def test_signing_out_ends_the_session_on_the_server_too(console: TestClient) -> None:
    cookie = console.cookies["cmw"]
    assert console.post("/sign-out").headers["location"] == "/sign-in"
    console.cookies.set("cmw", cookie)
    assert console.get("/").status_code == 303


def test_each_sign_in_gets_a_new_session_and_ends_the_old_one(console: TestClient, link: str) -> None:
    before = console.cookies["cmw"]
    after = console.post(link).cookies["cmw"]
    assert after != before
    stale = TestClient(console.app, follow_redirects=False, cookies={"cmw": before})
    assert stale.get("/").status_code == 303


def test_a_session_left_alone_for_half_an_hour_ends(console: TestClient, session: orm.Session) -> None:
    idle = sa.func.now() - dt.timedelta(minutes=31)
    session.execute(sa.update(models.ConsoleSession).values(last_seen_at=idle))
    session.commit()
    assert console.get("/").status_code == 303


def test_a_sign_in_is_written_down_without_the_link(anyone: TestClient, session: orm.Session, link: str) -> None:
    anyone.post(link)
    [entry] = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "sign_in"))
    assert (entry.actor, entry.details) == ("user:ada", {"method": "link"})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://testserver"}, 303),
        ({"origin": "http://127.0.0.1:8383"}, 303),  # what public_url says
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 303),
    ],
)
def test_a_form_from_another_site_is_refused(console: TestClient, headers: dict[str, str], status: int) -> None:
    assert console.post("/sign-out", headers=headers).status_code == status


def test_a_refused_form_changes_nothing(console: TestClient) -> None:
    console.post("/sign-out", headers={"sec-fetch-site": "cross-site"})
    assert console.get("/").status_code == 200


@pytest.mark.parametrize("path", ["/sign-in", "/sign-in/token"])
def test_the_sign_in_pages_carry_the_strict_policy(anyone: TestClient, path: str) -> None:
    policy = anyone.get(path).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
