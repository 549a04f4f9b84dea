"""Counts per slice and bucket, added exactly once, in the transaction that completes the checks they count."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import tallies
from cmerwatch.shapes import BUCKET_SECONDS, DIMENSIONS, Decided
from cmerwatch.tallies import COLUMNS, KEY, Key, Tally

MARGIN_KEY = ("project_id", "dimension", "bucket", "value", "checker_id", "policy_version", "again")
GRAINS = {"5m": 300, "1h": 3600, "1d": 86_400}


def add(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Upsert the increments of exactly these checks into the tables of every grain, by slice and by margin."""
    _add(session, tallies.take(decided))


def settle(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Checks that were added as undecided, and now are decided under the policy version they were added with."""
    _add(session, tallies.take(decided, Tally.settle))


def move(session: orm.Session, before: Sequence[Decided], after: Sequence[Decided]) -> None:
    """The same checks from the keys they were added with to those they have now, in one upsert: one order of locks."""
    moved = tallies.take(before, Tally.leave)
    for key, one in tallies.take(after).items():
        moved.setdefault(key, Tally()).merge(one)
    _add(session, moved)


def add_again(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Checks that were counted under an earlier version already: beside the rollups, which count each output once."""
    _add(session, tallies.take(decided), again=True)


def _add(session: orm.Session, taken: Mapping[Key, Tally], again: bool = False) -> None:
    if taken:
        rows = json.dumps(tallies.rows(taken), default=str)
        session.execute(_UPSERT_AGAIN if again else _UPSERT, {"rows": rows})


# Nobody asks for scores but by slice.
_HISTS: dict[Sequence[str], Sequence[str]] = {KEY: ("sim_hist", "score_hist"), MARGIN_KEY: ("sim_hist",)}
_TYPES = {"project_id": "uuid", "bucket": "timestamptz", "checker_id": "int", "policy_version": "int"}
_EPOCH = "timestamptz '2000-01-01 00:00Z'"
_MARGIN_OF = "CROSS JOIN LATERAL (VALUES ('', ''), " + ", ".join(f"('{d}', {d})" for d in DIMENSIONS) + ")"
_MARGIN_OF += " AS margin (dimension, value)"


def _upsert(kind: str) -> str:
    """Increments per slice and 5 minutes into every grain, and what they add up to into the margins of every grain.

    One statement, because six of them would cost the pipeline a tenth of its speed. Each part goes through its table in
    the order of the key, so that no two completions ever wait for each other in a circle.
    """
    counts = ", ".join(f"coalesce({name}, 0) AS {name}" for name in COLUMNS)
    types = [f"{name} {_TYPES.get(name, 'text')}" for name in KEY] + [f"{name} int" for name in COLUMNS]
    types += ["sim_hist int[]", "score_hist int[]", "margins jsonb"]
    parts = []
    for grain, seconds in GRAINS.items():
        parts += [
            f"{kind}_{grain} AS ({_insert(f'{kind}_{grain}', KEY, 'slices', seconds)})",
            f"margins_{grain} AS ({_insert(f'margins_{grain}', MARGIN_KEY, 'sums', seconds)})",
        ]
    return f"""
        WITH counted AS MATERIALIZED (
            SELECT {", ".join(KEY)}, {counts}, sim_hist, score_hist, margins
            FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({", ".join(types)})
        ), slices AS (
            SELECT * FROM counted WHERE endpoint IS NOT NULL
        ), sums AS MATERIALIZED (
            SELECT counted.*, {str(kind == "redecided").lower()} AS again, margin.key AS dimension, margin.value
            FROM counted, jsonb_each_text(margins) AS margin
        ), {", ".join(parts)}
        SELECT
    """


def _widened(key: Sequence[str], source: str, seconds: int) -> str:
    """Rows of 5 minutes added up over wider buckets. A histogram alone in its bucket stays as it is, at no cost."""
    names = ", ".join(f"date_bin('{seconds} seconds', bucket, {_EPOCH}) AS bucket" if n == "bucket" else n for n in key)
    sums = [f"sum({name})::int AS {name}" for name in COLUMNS] + [f"cmw_sum({name}) AS {name}" for name in _HISTS[key]]
    return f"SELECT {names}, {', '.join(sums)} FROM {source} GROUP BY {', '.join(str(1 + i) for i in range(len(key)))}"


def _insert(table: str, key: Sequence[str], source: str, seconds: int) -> str:
    columns = ", ".join((*key, *COLUMNS, *_HISTS[key]))
    rows = source if seconds == BUCKET_SECONDS else f"({_widened(key, source, seconds)}) AS wider"
    sums = [f"{name} = t.{name} + excluded.{name}" for name in COLUMNS]
    sums += [f"{name} = cmw_add(t.{name}, excluded.{name})" for name in _HISTS[key]]
    names = ", ".join(key)
    return (
        f"INSERT INTO {table} AS t ({columns}) SELECT {columns} FROM {rows} ORDER BY {names} "
        f"ON CONFLICT ({names}) DO UPDATE SET {', '.join(sums)}"
    )


_UPSERT, _UPSERT_AGAIN = sa.text(_upsert("rollups")), sa.text(_upsert("redecided"))


def differences(session: orm.Session, project_id: uuid.UUID) -> list[str]:
    """Recount from events, checks and decisions, and margins from rows by slice; name every key that disagrees.

    Empty means exact.
    """
    wrong = []
    for grain, seconds in GRAINS.items():
        found = session.execute(_RECOUNT[grain], {"project": project_id, "width": seconds}).mappings().all()
        wrong += [_said(f"rollups_{grain}", row, row["endpoint"], _RECOUNTED) for row in found]
        found = session.execute(_SUM_AGAIN[grain], {"project": project_id}).mappings().all()
        wrong += [_said(f"margins_{grain}", row, f"{row['dimension']}={row['value']}", _SUMMED) for row in found]
    return wrong


def _said(table: str, row: sa.RowMapping, of: str, names: Sequence[str]) -> str:
    counts = ", ".join(f"{name} {row['r_' + name]}/{row['e_' + name]}" for name in names)
    return f"{table} {row['bucket']:%Y-%m-%d %H:%M} {of}: stored/rows {counts}"


_RECOUNTED = (
    "scored",
    "unscorable",
    "invalid_image",
    "model_error",
    "undecided",
    "n",
    "flagged",
    "low",
    "low_unconfirmed",
    "late_scored",
    "hist",
    "gated",
)


def _compared(names: Sequence[str]) -> tuple[str, str]:
    """What to select and what to look for, of stored rows `r` joined to recounted ones `e`."""
    pairs = ", ".join(f"coalesce(r.{c}, 0) AS r_{c}, coalesce(e.{c}, 0) AS e_{c}" for c in names)
    return pairs, " OR ".join(f"coalesce(r.{c}, 0) <> coalesce(e.{c}, 0)" for c in names)


def _recount(grain: str) -> sa.TextClause:
    group = ", ".join(("bucket", *DIMENSIONS, "checker_id"))
    sums = ", ".join(f"sum({c}) AS {c}" for c in _RECOUNTED if c not in ("hist", "gated"))
    pairs, differ = _compared(_RECOUNTED)
    return sa.text(
        f"""
        WITH r AS (
            SELECT {group}, {sums}, sum((SELECT sum(x) FROM unnest(sim_hist) x)) AS hist,
                sum((SELECT sum(x) FROM unnest(score_hist) x)) AS gated
            FROM rollups_{grain} WHERE project_id = :project GROUP BY {group}
        ), rows AS (
            SELECT date_bin(make_interval(secs => :width), ev.received_at, timestamptz '2000-01-01 00:00Z') AS bucket,
                {", ".join("ev." + d for d in DIMENSIONS)}, c.checker_id, c.outcome, ev.geo_p, ev.is_late, d.flagged,
                d.low_similarity, d.event_id IS NOT NULL AS decided, c.score, d.conf_threshold
            FROM checks c JOIN events ev ON ev.id = c.event_id
            LEFT JOIN LATERAL (
                -- The first decision is the one it was counted with; the others were made again, and counted apart.
                SELECT * FROM decisions WHERE event_id = c.event_id AND checker_id = c.checker_id
                ORDER BY policy_version LIMIT 1
            ) d ON true
            WHERE c.project_id = :project
        ), e AS (
            SELECT {group},
                count(*) FILTER (WHERE outcome = 'scored') AS scored,
                count(*) FILTER (WHERE outcome = 'unscorable') AS unscorable,
                count(*) FILTER (WHERE outcome = 'invalid_image') AS invalid_image,
                count(*) FILTER (WHERE outcome = 'model_error') AS model_error,
                count(*) FILTER (WHERE outcome = 'scored' AND NOT decided) AS undecided,
                count(*) FILTER (WHERE decided AND geo_p IS NOT NULL) AS n,
                count(*) FILTER (WHERE flagged) AS flagged,
                count(*) FILTER (WHERE low_similarity) AS low,
                count(*) FILTER (WHERE low_similarity AND geo_p IS NULL) AS low_unconfirmed,
                count(*) FILTER (WHERE outcome = 'scored' AND is_late) AS late_scored,
                count(*) FILTER (WHERE outcome = 'scored') AS hist,
                count(*) FILTER (WHERE score IS NOT NULL AND geo_p > conf_threshold) AS gated
            FROM rows GROUP BY {group}
        )
        SELECT {group}, {pairs} FROM r FULL JOIN e USING ({group}) WHERE {differ}
        """
    )


_RECOUNT = {grain: _recount(grain) for grain in GRAINS}

# A histogram as two numbers: how much it holds, and where.
_SUMMED = (*COLUMNS, "sims")
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in COLUMNS)
_WEIGHED = "SELECT sum(sim_hist[i]) + sum(sim_hist[i]::bigint * i) * 1000 FROM generate_subscripts(sim_hist, 1) AS i"
_SUMS += f", sum(({_WEIGHED})) AS sims"


