"""Settings, in the browser's words: one's own account, the keys, the people and the log of what they changed."""

from __future__ import annotations

import datetime as dt
import html
import re
import uuid
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, alert_rules, audits, invitations, models, people, settings
from cmerwatch_web import app as web

PASSWORD = "correct horse battery"
NEW = "a much better battery"
EVIL = "</td><script>x</script>\"'{{7*7}}"


def words(page: str) -> str:
    """What a person reads: tags dropped, entities resolved, spaces folded."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def browser(app: fastapi.FastAPI, session: orm.Session) -> Callable[[models.User], TestClient]:
    """A browser in which somebody is signed in; it does not follow redirects."""

    def make(user: models.User) -> TestClient:
        cookie = access.open_console_session(session, user.id)
        session.commit()
        return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})

    return make


@pytest.fixture
def admin(session: orm.Session, project: models.Project) -> models.User:
    made = access.create_user(session, project.id, "boss", "Boss", "admin")
    session.commit()
    return made


@pytest.fixture
def boss(browser: Callable[[models.User], TestClient], admin: models.User) -> TestClient:
    return browser(admin)


def made_key(page: str) -> str:
    found = re.search(r"cmw_\w+", page)
    assert found
    return found.group()


# One's own account


def test_a_new_password_needs_the_old_one_and_signs_out_every_other_browser(
    console: TestClient, browser: Callable[[models.User], TestClient], user: models.User
) -> None:
    elsewhere = browser(user)
    form = {"current": PASSWORD, "new": NEW, "again": NEW}
    answer = console.post("/settings/account/password", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings/account?done=password")
    assert "Every other browser was signed out" in console.get(answer.headers["location"]).text
    assert elsewhere.get("/").status_code == 303
    console.cookies.clear()
    assert console.post("/sign-in", data={"login": "ada", "password": PASSWORD}).status_code == 401
    assert console.post("/sign-in", data={"login": "ada", "password": NEW}).status_code == 303


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"current": "wrong", "new": NEW, "again": NEW}, "not your current password"),
        ({"new": NEW, "again": NEW}, "not your current password"),
        ({"current": PASSWORD, "new": NEW, "again": "other"}, "two new passwords differ"),
        ({"current": PASSWORD, "new": "short", "again": "short"}, "use 12 to 256"),
        ({"current": PASSWORD}, "use 12 to 256"),
    ],
)
def test_a_password_that_cannot_be_set_changes_nothing_and_is_not_repeated(
    console: TestClient, user: models.User, form: dict[str, str], said: str
) -> None:
    answer = console.post("/settings/account/password", data=form)
    assert answer.status_code == 422
    assert said in answer.text
    assert NEW not in answer.text
    assert console.get("/").status_code == 200
    assert console.post("/sign-in", data={"login": "ada", "password": PASSWORD}).status_code == 303


def test_the_current_password_cannot_be_guessed_here_any_faster_than_at_the_door(console: TestClient) -> None:
    form = {"current": "wrong", "new": NEW, "again": NEW}
    assert [console.post("/settings/account/password", data=form).status_code for _ in range(6)] == [422] * 5 + [429]


def test_one_session_or_all_others_can_be_ended(
    console: TestClient, browser: Callable[[models.User], TestClient], user: models.User
) -> None:
    phone, tablet = browser(user), browser(user)
    handles = re.findall(r"/settings/account/sessions/([0-9a-f]+)/end", console.get("/settings/account").text)
    assert len(set(handles)) == 2, "this browser's own has no button"
    assert console.post(f"/settings/account/sessions/{handles[0]}/end").status_code == 303
    assert sorted([phone.get("/").status_code, tablet.get("/").status_code]) == [200, 303]
    assert console.post("/settings/account/sessions/end-others").status_code == 303
    assert [phone.get("/").status_code, tablet.get("/").status_code] == [303, 303]
    assert console.get("/").status_code == 200


def test_a_one_time_link_can_set_a_password_on_the_way_in(
    app: fastapi.FastAPI, session: orm.Session, user: models.User
) -> None:
    link = f"/sign-in/{access.create_sign_in_link(session, user.id)}"
    session.commit()
    anyone = TestClient(app, follow_redirects=False)
    answer = anyone.post(link, data={"password": "short"})
    assert (answer.status_code, "use 12 to 256" in answer.text) == (422, True)
    assert anyone.post(link, data={"password": NEW}).status_code == 303, "the bad password did not use up the link"
    anyone.cookies.clear()
    assert anyone.post("/sign-in", data={"login": "ada", "password": NEW}).status_code == 303


# Keys


def test_a_key_is_shown_once_with_what_to_do_with_it_and_works(boss: TestClient, http: TestClient) -> None:
    form = {"name": "captions", "scope": ["ingest", "read"]}
    answer = boss.post("/settings/keys", data=form)
    assert answer.status_code == 201
    key = made_key(answer.text)
    assert f"CMERWATCH_API_KEY={key}" in answer.text
    assert "curl -sS" in answer.text
    assert http.get("/v1/cmer", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    listed = boss.get("/settings/keys").text
    assert key not in listed
    assert f"captions {key.split('_')[1]} ingest read itself" in words(listed)
    assert "s ago never" in words(listed), "used just now, ends never"


def test_a_key_is_offered_with_the_scope_to_send_alone(boss: TestClient) -> None:
    page = boss.get("/settings/keys").text
    assert re.findall(r'name="scope" value="(\w+)" checked', page) == ["ingest"]
    assert "A key that may only ingest cannot read" in words(page)


def test_a_revoked_key_is_refused_and_said_to_be(boss: TestClient, http: TestClient) -> None:
    key = made_key(boss.post("/settings/keys", data={"name": "x", "scope": "read"}).text)
    answer = boss.post(f"/settings/keys/{key.split('_')[1]}/revoke")
    assert answer.headers["location"] == "/settings/keys?done=revoked"
    assert http.get("/v1/cmer", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert "revoked" in words(boss.get("/settings/keys").text)


def test_a_key_may_end_by_itself_and_act_as_somebody(boss: TestClient, session: orm.Session, user: models.User) -> None:
    boss.post("/settings/keys", data={"name": "x", "scope": "review", "user": str(user.id), "lifetime": "30"})
    [key] = session.scalars(sa.select(models.ApiKey)).all()
    assert key.user_id == user.id
    assert key.expires_at is not None
    assert 29 <= (key.expires_at - dt.datetime.now(dt.UTC)).days <= 30


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"name": "", "scope": "read"}, "“What it is for” has 0 characters"),
        ({"name": "n" * 101, "scope": "read"}, "use 1 to 100"),
        ({"name": "a\x00b", "scope": "read"}, "cannot be seen"),
        ({"name": "a\u202eb", "scope": "read"}, "cannot be seen"),
        ({"name": "x"}, "Choose at least one of the things under “It may”"),
        ({"name": "x", "scope": "everything"}, "Choose at least one of the things under “It may”"),
        ({"name": "x", "scope": "review"}, "Choose under “Acts as” a member of this project"),
        ({"name": "x", "scope": "read", "user": "nobody"}, "Choose under “Acts as”"),
        (
            {"name": "x", "scope": "read", "user": "01939f00-0000-7000-8000-000000000000"},
            "Choose under “Acts as” a member",
        ),
        ({"name": "x", "scope": "read", "lifetime": "1000"}, "from the list"),
    ],
)
def test_a_key_that_cannot_be_made_says_why_and_keeps_what_was_typed(
    boss: TestClient, session: orm.Session, form: dict[str, str], said: str
) -> None:
    answer = boss.post("/settings/keys", data=form)
    assert answer.status_code == 422
    assert said in html.unescape(answer.text)
    assert session.scalars(sa.select(models.ApiKey)).all() == []


# People


def add(boss: TestClient, **form: str) -> str:
    answer = boss.post("/settings/people", data={"login": "grace", "name": "Grace", "role": "reviewer"} | form)
    assert answer.status_code == 201, words(answer.text)
    return answer.text


def id_of(session: orm.Session, login: str) -> str:
    return str(session.scalar(sa.select(models.User.id).where(models.User.login == login)))


def invitation(page: str) -> str:
    found = re.search(r"/invitation/[\w-]+", page)
    assert found, words(page)
    return found.group()


def without(page: str, *texts: str) -> str:
    """A page in words, without what differs between two invitations."""
    for text in (invitation(page), *texts):
        page = page.replace(text, "X")
    return words(page)


def test_an_invitation_makes_a_new_account_with_the_password_that_is_chosen(
    boss: TestClient, app: fastapi.FastAPI
) -> None:
    link = invitation(add(boss))
    anyone = TestClient(app, follow_redirects=False)
    assert "grace is invited as reviewer" in words(anyone.get(link).text)
    assert anyone.post(link, data={"password": "short"}).status_code == 422
    assert "grace Grace reviewer" in words(boss.get("/settings/people").text).split("Invited", 1)[1]
    assert anyone.post(link, data={"password": NEW}).headers["location"] == "/"
    assert anyone.get("/").status_code == 200
    assert "Invited" not in boss.get("/settings/people").text
    again = TestClient(app, follow_redirects=False).post(link, data={"password": NEW})
    assert (again.status_code, "taken or withdrawn" in again.text) == (401, True)
    page = words(boss.get("/settings/audit").text)
    assert "user:boss user.invite grace role reviewer" in page
    assert "user:grace user.join grace role reviewer" in page


def test_the_inviter_is_not_told_whether_a_login_has_an_account_elsewhere(
    boss: TestClient, app: fastapi.FastAPI, session: orm.Session, stranger: models.Project
) -> None:
    access.create_user(session, stranger.id, "known", "Known", "viewer", password=PASSWORD)
    session.commit()
    anyone = TestClient(app, follow_redirects=False)
    told = []
    for login in ("known", "fresh"):
        page = add(boss, login=login, name="Somebody")
        link = invitation(page)
        short = anyone.post(link, data={"password": "short"})
        told.append([without(page, login), words(anyone.get(link).text.replace(login, "X")), short.status_code])
        told[-1].append(words(short.text.replace(login, "X")))
        assert boss.post("/settings/people/invitations/withdraw", data={"login": login}).status_code == 303
        assert anyone.get(link).status_code == 401
    assert told[0] == told[1]
    assert boss.post("/settings/people/invitations/withdraw", data={"login": "known"}).status_code == 409


def test_who_has_an_account_joins_by_its_password_or_signed_in_and_keeps_their_name(
    boss: TestClient, app: fastapi.FastAPI, session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    eve = access.create_user(session, stranger.id, "eve", "Eve", "viewer", password=PASSWORD)
    session.commit()
    link = invitation(add(boss, login="eve", name="Somebody"))
    anyone = TestClient(app, follow_redirects=False)
    refused = anyone.post(link, data={"password": NEW})
    assert (refused.status_code, "was not accepted" in refused.text) == (401, True)
    assert session.scalar(sa.select(models.RefusedSignIns.tries)) == 1
    assert session.get(models.Membership, (project.id, eve.id)) is None
    assert anyone.post(link, data={"password": PASSWORD}).status_code == 303
    assert ">acme<" in anyone.get("/").text, "in the project that was joined"
    assert "eve Eve" in words(boss.get("/settings/people").text)
    boss.post(f"/settings/people/{eve.id}/remove")
    link = invitation(add(boss, login="eve", role="lead"))
    assert "You are signed in as eve" in words(anyone.get(link).text)
    assert anyone.post(link).status_code == 303
    session.expire_all()
    assert session.get_one(models.Membership, (project.id, eve.id)).role == "lead"


def test_an_invitation_ends_by_itself_and_guesses_at_it_have_to_wait(
    boss: TestClient, app: fastapi.FastAPI, session: orm.Session, stranger: models.Project
) -> None:
    access.create_user(session, stranger.id, "eve", "Eve", "viewer", password=PASSWORD)
    session.commit()
    link = invitation(add(boss, login="eve"))
    anyone = TestClient(app, follow_redirects=False)
    answers = [anyone.post(link, data={"password": NEW}).status_code for _ in range(6)]
    assert answers == [401] * 5 + [429]
    session.execute(sa.update(models.Invitation).values(expires_at=sa.func.now() - dt.timedelta(seconds=1)))
    session.commit()
    assert anyone.get(link).status_code == 401
    assert invitations.purge(session) == 1


def test_a_disabled_person_is_out_at_once_with_their_links_and_keys_and_can_come_back(
    boss: TestClient,
    browser: Callable[[models.User], TestClient],
    session: orm.Session,
    project: models.Project,
    user: models.User,
) -> None:
    theirs, link = browser(user), f"/sign-in/{access.create_sign_in_link(session, user.id)}"
    key = access.create_key(session, project.id, "hers", ["read"], user.id)
    session.commit()
    assert boss.post(f"/settings/people/{user.id}/disable").headers["location"].endswith("done=disabled")
    assert theirs.get("/").status_code == 303
    assert theirs.post(link).status_code == 401
    assert theirs.get("/v1/cmer", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert theirs.post("/sign-in", data={"login": "ada", "password": PASSWORD}).status_code == 401
    assert boss.post(f"/settings/people/{user.id}/link").status_code == 409
    boss.post(f"/settings/people/{user.id}/enable")
    assert theirs.post("/sign-in", data={"login": "ada", "password": PASSWORD}).status_code == 303
    assert theirs.post(link).status_code == 401, "an old link stays void"


def test_a_role_changes_from_the_next_page_on(
    boss: TestClient, browser: Callable[[models.User], TestClient], user: models.User
) -> None:
    theirs = browser(user)
    assert theirs.get("/settings/people").status_code == 403
    boss.post(f"/settings/people/{user.id}/role", data={"role": "admin"})
    assert theirs.get("/settings/people").status_code == 200
    assert boss.post(f"/settings/people/{user.id}/role", data={"role": "boss"}).status_code == 422


def test_who_is_removed_sees_the_project_no_more(
    boss: TestClient, browser: Callable[[models.User], TestClient], user: models.User
) -> None:
    theirs = browser(user)
    boss.post(f"/settings/people/{user.id}/remove")
    assert theirs.get("/").status_code == 303
    assert "ada" not in words(boss.get("/settings/people").text).split()


@pytest.mark.parametrize("act", ["disable", "remove"])
def test_nobody_ends_themselves(boss: TestClient, admin: models.User, act: str) -> None:
    answer = boss.post(f"/settings/people/{admin.id}/{act}")
    assert (answer.status_code, "That is you" in answer.text) == (409, True)


def test_the_last_admin_stays_admin(boss: TestClient, admin: models.User) -> None:
    answer = boss.post(f"/settings/people/{admin.id}/role", data={"role": "viewer"})
    assert (answer.status_code, "last admin" in answer.text) == (409, True)
    assert boss.get("/settings/people").status_code == 200


def test_a_person_of_another_project_cannot_be_taken_over(
    boss: TestClient, session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    access.create_user(session, stranger.id, "eve", "Eve", "viewer")
    people.add(session, project.id, "eve", "", "viewer")
    session.commit()
    for act in ("link", "disable", "enable"):
        assert boss.post(f"/settings/people/{id_of(session, 'eve')}/{act}").status_code == 403, act
    assert boss.post(f"/settings/people/{id_of(session, 'eve')}/remove").status_code == 303


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"login": "ada"}, 409, "of this project already"),
        ({"login": ""}, 422, "“Login” has 0 characters"),
        ({"login": "l" * 121}, 422, "use 1 to 120"),
        ({"login": "two words"}, 422, "must not hold spaces"),
        ({"login": "a\u200bb"}, 422, "cannot be seen"),
        ({"login": "x", "name": "a\nb"}, 422, "cannot be seen"),
        ({"login": "x", "role": "owner"}, 422, "“Role” is 'owner'"),
    ],
)
def test_somebody_who_cannot_be_added_says_why(
    boss: TestClient, user: models.User, form: dict[str, str], status: int, said: str
) -> None:
    answer = boss.post("/settings/people", data={"login": "x", "name": "x", "role": "viewer"} | form)
    assert answer.status_code == status
    assert said in html.unescape(answer.text)


def test_hostile_names_are_text(boss: TestClient) -> None:
    add(boss, login="<svg/onload=x>", name=EVIL)
    key = made_key(boss.post("/settings/keys", data={"name": EVIL, "scope": "read"}).text)
    for path in ("/settings/people", "/settings/keys", "/settings/audit", f"/settings/audit?actor={EVIL}"):
        page = boss.get(path).text
        assert "<script>x" not in page, path
        assert "<svg/onload" not in page, path
        assert "49" not in words(page).split(), path
    assert EVIL in html.unescape(boss.get("/settings/keys").text)
    assert key.split("_")[1] in boss.get("/settings/keys").text


# The log


def test_every_change_is_written_down_with_who_and_what(boss: TestClient, user: models.User) -> None:
    key = made_key(boss.post("/settings/keys", data={"name": "captions", "scope": "read"}).text)
    boss.post(f"/settings/people/{user.id}/role", data={"role": "lead"})
    page = words(boss.get("/settings/audit").text)
    assert "user:boss key.create key captions name captions · scopes read" in page
    assert "user:boss user.role ada role lead · before viewer" in page
    assert key not in page


def test_the_log_filters_and_pages_without_skipping(boss: TestClient, session: orm.Session, admin: models.User) -> None:
    membership = session.scalars(sa.select(models.Membership).where(models.Membership.user_id == admin.id)).one()
    for number in range(130):
        access.audit(session, "user:boss", "test.act", f"n{number}", membership.project_id)
    access.audit(session, "cli", "test.other", "x", membership.project_id)
    session.commit()
    seen: list[str] = []
    path: str | None = "/settings/audit?action=test.act"
    while path:
        page = boss.get(path).text
        seen += re.findall(r"<bdi>(n\d+)</bdi>", page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = html.unescape(older.group(1)) if older else None
    assert sorted(seen) == sorted(f"n{number}" for number in range(130)), "ids of one millisecond are in no order"
    assert "test.other" not in words(boss.get("/settings/audit?actor=user:boss").text.split("<table")[1])
    assert boss.get("/settings/audit?cursor=x").status_code == 422


def test_the_log_names_rules_channels_silences_and_keys_instead_of_their_ids(
    boss: TestClient, session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    alert_rules.ensure_default(session, project.id)
    rule = session.scalars(sa.select(models.AlertRule).where(models.AlertRule.project_id == project.id)).first()
    alert_rules.ensure_default(session, stranger.id)
    theirs = session.scalars(sa.select(models.AlertRule).where(models.AlertRule.project_id == stranger.id)).first()
    assert rule is not None
    assert theirs is not None
    key = access.create_key(session, project.id, "night shift", ["admin"]).split("_")[1]
    access.audit(session, f"key:{key}", "alert_rule.update", str(rule.id), project.id)
    access.audit(session, "cli", "alert_rule.update", str(theirs.id), project.id)
    access.audit(session, "cli", "key.revoke", key, project.id)
    session.commit()
    page = words(boss.get("/settings/audit").text)
    assert f"key night shift alert_rule.update rule {rule.name}" in page
    assert "cli key.revoke key night shift" in page
    assert str(theirs.id) in page, "another project's names are not told"


def test_refused_sign_ins_are_counted_by_account_and_minute_however_many(
    boss: TestClient, app: fastapi.FastAPI, session: orm.Session, user: models.User, stranger: models.Project
) -> None:
    access.create_user(session, stranger.id, "eve", "Eve", "viewer")
    session.commit()
    anyone = TestClient(app, follow_redirects=False)
    for login in ("ada", "ada", "ada", "eve", "nobody", "nobody else", "\u0000"):
        assert anyone.post("/sign-in", data={"login": login, "password": "wrong, and wrong"}).status_code == 401
    rows = {row.user_id: row.tries for row in session.scalars(sa.select(models.RefusedSignIns))}
    assert rows == {user.id: 3, audits.NOBODY: 3, uuid.UUID(id_of(session, "eve")): 1}
    page = words(boss.get("/settings/audit").text)
    assert "Refused sign-ins: 3 tries with a wrong password" in page
    assert "ada 3 testclient" in page
    assert "eve 1" not in page
    session.execute(sa.update(models.RefusedSignIns).values(minute=sa.func.now() - dt.timedelta(days=91)))
    assert audits.purge(session) == 3


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/settings/people", "login"),
        ("/settings/keys", "name"),
        ("/sign-in", "login"),
        ("/settings/channels/{id}", "name"),
    ],
)
def test_a_field_that_is_too_long_is_named_with_its_limit(boss: TestClient, path: str, field: str) -> None:
    answer = boss.post(path.format(id=uuid.uuid4()), data={field: "x" * 100_000})
    assert answer.status_code == 422
    assert re.search(rf"`{field}` has more than [\d,]+ characters", html.unescape(answer.text))


def test_an_address_that_cannot_be_is_still_not_found(boss: TestClient) -> None:
    assert boss.post("/settings/people/x/role", data={"role": "viewer"}).status_code == 404


def test_another_projects_log_is_not_shown_but_a_members_sign_in_is(
    boss: TestClient, session: orm.Session, stranger: models.Project, user: models.User
) -> None:
    access.create_user(session, stranger.id, "eve", "Eve", "viewer")
    access.audit(session, "user:eve", "sign_in", "console")
    access.audit(session, "user:eve", "key.create", "k", stranger.id)
    access.audit(session, "user:ada", "sign_in", "console")
    session.commit()
    page = words(boss.get("/settings/audit").text)
    assert "user:ada sign_in" in page
    assert "user:eve" not in page


# Several projects


def test_who_works_in_several_projects_switches_and_stays_there(
    console: TestClient, session: orm.Session, user: models.User, stranger: models.Project
) -> None:
    assert "/project" not in console.get("/").text
    session.add(models.Membership(project_id=stranger.id, user_id=user.id, role="admin"))
    session.commit()
    assert 'value="stranger"' in console.get("/").text
    assert console.get("/settings/keys").status_code == 403, "a viewer in the first"
    assert console.post("/project", data={"slug": "stranger"}).headers["location"] == "/"
    assert console.get("/settings/keys").status_code == 200, "an admin in the other"
    assert 'value="acme"' in console.get("/events").text


def test_nobody_switches_to_a_project_that_is_not_theirs(console: TestClient, stranger: models.Project) -> None:
    assert console.post("/project", data={"slug": "stranger"}).status_code == 404
    for planted in ("stranger", "a\x00b", "\u202e", ""):
        console.cookies.set("cmw-project", planted.encode("unicode_escape").decode())
        assert ">acme<" in console.get("/").text


def test_who_leaves_a_project_is_not_locked_out_by_having_chosen_it(
    console: TestClient, session: orm.Session, user: models.User, stranger: models.Project
) -> None:
    people.add(session, stranger.id, user.login, "", "viewer")
    session.commit()
    console.post("/project", data={"slug": "stranger"})
    people.remove(session, stranger.id, user.id)
    session.commit()
    assert ">acme<" in console.get("/").text


def test_under_https_the_chosen_project_is_kept_as_safely_as_the_session(
    configured: Callable[..., settings.Settings], session: orm.Session, user: models.User, stranger: models.Project
) -> None:
    people.add(session, stranger.id, user.login, "", "viewer")
    link = f"/sign-in/{access.create_sign_in_link(session, user.id)}"
    session.commit()
    app = web.create_app(configured(public_url="https://watch.example"))
    browser = TestClient(app, base_url="https://watch.example", follow_redirects=False)
    browser.post(link)
    cookie = browser.post("/project", data={"slug": "stranger"}).headers["set-cookie"]
    assert cookie.startswith("__Host-cmw-project=stranger;")
    assert {"HttpOnly", "Secure", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert 'value="acme"' in browser.get("/").text
    browser.post("/sign-out")
    assert "__Host-cmw-project" not in browser.cookies


def test_a_link_into_another_of_ones_projects_switches_there_and_keeps_the_rest(
    console: TestClient, session: orm.Session, user: models.User, stranger: models.Project
) -> None:
    link = "/events?from=2026-11-20T00%3A00%3A00Z&project=stranger&endpoint=%2Fa%26b"
    answer = console.get(link)
    assert (answer.status_code, "not among yours" in answer.text) == (404, True)
    people.add(session, stranger.id, user.login, "", "viewer")
    session.commit()
    answer = console.get(link)
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/events?from=2026-11-20T00%3A00%3A00Z&endpoint=%2Fa%26b",
    )
    assert 'value="acme"' in console.get("/").text, "now in the other one"
    assert console.get("/?project=stranger").status_code == 200
    console.cookies.clear()
    assert console.get(link).headers["location"].startswith("/sign-in?next=%2Fevents%3F")


def test_who_belongs_to_no_project_is_told_so_and_keeps_their_link(
    app: fastapi.FastAPI, session: orm.Session, project: models.Project, user: models.User
) -> None:
    link = f"/sign-in/{access.create_sign_in_link(session, user.id)}"
    people.remove(session, project.id, user.id)
    session.commit()
    anyone = TestClient(app, follow_redirects=False)
    answer = anyone.post(link)
    assert (answer.status_code, "belongs to no project any more" in answer.text) == (403, True)
    people.add(session, project.id, user.login, "", "viewer")
    session.commit()
    assert anyone.post(link).status_code == 303
