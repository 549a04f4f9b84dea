"""Counts per slice and bucket, added exactly once, in the transaction that completes the checks they count."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import intervals
from cmerwatch.shapes import COUNTS, DIMENSIONS, Decided

COLUMNS = (*COUNTS, "late_scored", "late_n", "late_flagged")
KEY = ("project_id", "bucket", *DIMENSIONS, "checker_id", "policy_version")
TABLES = {"rollups_5m": 300, "rollups_1h": 3600}
LIVE, AGAIN = ("rollups_5m", "rollups_1h"), ("redecided_5m", "redecided_1h")

Key = tuple[Any, ...]


class Tally:
    """The additive columns of one key; histograms as {bin: count}, since a batch touches few of their 500 bins."""

    __slots__ = ("counts", "score_hist", "sim_hist")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COLUMNS, 0)
        self.sim_hist: Counter[int] = Counter()
        self.score_hist: Counter[int] = Counter()

    def count(self, decided: Decided) -> None:
        """Add one check. n counts scored events with a known confidence and a decision; low counts all low scores."""
        result, decision = decided.result, decided.decision
        event, counts = result.event, self.counts
        counts[result.outcome] += 1
        if result.outcome != "scored" or result.similarity is None:
            return
        self.sim_hist[intervals.sim_bin(result.similarity)] += 1
        counts["late_scored"] += event.is_late
        if decision.is_decided:
            self._count_decision(decided)
        else:
            counts["undecided"] += 1

    def settle(self, decided: Decided) -> None:
        """Move one check that was counted as undecided to what its decision says."""
        self.counts["undecided"] -= 1
        self._count_decision(decided)

    def leave(self, decided: Decided) -> None:
        """Take one check back that `count` had added."""
        one = Tally()
        one.count(decided)
        for name, value in one.counts.items():
            self.counts[name] -= value
        self.sim_hist.subtract(one.sim_hist)
        self.score_hist.subtract(one.score_hist)

    def _count_decision(self, decided: Decided) -> None:
        result, decision = decided.result, decided.decision
        event, counts = result.event, self.counts
        counts["low"] += decision.low_similarity
        if event.confidence is None:
            counts["low_unconfirmed"] += decision.low_similarity
            return
        counts["n"] += 1
        counts["flagged"] += decision.flagged
        counts["late_n"] += event.is_late
        counts["late_flagged"] += event.is_late and decision.flagged
        if event.confidence > decision.conf_threshold and result.score is not None:
            self.score_hist[intervals.score_bin(result.score)] += 1

    def merge(self, other: Tally) -> None:
        for name, value in other.counts.items():
            self.counts[name] += value
        self.sim_hist.update(other.sim_hist)
        self.score_hist.update(other.score_hist)


def add(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Upsert the increments of exactly these checks into the 5-minute and the hourly table."""
    _add(session, tally(decided))


