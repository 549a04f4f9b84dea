"""Runs migrations under timeouts and an advisory lock, so that starters never race and no lock hangs a deploy."""

from __future__ import annotations

import os
import re

import sqlalchemy as sa
from alembic import context

from cmerwatch import models

# Day partitions are made by cmerwatch.partitions, not by migrations.
_PARTITION = re.compile(r"_p\d{8}$")


def _is_ours(name: str | None, kind: str, *_: object) -> bool:
    return not (kind == "table" and name and _PARTITION.search(name))


def _run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        include_name=_is_ours,
        compare_type=True,
    )
    with context.begin_transaction():
        connection.execute(sa.text("SET LOCAL lock_timeout = '4s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7263045)"))
        context.run_migrations()


connectable = context.config.attributes.get("connection")
if connectable is not None:
    _run(connectable)
else:
    url = os.environ["CMERWATCH_DATABASE_URL"]  # only `make revision` comes this way
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        _run(connection)
