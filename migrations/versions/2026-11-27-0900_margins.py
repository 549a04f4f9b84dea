"""Sums over slices, and per day: a chart of a thousand slices reads as many rows as it has points.

One change, reversible, and never one that breaks the release that is still running: that one goes on adding to the
tables it knows, and what it added meanwhile is found and summed within the hour by every worker of this release.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "4be1a7c09d35"
down_revision = "1c7e94b0a3d6"
branch_labels = None
depends_on = None

DIMENSIONS = ("endpoint", "prompt_type", "customer", "model", "model_version", "environment")
COUNTS = (
    "scored", "unscorable", "invalid_image", "model_error", "undecided", "n", "flagged", "low", "low_unconfirmed",
    "late_scored", "late_n", "late_flagged",
)  # fmt: skip
BINS = {"sim_hist": 400, "score_hist": 100}
DAY = "date_bin('1 day', bucket, timestamptz '2000-01-01 00:00Z')"

# Histograms begin and end with the first and the last bin that was ever counted: `b` is read under its own subscripts,
# and `a` grows to either side, with NULL between. Nothing changes for whole ones, as the release before writes them.
_ADD = """
CREATE OR REPLACE FUNCTION cmw_add(a int[], b int[]) RETURNS int[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS
$$
BEGIN
    FOR i IN coalesce(array_lower(b, 1), 1)..coalesce(array_upper(b, 1), 0) LOOP
        IF b[i] <> 0 THEN a[i] := coalesce(a[i], 0) + b[i]; END IF;
    END LOOP;
    RETURN a;
END
$$
"""

# Its function is strict and it begins with NULL, so a group of one row is that row's histogram, at no cost.
_SUM = "CREATE AGGREGATE cmw_sum(int[]) (SFUNC = cmw_add, STYPE = int[])"

_ADD_BEFORE = """
CREATE OR REPLACE FUNCTION cmw_add(a int[], b int[]) RETURNS int[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS
$$
DECLARE y int; i int := 0;
BEGIN
    FOREACH y IN ARRAY b LOOP
        i := i + 1;
        IF y <> 0 THEN a[i] := a[i] + y; END IF;
    END LOOP;
    RETURN a;
END
$$
"""


def _table(table: str, *key: sa.Column, hists: dict[str, int]) -> list[sa.schema.SchemaItem]:
    counts = [sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in COUNTS]
    arrays = [sa.Column(name, postgresql.ARRAY(sa.Integer()), nullable=False) for name in hists]
    return [*key, *counts, *arrays, sa.PrimaryKeyConstraint(*(one.name for one in key), name=op.f(f"pk_{table}"))]


def _not_null(name: str, type_: sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, type_, autoincrement=False, nullable=False)


def _by_slice(table: str) -> list[sa.schema.SchemaItem]:
    return _table(
        table,
        _not_null("project_id", sa.Uuid()),
        _not_null("bucket", sa.DateTime(timezone=True)),
        *(_not_null(name, sa.Text()) for name in DIMENSIONS),
        _not_null("checker_id", sa.Integer()),
        _not_null("policy_version", sa.Integer()),
        hists=BINS,
    )


def _by_margin(table: str) -> list[sa.schema.SchemaItem]:
    return _table(
        table,
        _not_null("project_id", sa.Uuid()),
        _not_null("dimension", sa.Text()),
        _not_null("bucket", sa.DateTime(timezone=True)),
        _not_null("value", sa.Text()),
        _not_null("checker_id", sa.Integer()),
        _not_null("policy_version", sa.Integer()),
        _not_null("again", sa.Boolean()),
        hists={"sim_hist": BINS["sim_hist"]},
    )


def _summed(*hists: str) -> str:
    return ", ".join([f"sum({name})" for name in COUNTS] + [f"cmw_sum({name})" for name in hists])


def _fill() -> list[str]:
    """Of what was counted until now. Histograms are trimmed first: most add up a tenth of their bins then."""
    columns = ", ".join((*COUNTS, "sim_hist"))
    dims, rest = ", ".join(DIMENSIONS), "checker_id, policy_version"
    trimmed = ", ".join(f"cmw_add('{{}}', {name}) AS {name}" for name in BINS)
    made = []
    for kind in ("rollups", "redecided"):
        made += [
            f"CREATE TEMPORARY TABLE {kind}_{grain}_trimmed ON COMMIT DROP AS "
            f"SELECT project_id, bucket, {dims}, {rest}, {', '.join(COUNTS)}, {trimmed} FROM {kind}_{grain}"
            for grain in ("5m", "1h")
        ]
        made.append(
            f"INSERT INTO {kind}_1d (project_id, bucket, {dims}, {rest}, {columns}, score_hist) "
            f"SELECT project_id, {DAY} AS day, {dims}, {rest}, {_summed(*BINS)} FROM {kind}_1h_trimmed "
            f"GROUP BY project_id, day, {dims}, {rest}"
        )
    for grain, suffix in (("5m", "_trimmed"), ("1h", "_trimmed"), ("1d", "")):
        for kind, again in (("rollups", "false"), ("redecided", "true")):
            for dimension in ("", *DIMENSIONS):
                made.append(
                    f"INSERT INTO margins_{grain} (project_id, dimension, bucket, value, {rest}, again, {columns}) "
                    f"SELECT project_id, '{dimension}', bucket, {dimension or chr(39) * 2} AS of, {rest}, {again}, "
                    f"{_summed('sim_hist')} FROM {kind}_{grain}{suffix} GROUP BY project_id, bucket, of, {rest}"
                )
    return made


def upgrade() -> None:
    # No row may be added between what is summed and the commit; the release that runs waits for as long as this takes.
    op.execute("LOCK TABLE rollups_5m, rollups_1h, redecided_5m, redecided_1h IN SHARE MODE")
    op.execute(_ADD)
    op.execute(_SUM)
    op.create_table("rollups_1d", *_by_slice("rollups_1d"), postgresql_with={"fillfactor": 60})
    op.create_table("redecided_1d", *_by_slice("redecided_1d"))
    for grain in ("5m", "1h", "1d"):
        op.create_table(f"margins_{grain}", *_by_margin(f"margins_{grain}"), postgresql_with={"fillfactor": 60})
    for statement in _fill():
        op.execute(statement)
    for name in ("endpoint", "customer"):
        op.create_index(op.f(f"ix_rollups_1h_project_id_{name}_bucket"), "rollups_1h", ["project_id", name, "bucket"])


def downgrade() -> None:
    for name in ("endpoint", "customer"):
        op.drop_index(op.f(f"ix_rollups_1h_project_id_{name}_bucket"), table_name="rollups_1h")
    for table in ("margins_1d", "margins_1h", "margins_5m", "redecided_1d", "rollups_1d"):
        op.drop_table(table)
    for table in ("rollups_5m", "rollups_1h", "redecided_5m", "redecided_1h"):
        # Whole again: the function of before finds bins by counting from the first.
        op.execute(
            f"UPDATE {table} SET sim_hist = cmw_add(array_fill(0, ARRAY[400]), sim_hist), "
            "score_hist = cmw_add(array_fill(0, ARRAY[100]), score_hist)"
        )
    op.execute("DROP AGGREGATE cmw_sum(int[])")
    op.execute(_ADD_BEFORE)
