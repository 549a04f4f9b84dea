"""Migrations on a real server: from nothing, up to date, down again, and by two starters at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration

from cmerwatch import errors, migrate, models
from tests import stack


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> stack.Shared:
    return stack.shared(tmp_path_factory)


@pytest.fixture
def url(servers: stack.Shared, tmp_path: Path) -> Iterator[str]:
    name = f"migrate_{tmp_path.parent.name}_{tmp_path.name}"[-60:]
    yield servers.empty(name)
    servers.drop(name)


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in found} - {"alembic_version"}


def test_an_empty_database_is_refused_with_the_command_that_helps(url: str) -> None:
    assert migrate.current(url) is None
    with pytest.raises(errors.StartRefused, match=r"revision none.*Run: cmerwatch migrate"):
        migrate.check(url)


def test_upgrade_makes_exactly_the_tables_of_the_models(url: str) -> None:
    migrate.upgrade(url)
    migrate.check(url)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert autogenerate.compare_metadata(context, models.Base.metadata) == []


def test_upgrade_twice_changes_nothing(url: str) -> None:
    migrate.upgrade(url)
    before = tables(url)
    migrate.upgrade(url)
    assert tables(url) == before


def test_down_to_the_bottom_and_up_again(url: str) -> None:
    migrate.upgrade(url)
    before = tables(url)
    migrate.downgrade(url, "base")
    assert tables(url) == set()
    migrate.upgrade(url)
    assert tables(url) == before


def test_two_starters_at_once_both_succeed(url: str) -> None:
    code = f"from cmerwatch import migrate; migrate.upgrade({url!r})"
    starters = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for starter in starters:
        _, said = starter.communicate(timeout=60)
        assert starter.returncode == 0, said.decode()
    migrate.check(url)


def test_a_starter_waits_for_another_that_migrates_however_long_that_takes(url: str) -> None:
    code = f"from cmerwatch import migrate; migrate.upgrade({url!r})"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    with psycopg.connect(url, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(%s)", [migrate._STARTERS_LOCK])
        second = subprocess.Popen([sys.executable, "-c", code])
        stack.wait_until(lambda: first.execute(waiting).fetchone() == (1,) or second.poll() is not None)
        assert second.poll() is None
        assert tables(url) == set()
    assert second.wait(60) == 0
    migrate.check(url)


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    migrate.upgrade(url)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from the future'")
    with pytest.raises(errors.StartRefused, match="migrated by a newer one"):
        migrate.check(url)


def test_a_server_that_does_not_answer_is_said_without_its_password() -> None:
    with pytest.raises(errors.Unavailable) as caught:
        migrate.current("postgresql://cmerwatch:hidden@127.0.0.1:1/cmerwatch")
    assert "127.0.0.1:1" in caught.value.message
    assert "hidden" not in caught.value.message


def test_clones_of_the_template_are_migrated_and_separate(servers: stack.Shared) -> None:
    first, second = servers.clone("clone_first"), servers.clone("clone_second")
    try:
        migrate.check(first)
        with psycopg.connect(first) as connection:
            connection.execute("CREATE TABLE only_here ()")
        assert "only_here" not in tables(second)
    finally:
        servers.drop("clone_first")
        servers.drop("clone_second")