def _by_slice(grain: str) -> str:
    """Rows by slice, those decided again among them."""
    return (
        f"(SELECT *, false AS again FROM rollups_{grain} UNION ALL SELECT *, true FROM redecided_{grain}) AS both_kinds"
    )


def _sum_again(grain: str) -> sa.TextClause:
    key = ", ".join(MARGIN_KEY[1:])
    pairs, differ = _compared(_SUMMED)
    return sa.text(
        f"""
        WITH r AS (
            SELECT {key}, {_SUMS} FROM margins_{grain} WHERE project_id = :project GROUP BY {key}
        ), e AS (
            SELECT {key}, {_SUMS} FROM {_by_slice(grain)} {_MARGIN_OF} WHERE project_id = :project GROUP BY {key}
        )
        SELECT {key}, {pairs} FROM r FULL JOIN e USING ({key}) WHERE {differ}
        """
    )


_SUM_AGAIN = {grain: _sum_again(grain) for grain in GRAINS}


def mend(session: orm.Session, days: int = 9) -> int:
    """Sum again the days of which margins do not hold what the rows by slice do; returns how many.

    There are none but while a worker of the release before margins still runs: it adds to the rows by slice alone.
    Nobody adds while a day is summed, so that nothing is missed and nothing counted twice.
    """
    found = session.execute(_STALE, {"days": days}).all()
    if found:
        session.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
        session.execute(sa.text("SET LOCAL statement_timeout = '10min'"))  # a day of a thousand slices takes one
        # Every transaction that adds begins with one of these two. Nor do two workers mend at once: the second finds
        # that nothing is left to do.
        session.execute(sa.text("LOCK TABLE rollups_5m, redecided_5m IN SHARE ROW EXCLUSIVE MODE"))
        found = session.execute(_STALE, {"days": days}).all()
    for row in found:
        for statement in _REBUILD:
            session.execute(statement, {"project": row.project_id, "day": row.day})
    return len(found)


