"""Checkers and undecided checks of the release before keep their meaning when references move in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cmerwatch import ids, migrate, partitions
from tests import stack

BEFORE, AFTER = "9ad83ca7b682", "c41d0b7e5a93"


@pytest.fixture
def url(servers: stack.Shared, worker_id: str) -> Iterator[str]:
    yield servers.empty(f"references_{worker_id}")
    servers.drop(f"references_{worker_id}")


def test_a_bundles_checker_and_one_without_reference_keep_their_rows(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    migrate.upgrade(url)
    partitions.ensure_ahead(engine, 1)
    migrate.downgrade(url, BEFORE)
    project, event = uuid.uuid4(), ids.uuid7()
    with engine.begin() as connection:
        run = connection.execute
        run(sa.text("INSERT INTO projects (id, slug, name) VALUES (:p, 'p', 'p')"), {"p": project})
        run(
            sa.text(
                "INSERT INTO policy_versions (project_id, version, rules, created_by, created_at) VALUES "
                "(:p, 1, '[]', 'a', now() - interval '2 hours'), (:p, 2, '[]', 'a', now() + interval '1 hour')"
            ),
            {"p": project},
        )
        run(
            sa.text(
                "INSERT INTO checkers (name, label, is_demo, reference_version) "
                "VALUES ('bundled', 'b', false, 'r1'), ('bare', 'b', false, NULL)"
            )
        )
        run(
            sa.text(
                "INSERT INTO checks (event_id, checker_id, project_id, outcome, similarity) "
                "SELECT :e, id, :p, 'scored', 0.3 FROM checkers WHERE name = 'bare'"
            ),
            {"e": event, "p": project},
        )
    migrate.upgrade(url)
    with engine.begin() as connection:
        rows = connection.execute(sa.text("SELECT name, bundle_reference, reference_version FROM checkers ORDER BY 1"))
        assert [tuple(row) for row in rows] == [("bare", "", None), ("bundled", "r1", "r1")]
        assert connection.scalar(sa.text("SELECT policy_version FROM checks")) == 1
        connection.execute(
            sa.text(
                "INSERT INTO checkers (name, bundle_reference, label, is_demo) VALUES ('bundled', 'r2', 'b', false)"
            )
        )
    migrate.downgrade(url, BEFORE)
    with engine.connect() as connection:
        names = connection.scalars(sa.text("SELECT name FROM checkers ORDER BY 1")).all()
    assert names == ["bare", "bundled", "bundled@r2"]
