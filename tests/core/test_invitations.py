"""Places in a project that wait: taken once, by whoever proves to be the one who was meant."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, db, errors, invitations, models
from tests import factories

PASSWORD, WRONG = "correct horse battery", "wrong horse battery"


def logins(session: orm.Session, project: models.Project) -> set[str]:
    return {one.login for one in invitations.waiting(session, project.id)}


def test_a_wrong_password_and_a_disabled_account_leave_the_invitation_waiting(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    ada = access.create_user(session, stranger.id, "ada", "Ada", "viewer", password=PASSWORD)
    token = invitations.invite(session, project.id, "ada", "Ada", "reviewer")
    with pytest.raises(errors.Unauthenticated):
        invitations.accept(session, token, WRONG, None)
    ada.disabled_at = sa.func.now()
    session.flush()
    with pytest.raises(errors.Unauthenticated):
        invitations.accept(session, token, PASSWORD, None)
    assert logins(session, project) == {"ada"}
    assert session.get(models.Membership, (project.id, ada.id)) is None


def test_somebody_else_who_is_signed_in_cannot_take_it(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    access.create_user(session, stranger.id, "ada", "Ada", "viewer", password=PASSWORD)
    bob = access.create_user(session, stranger.id, "bob", "Bob", "viewer", password=WRONG)
    token = invitations.invite(session, project.id, "ada", "Ada", "admin")
    with pytest.raises(errors.Unauthenticated):
        invitations.accept(session, token, WRONG, bob.id)
    assert session.get(models.Membership, (project.id, bob.id)) is None


def test_a_second_invitation_voids_the_first_and_keeps_its_own_role(
    session: orm.Session, project: models.Project
) -> None:
    first = invitations.invite(session, project.id, "ada", "Ada", "admin")
    second = invitations.invite(session, project.id, "ada", "Ada", "viewer")
    with pytest.raises(errors.Unauthenticated):
        invitations.find(session, first)
    user = invitations.accept(session, second, PASSWORD, None)
    assert session.get_one(models.Membership, (project.id, user.id)).role == "viewer"


def test_no_more_wait_than_the_limit(
    session: orm.Session, project: models.Project, stranger: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invitations, "MOST", 2)
    invitations.invite(session, stranger.id, "eve", "Eve", "viewer")
    for login in ("ada", "bob", "bob"):
        invitations.invite(session, project.id, login, login, "viewer")
    with pytest.raises(errors.Conflict, match="withdraw one first"):
        invitations.invite(session, project.id, "cleo", "Cleo", "viewer")


def test_of_two_clicks_at_once_one_joins(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session, "acme")
        token = invitations.invite(session, project_id, "ada", "Ada", "reviewer")
    done: list[object] = []
    ready = threading.Barrier(4)

    def click() -> None:
        ready.wait()
        try:
            with db.transaction() as session:
                done.append(invitations.accept(session, token, PASSWORD, None).login)
        except Exception as error:
            done.append(type(error))

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, done)) == sorted(map(str, ["ada"] + [errors.Unauthenticated] * 3))
    with db.transaction() as session:
        members = sa.select(sa.func.count()).select_from(models.Membership)
        assert session.scalar(members.where(models.Membership.project_id == project_id)) == 1