def _stale() -> str:
    group = "project_id, bucket, checker_id, policy_version, again"
    sums = ", ".join(f"sum({name}) AS {name}" for name in COLUMNS)
    since = "bucket >= now() - make_interval(days => :days)"
    return f"""
        WITH r AS (
            SELECT {group}, {sums} FROM margins_1h WHERE dimension = '' AND {since} GROUP BY {group}
        ), e AS (
            SELECT {group}, {sums} FROM {_by_slice("1h")} WHERE {since} GROUP BY {group}
        )
        SELECT DISTINCT project_id, {_DAY} AS day FROM r FULL JOIN e USING ({group})
        WHERE {_compared(COLUMNS)[1]} ORDER BY project_id, day
    """


_DAY = f"date_bin('1 day', bucket, {_EPOCH})"
_STALE = sa.text(_stale())


def _added_up(key: Sequence[str]) -> str:
    return ", ".join([f"sum({name})" for name in COLUMNS] + [f"cmw_sum({name})" for name in _HISTS[key]])


def _rebuild() -> list[str]:
    """Of one day of one project."""
    of_day = "project_id = :project AND bucket >= :day AND bucket < :day + interval '1 day'"
    made = []
    for kind in ("rollups", "redecided"):
        rest = ", ".join((*DIMENSIONS, "checker_id", "policy_version"))
        made.append(f"DELETE FROM {kind}_1d WHERE {of_day}")
        made.append(
            f"INSERT INTO {kind}_1d (project_id, bucket, {rest}, {', '.join((*COLUMNS, *_HISTS[KEY]))}) "
            f"SELECT project_id, {_DAY} AS day, {rest}, {_added_up(KEY)} FROM {kind}_1h WHERE {of_day} "
            f"GROUP BY project_id, day, {rest}"
        )
    key = ", ".join(MARGIN_KEY)
    for grain in GRAINS:
        made.append(f"DELETE FROM margins_{grain} WHERE {of_day}")
        made.append(
            f"INSERT INTO margins_{grain} ({key}, {', '.join((*COLUMNS, *_HISTS[MARGIN_KEY]))}) "
            f"SELECT {key}, {_added_up(MARGIN_KEY)} FROM {_by_slice(grain)} {_MARGIN_OF} WHERE {of_day} GROUP BY {key}"
        )
    return made


_REBUILD = [sa.text(statement.replace(":day", "CAST(:day AS timestamptz)")) for statement in _rebuild()]