def settle(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Checks that were added as undecided, and now are decided under the policy version they were added with."""
    _add(session, tally(decided, Tally.settle))


def move(session: orm.Session, before: Sequence[Decided], after: Sequence[Decided]) -> None:
    """The same checks from the keys they were added with to those they have now, in one upsert: one order of locks."""
    moved = tally(before, Tally.leave)
    for key, one in tally(after).items():
        moved.setdefault(key, Tally()).merge(one)
    _add(session, moved)


def add_again(session: orm.Session, decided: Sequence[Decided]) -> None:
    """Checks that were counted under an earlier version already: beside the rollups, which count each output once."""
    _add(session, tally(decided), AGAIN)


def _add(session: orm.Session, five: dict[Key, Tally], tables: tuple[str, str] = LIVE) -> None:
    hourly: dict[Key, Tally] = {}
    for key, one in five.items():
        hourly.setdefault((key[0], _hour(key[1]), *key[2:]), Tally()).merge(one)
    _upsert(session, tables[0], five)
    _upsert(session, tables[1], hourly)


def tally(decided: Iterable[Decided], count: Callable[[Tally, Decided], None] = Tally.count) -> dict[Key, Tally]:
    found: dict[Key, Tally] = {}
    for one in decided:
        event = one.result.event
        key = (event.project_id, event.bucket, *event.slice, one.checker_id, one.decision.policy_version)
        of_key = found.get(key)
        if of_key is None:
            of_key = found[key] = Tally()
        count(of_key, one)
    return found


def _hour(bucket: dt.datetime) -> dt.datetime:
    return bucket.replace(minute=0, second=0, microsecond=0)


_SUMS = ", ".join(f"{c} = t.{c} + excluded.{c}" for c in COLUMNS)
_COLUMNS = ", ".join((*KEY, *COLUMNS, "sim_hist", "score_hist"))
_TYPES = ", ".join(
    ["project_id uuid", "bucket timestamptz"]
    + [f"{d} text" for d in DIMENSIONS]
    + ["checker_id int", "policy_version int"]
    + [f"{c} int" for c in COLUMNS]
    + ["sim_hist int[]", "score_hist int[]"]
)


def _statement(table: str) -> sa.TextClause:
    """ORDER BY the key: every worker locks rollup rows in one order, so two completions never deadlock."""
    return sa.text(
        f"INSERT INTO {table} AS t ({_COLUMNS}) "
        f"SELECT {_COLUMNS} FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({_TYPES}) "
        f"ORDER BY {', '.join(KEY)} "
        f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {_SUMS}, "
        "sim_hist = cmw_add(t.sim_hist, excluded.sim_hist), "
        "score_hist = cmw_add(t.score_hist, excluded.score_hist)"
    )


_STATEMENTS = {table: _statement(table) for table in (*LIVE, *AGAIN)}


def _upsert(session: orm.Session, table: str, tallies: dict[Key, Tally]) -> None:
    if not tallies:
        return
    rows = [
        dict(zip(KEY, key, strict=True))
        | one.counts
        | {
            "sim_hist": _array(one.sim_hist, intervals.SIM_BINS),
            "score_hist": _array(one.score_hist, intervals.SCORE_BINS),
        }
        for key, one in tallies.items()
    ]
    session.execute(_STATEMENTS[table], {"rows": json.dumps(rows, default=str)})


def _array(hist: Counter[int], bins: int) -> str:
    """As Postgres writes an array: one string is read many times faster than a JSON list of as many numbers."""
    dense = ["0"] * bins
    for at, count in hist.items():
        dense[at] = str(count)
    return "{" + ",".join(dense) + "}"


def differences(session: orm.Session, project_id: uuid.UUID) -> list[str]:
    """Recount from events, checks and decisions; name every rollup key that disagrees. Empty means exact."""
    wrong = []
    for table, seconds in TABLES.items():
        for row in session.execute(_RECOUNT[table], {"project": project_id, "width": seconds}).mappings():
            counts = ", ".join(f"{c} {row['r_' + c]}/{row['e_' + c]}" for c in _RECOUNTED)
            wrong.append(f"{table} {row['bucket']:%Y-%m-%d %H:%M} {row['endpoint']}: rollup/rows {counts}")
    return wrong


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


def _recount(table: str) -> sa.TextClause:
    group = ", ".join(("bucket", *DIMENSIONS, "checker_id"))
    sums = ", ".join(f"sum({c}) AS {c}" for c in _RECOUNTED if c not in ("hist", "gated"))
    pairs = ", ".join(f"coalesce(r.{c}, 0) AS r_{c}, coalesce(e.{c}, 0) AS e_{c}" for c in _RECOUNTED)
    differ = " OR ".join(f"coalesce(r.{c}, 0) <> coalesce(e.{c}, 0)" for c in _RECOUNTED)
    return sa.text(
        f"""
        WITH r AS (
            SELECT {group}, {sums}, sum((SELECT sum(x) FROM unnest(sim_hist) x)) AS hist,
                sum((SELECT sum(x) FROM unnest(score_hist) x)) AS gated
            FROM {table} WHERE project_id = :project GROUP BY {group}
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


_RECOUNT = {table: _recount(table) for table in TABLES}
