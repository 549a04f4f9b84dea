"""Who is asking: keys, passwords, links, sessions, and what each may do."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import access, db, errors, models
from tests import factories

GOOD_PASSWORD = "correct horse battery"


def bearer(key: str) -> str:
    return f"Bearer {key}"


@pytest.fixture
def key(session: orm.Session, project: models.Project) -> str:
    return access.create_key(session, project.id, "app", ["ingest"])


@pytest.fixture
def user(session: orm.Session, project: models.Project) -> models.User:
    """Without a password: hashing one is slow on purpose."""
    return access.create_user(session, project.id, "ada", "Ada", "reviewer")


@pytest.fixture
def grace(session: orm.Session, project: models.Project) -> models.User:
    return access.create_user(session, project.id, "grace", "Grace", "reviewer", GOOD_PASSWORD)


# Keys


def test_a_key_names_its_project_and_scopes(session: orm.Session, project: models.Project, key: str) -> None:
    found = access.principal_of_key(session, bearer(key))
    assert (found.project_id, found.project_slug, found.scopes) == (project.id, "acme", frozenset({"ingest"}))
    assert found.actor == f"key:{key.split('_')[1]}"
    assert (found.user_id, found.role) == (None, None)


def test_a_key_notes_its_use_to_the_hour_and_not_on_every_request(session: orm.Session, key: str) -> None:
    def used() -> dt.datetime | None:
        session.expire_all()
        return session.scalars(sa.select(models.ApiKey.last_used_at)).one()

    assert used() is None
    access.principal_of_key(session, bearer(key))
    first = used()
    assert first is not None
    recent = first - dt.timedelta(minutes=59)
    for was, is_noted in ((recent, False), (first - dt.timedelta(minutes=61), True)):
        session.execute(sa.update(models.ApiKey).values(last_used_at=was))
        access.principal_of_key(session, bearer(key))
        assert (used() != was) is is_noted


def test_no_request_waits_for_a_keys_row(committed: str) -> None:
    with db.transaction() as session:
        key = access.create_key(session, factories.project(session), "app", ["ingest"])
    with db.SessionLocal() as busy:
        busy.execute(sa.update(models.ApiKey).values(name="held"))  # and not committed
        with db.transaction() as session:
            session.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            assert access.principal_of_key(session, bearer(key)).scopes == {"ingest"}
        busy.rollback()


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "  Bearer   "])
def test_the_scheme_is_read_loosely(session: orm.Session, key: str, scheme: str) -> None:
    assert access.principal_of_key(session, f"{scheme}{key} ").scopes == {"ingest"}


def test_only_a_hash_of_the_secret_is_kept(session: orm.Session, key: str) -> None:
    row = session.scalars(sa.select(models.ApiKey)).one()
    secret = key.split("_")[2][:32]
    assert secret.encode() not in row.secret_hash
    assert secret not in repr({c: getattr(row, c) for c in ("id", "name", "scopes")})


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer hunter2",
        "Bearer cmw_abc_def",
        "Bearer cmw__" + "x" * 38,
        "Bearer cmw_\x00_" + "x" * 38,
        "Bearer cmw_\N{LATIN SMALL LETTER E WITH ACUTE}_" + "x" * 38,
        "Bearer cmw_\ud800a_" + "x" * 38,
    ],
)
def test_what_is_no_key_is_refused(session: orm.Session, header: str | None) -> None:
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_key(session, header)


@given(st.text(max_size=80))
def test_no_header_makes_it_fail_otherwise(text: str) -> None:
    """Whatever is sent never reaches the database unless its checksum fits."""
    unreachable = orm.Session()
    for header in (text, bearer(text), bearer("cmw_" + text), f"Bearer cmw_{text[:8]}_{text[8:46]}"):
        with pytest.raises(errors.Unauthenticated):
            access.principal_of_key(unreachable, header)


def test_a_typo_is_told_from_its_checksum_alone(key: str) -> None:
    position = len("cmw_") + 10
    typo = key[:position] + ("a" if key[position] != "a" else "b") + key[position + 1 :]
    with pytest.raises(errors.Unauthenticated, match="mistyped"):
        access.principal_of_key(orm.Session(), bearer(typo))


def test_a_wrong_secret_with_a_right_checksum_is_refused(session: orm.Session, key: str) -> None:
    public = key.split("_")[1]
    secret = "A" * 32
    with pytest.raises(errors.Unauthenticated, match="not known"):
        access.principal_of_key(session, f"Bearer cmw_{public}_{secret}{access._checksum(public + secret)}")


def test_a_key_made_under_another_secret_key_is_not_known(
    session: orm.Session, key: str, configured: Callable[..., object]
) -> None:
    configured(secret_key="another-secret-key-of-more-than-32-characters")
    with pytest.raises(errors.Unauthenticated, match="not known"):
        access.principal_of_key(session, bearer(key))


@pytest.mark.parametrize("slug", ["", "Bad Slug!", "-v", "../up", "a\n", "a" * 65])
def test_a_slug_that_needs_quoting_is_refused(session: orm.Session, slug: str) -> None:
    with pytest.raises(errors.Invalid, match=r"slug .* must be 1 to 64 letters"):
        access.create_project(session, slug)


def test_a_revoked_key_is_refused(session: orm.Session, project: models.Project, key: str) -> None:
    access.revoke_key(session, project.id, key.split("_")[1])
    with pytest.raises(errors.Unauthenticated, match="revoked"):
        access.principal_of_key(session, bearer(key))


def test_an_expired_key_is_refused(session: orm.Session, project: models.Project) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    key = access.create_key(session, project.id, "old", ["read"], expires_at=past)
    with pytest.raises(errors.Unauthenticated, match="expired"):
        access.principal_of_key(session, bearer(key))


def test_another_projects_key_cannot_be_revoked(
    session: orm.Session, stranger: models.Project, project: models.Project, key: str
) -> None:
    with pytest.raises(errors.NotFound):
        access.revoke_key(session, stranger.id, key.split("_")[1])
    assert access.principal_of_key(session, bearer(key)).project_id == project.id


@pytest.mark.parametrize("scopes", [[], ["ingest", "everything"], ["lead"]])
def test_unknown_scopes_are_refused_by_name(session: orm.Session, project: models.Project, scopes: list[str]) -> None:
    with pytest.raises(errors.Invalid, match="ingest, read, review, admin"):
        access.create_key(session, project.id, "bad", scopes)


def test_a_review_key_acts_as_one_member_of_its_project(
    session: orm.Session, project: models.Project, stranger: models.Project, user: models.User
) -> None:
    with pytest.raises(errors.Invalid, match="name the user"):
        access.create_key(session, project.id, "reviews", ["review"])
    with pytest.raises(errors.Invalid, match="member"):
        access.create_key(session, stranger.id, "reviews", ["review"], user.id)
    key = access.create_key(session, project.id, "reviews", ["review"], user.id)
    assert access.principal_of_key(session, bearer(key)).user_id == user.id


def test_the_key_of_a_disabled_user_is_refused(
    session: orm.Session, project: models.Project, user: models.User
) -> None:
    key = access.create_key(session, project.id, "reviews", ["review"], user.id)
    user.disabled_at = dt.datetime.now(dt.UTC)
    session.flush()
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_key(session, bearer(key))


# What a principal may do


def test_a_scope_allows_itself_and_nothing_else(session: orm.Session, key: str) -> None:
    found = access.principal_of_key(session, bearer(key))
    access.authorize(found, "ingest")
    for action in ("read", "review", "admin", "console"):
        with pytest.raises(errors.Forbidden, match=f"lacks the scope '{action}'"):
            access.authorize(found, action)


@pytest.mark.parametrize(
    "role, allowed",
    [
        ("viewer", {"read"}),
        ("reviewer", {"read", "review"}),
        ("lead", {"read", "review", "lead", "policies", "silence"}),
        ("engineer", {"read", "review", "policies", "alerts", "silence", "operate"}),
        ("admin", {"read", "review", "lead", "policies", "alerts", "silence", "operate", "admin"}),
    ],
)
def test_a_role_allows_what_is_written(
    session: orm.Session, project: models.Project, role: str, allowed: set[str]
) -> None:
    made = access.create_user(session, project.id, f"{role}@x", role, role)
    found = access.principal_of_cookie(session, access.open_console_session(session, made.id))
    for action in ("ingest", "read", "review", "lead", "policies", "alerts", "silence", "operate", "admin"):
        if action in allowed:
            access.authorize(found, action)
        else:
            with pytest.raises(errors.Forbidden, match=role):
                access.authorize(found, action)


def test_a_refusal_names_the_roles_that_may(session: orm.Session, project: models.Project) -> None:
    made = access.create_user(session, project.id, "lea", "Lea", "lead")
    found = access.principal_of_cookie(session, access.open_console_session(session, made.id))
    with pytest.raises(errors.Forbidden, match="needs the role engineer or admin; your role is lead"):
        access.authorize(found, "alerts")
    with pytest.raises(errors.Forbidden, match="needs a key with the scope ingest; your role is lead"):
        access.authorize(found, "ingest")


@pytest.mark.parametrize("role", ["viewer", "reviewer"])
def test_a_key_never_may_more_than_the_person_it_acts_as(
    session: orm.Session, project: models.Project, role: str
) -> None:
    made = access.create_user(session, project.id, "ada", "Ada", role)
    key = access.create_key(session, project.id, "hers", ["ingest", "review"], made.id)
    found = access.principal_of_key(session, bearer(key))
    access.authorize(found, "ingest")
    assert found.may("review") == (role == "reviewer")
    assert not found.may("admin")


def test_a_key_ends_when_the_person_it_acts_as_leaves_the_project(
    session: orm.Session, project: models.Project
) -> None:
    made = access.create_user(session, project.id, "ada", "Ada", "reviewer")
    key = access.create_key(session, project.id, "hers", ["review"], made.id)
    session.execute(sa.delete(models.Membership).where(models.Membership.user_id == made.id))
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_key(session, bearer(key))


# Passwords


def test_the_right_password_signs_in(session: orm.Session, grace: models.User) -> None:
    assert access.verify_password(session, "grace", GOOD_PASSWORD).id == grace.id
    assert GOOD_PASSWORD not in (grace.password_hash or "")


def test_everything_else_gets_one_and_the_same_answer(session: orm.Session, grace: models.User) -> None:
    wrong = ["wrong horse battery", "", "half \ud800 a password", "x" * 100_000]
    logins = ["nobody", "no\x00body", "half \ud800", "grace\x00", ""]
    for login, password in [("grace", text) for text in wrong] + [(text, GOOD_PASSWORD) for text in logins]:
        with pytest.raises(errors.Unauthenticated, match=r"^Login or password is wrong\.$"):
            access.verify_password(session, login, password)


def test_only_a_few_passwords_are_hashed_at_once(
    session: orm.Session, grace: models.User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 64 MiB: whoever sends forty sign-ins at once must not take the server's memory."""
    free_meanwhile: list[int] = []

    class Hasher:
        def verify(self, stored: str, password: bytes) -> None:
            free_meanwhile.append(access._hashing._value)

    free = access._hashing._value
    assert 1 <= free <= 4
    monkeypatch.setattr(access, "_hasher", Hasher())
    access.verify_password(session, "grace", GOOD_PASSWORD)
    assert (free_meanwhile, access._hashing._value) == ([free - 1], free)


