"""The one way to the database: engines made by edges, sessions edges commit, calls that wait for the commit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, LiteralString

import psycopg
import sqlalchemy as sa
from sqlalchemy import event, orm, pool

log = logging.getLogger(__name__)

PING_AFTER_SECONDS = 1.0

SessionLocal: orm.sessionmaker[orm.Session] = orm.sessionmaker(expire_on_commit=False)


def configure(url: str, *, pool_size: int = 10, statement_timeout_ms: int = 30_000) -> sa.Engine:
    """Make the engine and bind SessionLocal to it. Called once by each edge at its start, never at import.

    idle_in_transaction_session_timeout: a forgotten transaction pins the xmin horizon and slows the claim query.
    """
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=5,  # a busy pool is told to the client with 503, who waits better than we do
        hide_parameters=True,  # an error's text must not carry prompts and outputs into a log
        connect_args={
            "connect_timeout": 5,
            "options": f"-c statement_timeout={statement_timeout_ms} "
            "-c idle_in_transaction_session_timeout=30000 -c timezone=UTC "
            "-c synchronous_commit=on",  # a 202 must not inherit a server that answers before its disk does
        },
    )
    event.listen(engine, "checkin", _note_idle)
    event.listen(engine, "checkout", _ping_if_idle)
    SessionLocal.configure(bind=engine)
    return engine


def _note_idle(connection: object, record: pool.ConnectionPoolEntry) -> None:
    record.info["idle_since"] = time.monotonic()


def _ping_if_idle(connection: Any, record: pool.ConnectionPoolEntry, proxy: object) -> None:
    """Of a connection that lay idle, ask whether it still lives; a busy one was asked by its last query.

    What pool_pre_ping does, without its round trip per transaction, which is a fifth of an ingest's.
    """
    if time.monotonic() - record.info.get("idle_since", time.monotonic()) < PING_AFTER_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except psycopg.Error as error:
        raise sa.exc.DisconnectionError from error  # the pool makes a new one and tries again


@contextlib.contextmanager
def transaction() -> Iterator[orm.Session]:
    """A session that commits when the block ends and rolls back when it raises: for edges only."""
    with SessionLocal() as session:
        yield session
        session.commit()


def fetch(session: orm.Session, statement: LiteralString, values: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """The rows of one statement in the driver's own terms (`%(name)s`), in the session's transaction.

    Past SQLAlchemy's compiler, types and results, which cost the one statement of an ingest as much as itself; values
    are text for the same reason, so the statement casts them. Raises what SQLAlchemy would.
    """
    connection = session.connection()
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        return driver.execute(statement, values).fetchall()
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            None, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=driver.closed
        ) from error


def after_commit(session: orm.Session, call: Callable[..., object], *args: Any) -> None:
    """Run `call(*args)` once this session's transaction is durable; its rollback forgets it.

    The rollback of a savepoint does not: hints for what was stored beside it must still go out.
    """
    session.info.setdefault("after_commit", []).append((call, args))


@event.listens_for(orm.Session, "after_commit")
def _run_after_commit(session: orm.Session) -> None:
    if session.in_nested_transaction():
        return  # releasing a savepoint is not durable yet
    for call, args in session.info.pop("after_commit", []):
        try:
            call(*args)
        except Exception:
            # A hint that fails costs latency only: polling finds the row.
            log.exception("a call after commit failed")


@event.listens_for(orm.Session, "after_rollback")
def _drop_after_rollback(session: orm.Session) -> None:
    if not session.in_nested_transaction():
        session.info.pop("after_commit", None)
