"""How Postgres goes about a chart: by index, and with as many rows as it shows."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import cmer_series, models


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in nodes(child))]


@pytest.fixture
def busy(session: orm.Session, project: models.Project) -> dt.datetime:
    """Thirty days of fifty endpoints with two versions each, as the rollups hold them; returns the end of them."""
    end = dt.datetime.combine(dt.datetime.now(dt.UTC).date(), dt.time(), dt.UTC)
    hours = (
        "(SELECT CAST(:end AS timestamptz) - h * interval '1 hour' AS hour FROM generate_series(1, 720) AS h) AS hours"
    )
    key = "project_id, bucket, checker_id, policy_version, scored, n, sim_hist"
    slices = (
        f"INSERT INTO rollups_1h ({key}, score_hist, endpoint, model_version, prompt_type, customer, model, "
        "environment) SELECT :project, hour, 1, 1, 1, 1, '[250:250]={1}', '{}', '/' || e, 'v' || v, '', '', '', '' "
        f"FROM {hours}, generate_series(1, 50) AS e, generate_series(1, 2) AS v"
    )
    margins = (
        f"INSERT INTO margins_1h ({key}, dimension, value, again) "
        f"SELECT :project, hour, 1, 1, 2, 2, '[250:250]={{2}}', dimension, value, false FROM {hours}, ("
        "SELECT '' AS dimension, '' AS value UNION ALL SELECT 'endpoint', '/' || e FROM generate_series(1, 50) AS e "
        "UNION ALL SELECT 'model_version', 'v' || v FROM generate_series(1, 2) AS v) AS m"
    )
    for statement in (slices, margins):
        session.execute(sa.text(statement), {"project": project.id, "end": end})
    session.execute(sa.text("ANALYZE rollups_1h"))
    session.execute(sa.text("ANALYZE margins_1h"))
    return end


@pytest.mark.parametrize(
    "group_by, filters, index, most",
    [
        ((), {}, "pk_margins_1h", 48),  # a point each, of 5 300 rows by slice
        (("model_version",), {}, "pk_margins_1h", 2 * 48),
        ((), {"endpoint": "/7"}, "pk_margins_1h", 48),
        (
            ("model_version",),
            {"endpoint": "/7"},
            "ix_rollups_1h_project_id_endpoint_bucket",
            2 * 48,
        ),  # by slice, but these alone
    ],
)
def test_a_chart_reads_as_many_rows_as_it_has_points(
    session: orm.Session,
    project: models.Project,
    busy: dt.datetime,
    group_by: tuple[str, ...],
    filters: dict[str, str],
    index: str,
    most: int,
) -> None:
    start = busy - dt.timedelta(days=2)
    asked = cmer_series._Asked("1h", group_by, tuple(filters), cmer_series._pieces(start, busy, 3600), "")
    values = {"project": project.id, "start": start, "end": busy, "width": 3600, "checker": 1, "most": None}
    values |= asked.ends() | {f"dim_{name}": value for name, value in filters.items()}
    statement = (
        f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, FORMAT JSON) {cmer_series._sql(asked, cmer_series._merged(asked))}"
    )
    read = nodes(session.execute(sa.text(statement), values).scalar_one()[0]["Plan"])
    assert index in {node.get("Index Name") for node in read}
    assert max(node["Actual Rows"] for node in read) == most
    assert sum(node.get("Rows Removed by Filter", 0) for node in read) == 0