def test_a_password_is_compared_whole(session: orm.Session, project: models.Project) -> None:
    longest = "p" * access.MAX_PASSWORD
    access.create_user(session, project.id, "long", "Long", "viewer", longest)
    access.verify_password(session, "long", longest)
    with pytest.raises(errors.Unauthenticated):
        access.verify_password(session, "long", longest + "more")


def test_a_user_without_a_password_cannot_sign_in_with_one(session: orm.Session, project: models.Project) -> None:
    access.create_user(session, project.id, "linked", "Linked", "viewer")
    with pytest.raises(errors.Unauthenticated):
        access.verify_password(session, "linked", "")


def test_a_disabled_user_is_out_at_once(session: orm.Session, grace: models.User) -> None:
    cookie, link = access.open_console_session(session, grace.id), access.create_sign_in_link(session, grace.id)
    grace.disabled_at = dt.datetime.now(dt.UTC)
    session.flush()
    with pytest.raises(errors.Unauthenticated):
        access.verify_password(session, "grace", GOOD_PASSWORD)
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie)
    with pytest.raises(errors.Unauthenticated):
        access.use_sign_in_link(session, link)


@pytest.mark.parametrize("length", [11, 257])
def test_a_password_out_of_bounds_is_refused_with_the_bounds(
    session: orm.Session, project: models.Project, length: int
) -> None:
    with pytest.raises(errors.Invalid, match=f"{length} characters; use 12 to 256"):
        access.create_user(session, project.id, "x", "X", "viewer", "p" * length)


