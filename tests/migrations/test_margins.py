"""What was counted before margins existed is in them afterwards, and goes back to how it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import migrate, rollups
from tests import stack

BEFORE = "1c7e94b0a3d6"
_ROW = """
INSERT INTO {table} (project_id, bucket, endpoint, prompt_type, customer, model, model_version, environment, checker_id,
    policy_version, scored, n, flagged, sim_hist, score_hist)
SELECT id, date_trunc('day', now(), 'UTC') + make_interval(hours => :hour), :endpoint, '', '', '', '', '',
    1, 1, :n, :n, 1, array_fill(0, ARRAY[300]) || CAST(:n AS int) || array_fill(0, ARRAY[99]),
    array_fill(0, ARRAY[99]) || CAST(:n AS int)
FROM projects
"""


@pytest.fixture
def url(servers: stack.Shared, worker_id: str) -> Iterator[str]:
    yield servers.empty(f"margins_{worker_id}")
    servers.drop(f"margins_{worker_id}")


def test_what_was_counted_before_is_summed_and_comes_back_whole(url: str) -> None:
    migrate.upgrade(url, BEFORE)
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)
    with orm.Session(engine) as session:
        project = sa.text("INSERT INTO projects (id, slug, name) VALUES (gen_random_uuid(), 'a', 'A') RETURNING id")
        project_id = session.execute(project).scalar_one()
        for table in ("rollups_5m", "rollups_1h", "redecided_5m", "redecided_1h"):
            for hour, endpoint, n in [(1, "/a", 3), (1, "/b", 4), (2, "/a", 5)]:
                session.execute(sa.text(_ROW.format(table=table)), {"hour": hour, "endpoint": endpoint, "n": n})
        session.commit()
        kept = session.execute(sa.text("SELECT * FROM rollups_1h ORDER BY bucket, endpoint")).all()
    migrate.upgrade(url)
    with orm.Session(engine) as session:
        wrong = rollups.differences(session, project_id)
        assert [one for one in wrong if one.startswith("margins")] == []
        found = session.execute(
            sa.text(
                "SELECT dimension, value, again, n, sim_hist, array_lower(sim_hist, 1) FROM margins_1d "
                "WHERE dimension IN ('', 'endpoint') ORDER BY 3, 1, 2"
            )
        ).all()
        assert [tuple(row) for row in found] == [
            (dimension, value, again, n, [n], 301)
            for again in (False, True)
            for dimension, value, n in [("", "", 12), ("endpoint", "/a", 8), ("endpoint", "/b", 4)]
        ]
        session.execute(sa.text("UPDATE rollups_1h SET sim_hist = cmw_add('{}', sim_hist)"))
        session.commit()
    migrate.downgrade(url, BEFORE)
    with orm.Session(engine) as session:
        assert session.execute(sa.text("SELECT * FROM rollups_1h ORDER BY bucket, endpoint")).all() == kept
    engine.dispose()
