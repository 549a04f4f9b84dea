"""Sessions that commit at the edge, and calls that wait for the commit."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import access, db, models


def slugs() -> set[str]:
    with db.SessionLocal() as session:
        return set(session.scalars(sa.select(models.Project.slug)))


def test_a_transaction_commits_when_its_block_ends(session: orm.Session) -> None:
    with db.transaction() as inner:
        access.create_project(inner, "kept")
    assert slugs() == {"kept"}


def test_a_transaction_that_raises_leaves_nothing(session: orm.Session) -> None:
    def fail(inner: orm.Session) -> None:
        access.create_project(inner, "gone")
        raise RuntimeError

    with pytest.raises(RuntimeError), db.transaction() as inner:
        fail(inner)
    assert slugs() == set()


def test_calls_run_once_after_the_commit_in_order(session: orm.Session) -> None:
    said: list[object] = []
    with db.transaction() as inner:
        db.after_commit(inner, said.append, 1)
        db.after_commit(inner, said.append, 2)
        inner.flush()
        assert said == []
    assert said == [1, 2]
    inner.commit()
    assert said == [1, 2]


def test_calls_run_when_others_can_see_the_rows(committed: str) -> None:
    seen: list[set[str]] = []
    with db.transaction() as session:
        access.create_project(session, "there")
        db.after_commit(session, lambda: seen.append(slugs()))
    assert seen == [{"there"}]


def test_a_rollback_forgets_them(session: orm.Session) -> None:
    said: list[int] = []
    with db.SessionLocal() as inner:
        db.after_commit(inner, said.append, 1)
        inner.execute(sa.text("SELECT 1"))
        inner.rollback()
        inner.execute(sa.text("SELECT 1"))
        inner.commit()
    with db.SessionLocal() as inner:
        db.after_commit(inner, said.append, 2)
    assert said == [], "closed without a commit"


def test_a_savepoint_neither_runs_nor_forgets_them(session: orm.Session) -> None:
    """One bad event of a batch rolls a savepoint back; the hint for the good ones must still go out."""
    said: list[int] = []
    with db.transaction() as inner:
        db.after_commit(inner, said.append, 1)
        with inner.begin_nested():
            db.after_commit(inner, said.append, 2)
        assert said == [], "releasing a savepoint is not durable"
        with pytest.raises(sa.exc.DataError), inner.begin_nested():
            inner.execute(sa.text("SELECT 1/0"))
        assert said == []
    assert said == [1, 2]


def test_a_call_that_fails_costs_neither_the_commit_nor_the_next_call(
    session: orm.Session, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[int] = []

    def fail() -> None:
        raise ConnectionError("the broker is down")

    with caplog.at_level(logging.ERROR), db.transaction() as inner:
        access.create_project(inner, "kept")
        db.after_commit(inner, fail)
        db.after_commit(inner, said.append, 1)
    assert (slugs(), said) == ({"kept"}, [1])
    assert "after commit failed" in caplog.text


def test_every_connection_speaks_utc_and_has_its_timeouts(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        shown = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in ("timezone", "statement_timeout")}
        assert shown == {"timezone": "UTC", "statement_timeout": "30s"}
        assert connection.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "30s"


def test_an_error_of_the_database_does_not_quote_what_was_stored(session: orm.Session) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, session.begin_nested():
        session.execute(sa.text("SELECT 1/0 WHERE CAST(:text AS text) <> ''"), {"text": "a secret prompt"})
    assert "secret" not in str(caught.value)