def test_names_in_use_and_unknown_roles_are_refused(
    session: orm.Session, project: models.Project, user: models.User
) -> None:
    with pytest.raises(errors.Conflict, match="'ada' is already in use"):
        access.create_user(session, project.id, "ada", "Another", "viewer")
    with pytest.raises(errors.Invalid, match="'boss'"):
        access.create_user(session, project.id, "bob", "Bob", "boss")
    with pytest.raises(errors.Conflict, match="acme"):
        access.create_project(session, "acme")
    with pytest.raises(errors.NotFound, match="nowhere"):
        access.project_of_slug(session, "nowhere")


# One-time links


def test_a_link_signs_in_once(session: orm.Session, user: models.User) -> None:
    token = access.create_sign_in_link(session, user.id)
    assert access.use_sign_in_link(session, token).id == user.id
    with pytest.raises(errors.Unauthenticated, match="already used or has expired"):
        access.use_sign_in_link(session, token)


def test_an_expired_link_signs_nobody_in(session: orm.Session, user: models.User) -> None:
    token = access.create_sign_in_link(session, user.id, dt.timedelta(seconds=-1))
    with pytest.raises(errors.Unauthenticated):
        access.use_sign_in_link(session, token)


@pytest.mark.parametrize("token", ["", "x" * 43, "\x00", "\ud800"])
def test_an_unknown_link_signs_nobody_in(session: orm.Session, user: models.User, token: str) -> None:
    with pytest.raises(errors.Unauthenticated):
        access.use_sign_in_link(session, token)


