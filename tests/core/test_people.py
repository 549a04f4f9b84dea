"""People of a project: roles, passwords and sessions, and that no project is ever left without an admin."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, db, errors, models, people
from tests import stack

PASSWORD = "correct horse battery"
NEW = "a much better battery"


@pytest.fixture
def boss(session: orm.Session, project: models.Project) -> models.User:
    return access.create_user(session, project.id, "boss", "Boss", "admin")


@pytest.fixture
def ada(session: orm.Session, project: models.Project) -> models.User:
    return access.create_user(session, project.id, "ada", "Ada", "reviewer", PASSWORD)


def opens(session: orm.Session, cookie: str) -> bool:
    try:
        access.principal_of_cookie(session, cookie)
    except errors.Unauthenticated:
        return False
    return True


ENDS: list[Callable[[orm.Session, uuid.UUID, uuid.UUID], None]] = [
    lambda session, project, user: people.change_role(session, project, user, "lead"),
    lambda session, project, user: people.remove(session, project, user),
    lambda session, project, user: people.disable(session, user),
]


@pytest.mark.parametrize("end", ENDS, ids=["role", "remove", "disable"])
def test_the_last_admin_stays(session: orm.Session, project: models.Project, boss: models.User, end) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(errors.Conflict, match="last admin"):
        end(session, project.id, boss.id)
    second = access.create_user(session, project.id, "second", "Second", "admin")
    end(session, project.id, boss.id)
    with pytest.raises(errors.Conflict, match="last admin"):
        end(session, project.id, second.id)


def test_a_disabled_admin_does_not_count_as_one(
    session: orm.Session, project: models.Project, boss: models.User
) -> None:
    second = access.create_user(session, project.id, "second", "Second", "admin")
    people.disable(session, second.id)
    with pytest.raises(errors.Conflict, match="last admin"):
        people.remove(session, project.id, boss.id)


@pytest.mark.parametrize("end", ENDS, ids=["role", "remove", "disable"])
def test_of_two_admins_who_end_one_another_at_once_one_stays(committed: str, end) -> None:  # type: ignore[no-untyped-def]
    with db.transaction() as session:
        project_id = access.create_project(session, "acme").id
        pair = [access.create_user(session, project_id, name, name, "admin").id for name in ("a", "b")]
    start = threading.Barrier(2)

    def act(user_id: uuid.UUID) -> bool:
        start.wait()
        try:
            with db.transaction() as session:
                end(session, project_id, user_id)
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(act, pair)) == [False, True]


@pytest.mark.parametrize("end", ENDS[:2], ids=["role", "remove"])
def test_somebody_another_admin_is_just_removing_is_not_found(committed: str, end) -> None:  # type: ignore[no-untyped-def]
    with db.transaction() as session:
        project_id = access.create_project(session, "acme").id
        access.create_user(session, project_id, "boss", "Boss", "admin")
        user_id = access.create_user(session, project_id, "ada", "Ada", "reviewer").id
    raised: list[Exception] = []

    def act() -> None:
        try:
            with db.transaction() as session:
                end(session, project_id, user_id)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=act)
    with db.transaction() as session:
        people.remove(session, project_id, user_id)
        thread.start()
        stack.wait_until(lambda: not thread.is_alive() or stack.waits_for_a_lock())
    thread.join()
    assert [type(error) for error in raised] == [errors.NotFound]


def test_a_new_password_ends_every_session_and_link_and_the_old_password(
    session: orm.Session, ada: models.User
) -> None:
    cookies = [access.open_console_session(session, ada.id) for _ in range(2)]
    link = access.create_sign_in_link(session, ada.id)
    people.change_password(session, ada.id, PASSWORD, NEW)
    assert [opens(session, cookie) for cookie in cookies] == [False, False]
    with pytest.raises(errors.Unauthenticated):
        access.use_sign_in_link(session, link)
    with pytest.raises(errors.Unauthenticated):
        access.verify_password(session, "ada", PASSWORD)
    assert access.verify_password(session, "ada", NEW).id == ada.id


def test_who_has_no_password_sets_the_first_without_one(session: orm.Session, boss: models.User) -> None:
    people.change_password(session, boss.id, "", PASSWORD)
    assert access.verify_password(session, "boss", PASSWORD).id == boss.id
    with pytest.raises(errors.Invalid, match="not your current password"):
        people.change_password(session, boss.id, "", NEW)


def test_only_ones_own_open_sessions_are_listed_and_ended(
    session: orm.Session, ada: models.User, boss: models.User
) -> None:
    mine, other, theirs = (access.open_console_session(session, one.id) for one in (ada, ada, boss))
    old = access.open_console_session(session, ada.id)
    session.execute(
        sa.update(models.ConsoleSession)
        .where(models.ConsoleSession.token_hash == access.token_hash(old))
        .values(last_seen_at=sa.func.now() - dt.timedelta(hours=1))
    )
    listed = people.open_sessions(session, ada.id, mine)
    assert sorted(one.is_this for one in listed) == [False, True]
    [handle] = [one.handle for one in listed if not one.is_this]
    with pytest.raises(errors.NotFound):
        people.end_session(session, boss.id, handle)
    people.end_session(session, ada.id, handle)
    assert [opens(session, cookie) for cookie in (mine, other, theirs)] == [True, False, True]


def test_a_handle_does_not_tell_the_hash_that_is_kept(session: orm.Session, ada: models.User) -> None:
    cookie = access.open_console_session(session, ada.id)
    [listed] = people.open_sessions(session, ada.id, cookie)
    assert listed.handle not in access.token_hash(cookie).hex()


def test_an_admin_has_power_only_over_people_of_their_own_projects(
    session: orm.Session, project: models.Project, stranger: models.Project, boss: models.User, ada: models.User
) -> None:
    people.require_power_over(session, boss.id, ada.id)
    people.add(session, stranger.id, "ada", "", "viewer")
    with pytest.raises(errors.Forbidden, match="a project that you do not administer"):
        people.require_power_over(session, boss.id, ada.id)
    people.add(session, stranger.id, "boss", "", "viewer")
    with pytest.raises(errors.Forbidden):
        people.require_power_over(session, boss.id, ada.id)
    people.change_role(session, stranger.id, boss.id, "admin")
    people.require_power_over(session, boss.id, ada.id)


def test_somebody_of_another_project_is_nobody_here(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    eve = access.create_user(session, stranger.id, "eve", "Eve", "viewer")
    for act in (
        lambda: people.member(session, project.id, eve.id),
        lambda: people.change_role(session, project.id, eve.id, "admin"),
        lambda: people.remove(session, project.id, eve.id),
    ):
        with pytest.raises(errors.NotFound):
            act()


def test_what_ended_a_day_ago_is_purged_and_nothing_else(session: orm.Session, ada: models.User) -> None:
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    live, idle, over = (access.open_console_session(session, ada.id) for _ in range(3))
    fresh, used, expired = (access.create_sign_in_link(session, ada.id) for _ in range(3))

    def age(table: type[models.ConsoleSession] | type[models.SignInLink], token: str, **values: dt.datetime) -> None:
        session.execute(sa.update(table).where(table.token_hash == access.token_hash(token)).values(**values))

    age(models.ConsoleSession, idle, last_seen_at=long_ago)
    age(models.ConsoleSession, over, expires_at=long_ago)
    age(models.SignInLink, used, used_at=long_ago)
    age(models.SignInLink, expired, expires_at=long_ago)
    assert people.purge(session) == 4
    assert opens(session, live)
    assert access.use_sign_in_link(session, fresh).id == ada.id
    assert people.purge(session) == 0, "used a moment ago: kept for a day"
