"""Brings a database to the tables this version needs, from a checkout's ./migrations or the copy in the wheel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command, config, script
from alembic.runtime import migration

from cmerwatch import errors

# One number for "someone is migrating this database"; any constant no other program uses will do.
_STARTERS_LOCK = 7263044


def folder() -> Path:
    """The checkout's first: an editable install also holds a copy in the package, as old as that install."""
    package = Path(__file__).parent
    for candidate in (package.parent / "migrations", package / "_migrations"):
        if (candidate / "env.py").exists():
            return candidate
    raise errors.StartRefused(f"No migrations next to {package}; install cmerwatch again.")


def head() -> str:
    """The revision this version of cmerwatch needs."""
    return script.ScriptDirectory(str(folder())).get_current_head() or ""


def current(database_url: str) -> str | None:
    """The revision the database has, None before the first."""
    with _connected(database_url) as connection:
        return migration.MigrationContext.configure(connection).get_current_revision()


def upgrade(database_url: str, revision: str = "head") -> None:
    """Move the database forward. A second starter waits for the first, then finds nothing to do."""
    with _alone(database_url), _connected(database_url) as connection:
        command.upgrade(_configuration(connection), revision)


def downgrade(database_url: str, revision: str) -> None:
    with _alone(database_url), _connected(database_url) as connection:
        command.downgrade(_configuration(connection), revision)


def check(database_url: str) -> None:
    """Raises StartRefused unless the database is at this version's revision."""
    found, wanted = current(database_url), head()
    if found == wanted:
        return
    known = {step.revision for step in script.ScriptDirectory(str(folder())).walk_revisions()}
    if found is not None and found not in known:
        raise errors.StartRefused(
            f"The database is at revision {found}, which this version of cmerwatch (needs {wanted}) does not know: "
            "it was migrated by a newer one. Start that version."
        )
    raise errors.StartRefused(
        f"The database is at revision {found or 'none'}, this version of cmerwatch needs {wanted}. "
        "Run: cmerwatch migrate"
    )


def _configuration(connection: sa.Connection) -> config.Config:
    made = config.Config()
    made.set_main_option("script_location", str(folder()).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


@contextlib.contextmanager
def _connected(database_url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(database_url, poolclass=sa.NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.OperationalError as error:
        raise errors.Unavailable(
            f"The database at {engine.url.render_as_string()} does not answer: {error.orig}"
        ) from error
    finally:
        engine.dispose()


@contextlib.contextmanager
def _alone(database_url: str) -> Iterator[None]:
    """Holds the starters' lock on a connection of its own: the migration's transactions end, this must not."""
    with _connected(database_url) as connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_STARTERS_LOCK)))
        connection.commit()
        yield  # the lock ends with the session, however that ends