def test_of_many_clicks_at_once_one_signs_in(committed: str) -> None:
    with db.transaction() as session:
        user = access.create_user(session, factories.project(session), "ada", "Ada", "viewer")
        token = access.create_sign_in_link(session, user.id)
    start = threading.Barrier(6)

    def click() -> bool:
        start.wait()
        try:
            with db.transaction() as session:
                access.use_sign_in_link(session, token)
        except errors.Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(future.result() for future in [pool.submit(click) for _ in range(6)]) == [False] * 5 + [True]


# Console sessions


def seen(session: orm.Session, ago: dt.timedelta) -> None:
    session.execute(sa.update(models.ConsoleSession).values(last_seen_at=dt.datetime.now(dt.UTC) - ago))


def test_a_cookie_is_its_users_until_it_is_closed(
    session: orm.Session, project: models.Project, user: models.User
) -> None:
    cookie = access.open_console_session(session, user.id)
    found = access.principal_of_cookie(session, cookie)
    assert (found.user_id, found.project_id, found.role, found.actor) == (user.id, project.id, "reviewer", "user:ada")
    access.close_console_session(session, cookie)
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie)


@pytest.mark.parametrize("cookie", [None, "", "x" * 43, "\x00", "\ud800"])
def test_no_or_an_unknown_cookie_is_nobody(session: orm.Session, user: models.User, cookie: str | None) -> None:
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie)


def test_half_an_hour_without_a_page_ends_a_session(session: orm.Session, user: models.User) -> None:
    cookie = access.open_console_session(session, user.id)
    seen(session, dt.timedelta(minutes=29))
    access.principal_of_cookie(session, cookie)
    fresh = session.scalar(sa.select(models.ConsoleSession.last_seen_at))
    assert fresh is not None
    assert dt.datetime.now(dt.UTC) - fresh < dt.timedelta(minutes=1), "a page view keeps it open"
    seen(session, dt.timedelta(minutes=30, seconds=1))
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie)


def test_twelve_hours_end_a_session_however_busy(session: orm.Session, user: models.User) -> None:
    cookie = access.open_console_session(session, user.id)
    limit = session.scalar(sa.select(models.ConsoleSession.expires_at))
    assert limit is not None
    assert abs(limit - dt.datetime.now(dt.UTC) - dt.timedelta(hours=12)) < dt.timedelta(minutes=1)
    session.execute(sa.update(models.ConsoleSession).values(expires_at=dt.datetime.now(dt.UTC)))
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie)


def test_a_person_sees_only_projects_they_are_in(
    session: orm.Session, stranger: models.Project, user: models.User
) -> None:
    cookie = access.open_console_session(session, user.id)
    assert access.principal_of_cookie(session, cookie, "acme").project_slug == "acme"
    with pytest.raises(errors.Unauthenticated):
        access.principal_of_cookie(session, cookie, "stranger")


# The audit log


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_the_database_refuses_to_change_the_audit_log(
    session: orm.Session, project: models.Project, statement: str
) -> None:
    access.audit(session, "user:ada", "key.create", "key:1", project.id, scopes=["read"])
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), session.begin_nested():
        session.execute(sa.text(statement))
    entry = session.scalars(sa.select(models.AuditEntry)).one()
    assert (entry.actor, entry.action, entry.target, entry.details) == (
        "user:ada",
        "key.create",
        "key:1",
        {"scopes": ["read"]},
    )
