"""Counts are right for each kind of check, add up in any order, and equal a recount from the rows."""

from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import orm

from cmerwatch import cmer_series, db, intervals, models, rollups, tallies
from cmerwatch.shapes import Decided, Slice
from tests import factories

CHECKS = st.builds(
    factories.decided,
    score=st.floats(0, 1),
    similarity=st.floats(-1, 1),
    is_calibrated=st.booleans(),
    confidence=st.none() | st.floats(0, 1),
    is_late=st.booleans(),
    outcome=st.sampled_from(["scored", "scored", "unscorable", "invalid_image", "model_error"]),
    slice=st.sampled_from([Slice("/a"), Slice("/b"), Slice("/a", customer="c")]),
)


def counted(*checks: Decided) -> dict[str, int]:
    """What is not 0."""
    [one] = tallies.take(checks).values()
    return {name: value for name, value in one.counts.items() if value}


def plain(taken: dict[tallies.Key, tallies.Tally]) -> dict[tallies.Key, object]:
    return {key: (one.counts, one.sim_hist, one.score_hist) for key, one in taken.items()}


# One check


def test_sure_and_low_is_flagged() -> None:
    assert counted(factories.decided(0.01)) == {"scored": 1, "n": 1, "flagged": 1, "low": 1}


def test_sure_and_high_counts_in_n_only() -> None:
    assert counted(factories.decided(0.5)) == {"scored": 1, "n": 1}


def test_unsure_and_low_is_low_and_not_flagged() -> None:
    assert counted(factories.decided(0.01, confidence=0.5)) == {"scored": 1, "n": 1, "low": 1}


def test_an_unknown_confidence_counts_in_uer_only() -> None:
    assert counted(factories.decided(0.01, confidence=None)) == {"scored": 1, "low": 1, "low_unconfirmed": 1}
    assert counted(factories.decided(0.5, confidence=None)) == {"scored": 1}


def test_both_thresholds_are_strict() -> None:
    assert "flagged" not in counted(factories.decided(0.05))
    assert "flagged" not in counted(factories.decided(0.01, confidence=0.8))
    assert "flagged" in counted(factories.decided(0.0499999, confidence=0.8000001))


def test_while_calibrating_a_check_is_scored_and_undecided() -> None:
    assert counted(factories.decided(None, is_calibrated=False)) == {"scored": 1, "undecided": 1}


def test_what_was_not_scored_is_counted_apart() -> None:
    for outcome in ("unscorable", "invalid_image", "model_error"):
        assert counted(factories.decided(outcome=outcome)) == {outcome: 1}


def test_late_events_are_counted_and_marked() -> None:
    late = {"late_scored": 1, "late_n": 1, "late_flagged": 1}
    assert counted(factories.decided(0.01, is_late=True)) == {"scored": 1, "n": 1, "flagged": 1, "low": 1} | late


def test_only_gated_events_are_in_the_histogram_of_scores() -> None:
    """CMER at any other score threshold is read from it, for the confidence threshold in force."""
    [one] = tallies.take(
        [factories.decided(0.015), factories.decided(0.015, confidence=0.5), factories.decided(0.015, confidence=None)]
    ).values()
    assert one.score_hist[1] == one.score_hist.total() == 1
    assert one.sim_hist.total() == 3


# Adding


@given(st.lists(CHECKS, max_size=30))
def test_histograms_hold_every_scored_check_once(checks: list[Decided]) -> None:
    for one in tallies.take(checks).values():
        counts = one.counts
        assert one.sim_hist.total() == counts["scored"]
        assert one.score_hist.total() <= counts["n"] <= counts["scored"] - counts["undecided"]
        assert counts["flagged"] <= counts["low"] <= counts["scored"]
        assert all(0 <= at < intervals.SIM_BINS for at in one.sim_hist)


@given(st.lists(st.lists(CHECKS, max_size=10), min_size=1, max_size=4))
def test_merging_in_any_grouping_is_counting_at_once(batches: list[list[Decided]]) -> None:
    forward: dict[tallies.Key, tallies.Tally] = {}
    for batch in batches:
        for key, one in tallies.take(batch).items():
            forward.setdefault(key, tallies.Tally()).merge(one)
    backward: dict[tallies.Key, tallies.Tally] = {}
    for batch in reversed(batches):
        for key, one in tallies.take(batch).items():
            merged = tallies.Tally()
            merged.merge(one)
            merged.merge(backward.get(key, tallies.Tally()))
            backward[key] = merged
    at_once = plain(tallies.take([check for batch in batches for check in batch]))
    assert plain(forward) == plain(backward) == at_once


def filled(session: orm.Session, table: str) -> dict[str, dict[int, int]]:
    """What the bins of a table's histograms add up to; of margins those over everything."""
    found = {}
    for name in ("sim_hist",) if table.startswith("margins") else ("sim_hist", "score_hist"):
        of = "dimension = ''" if table.startswith("margins") else "true"
        bins = f"SELECT i, {name}[i] AS n FROM {table}, generate_subscripts({name}, 1) AS i WHERE {of}"
        rows = session.execute(sa.text(f"SELECT i, sum(n) FROM ({bins}) AS b GROUP BY i HAVING sum(n) > 0 ORDER BY i"))
        found[name] = {at: int(count) for at, count in rows}
    return found


def test_the_hour_is_the_sum_of_its_buckets(session: orm.Session, project: models.Project) -> None:
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    for minutes, score in [(0, 0.01), (4, 0.5), (5, 0.01), (59, 0.9)]:
        factories.ingest(session, project.id, now + dt.timedelta(minutes=minutes))
        factories.check_all(session, score)
    fives = session.scalars(sa.select(models.Rollup5m).order_by(models.Rollup5m.bucket)).all()
    [hour] = session.scalars(sa.select(models.Rollup1h))
    assert [(row.bucket - now, row.n, row.flagged) for row in fives] == [
        (dt.timedelta(minutes=0), 2, 1),
        (dt.timedelta(minutes=5), 1, 1),
        (dt.timedelta(minutes=55), 1, 0),
    ]
    assert (hour.bucket, hour.n, hour.flagged) == (now, 4, 2)
    [day] = session.scalars(sa.select(models.Rollup1d))
    assert (day.bucket, day.n, day.flagged) == (now.replace(hour=0), 4, 2)
    bins = {table: filled(session, table) for table in ("rollups_5m", "rollups_1h", "rollups_1d", "margins_1d")}
    assert bins["rollups_1h"] == {"sim_hist": {261: 4}, "score_hist": {2: 2, 51: 1, 91: 1}}
    assert bins["rollups_5m"] == bins["rollups_1d"] == bins["rollups_1h"]
    assert bins["margins_1d"] == {"sim_hist": {261: 4}}
    assert rollups.differences(session, project.id) == []


def test_each_slice_has_a_row_of_its_own(session: orm.Session, project: models.Project) -> None:
    for fields in ({"endpoint": "/a"}, {"endpoint": "/a", "customer": "c"}, {"endpoint": "/a", "model_version": "2"}):
        factories.ingest(session, project.id, **fields)
    factories.check_all(session)
    keys = session.execute(sa.select(models.Rollup5m.customer, models.Rollup5m.model_version)).all()
    assert sorted(map(tuple, keys)) == [("", ""), ("", "2"), ("c", "")]


def test_completions_that_share_keys_in_opposite_orders_never_deadlock(committed: str) -> None:
    """A third holds the middle key until both have begun: in an order of their own each would hold the other's next."""
    checks = [factories.decided(slice=Slice(endpoint)) for endpoint in ("/a", "/m", "/z")]

    def add(order: int) -> None:
        with db.transaction() as session:
            rollups.add(session, checks[::order])

    add(1)
    with db.SessionLocal() as third, ThreadPoolExecutor(2) as pool:
        third.execute(sa.text("SELECT FROM rollups_5m WHERE endpoint = '/m' FOR UPDATE"))
        adding = [pool.submit(add, order) for order in (1, -1)]
        factories.wait_for_locks(2)
        third.rollback()
        for one in adding:
            one.result(20)
    with db.transaction() as session:
        assert session.scalars(sa.select(models.Rollup5m.scored)).all() == [3, 3, 3]


# The recount


def test_a_recount_names_what_disagrees(session: orm.Session, project: models.Project) -> None:
    factories.ingest_many(session, project.id, 3)
    factories.check_all(session)
    assert rollups.differences(session, project.id) == []
    session.execute(sa.update(models.Rollup5m).values(flagged=models.Rollup5m.flagged + 1))
    said = rollups.differences(session, project.id)
    assert "rollups_5m" in said[0]
    assert "flagged 1/0" in said[0]
    assert [one.split()[0] for one in said[1:]] == ["margins_5m"] * 7, "nor do margins hold what the rows now do"


def test_a_recount_misses_neither_rows_without_rollups_nor_rollups_without_rows(
    session: orm.Session, project: models.Project
) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session)
    session.execute(sa.delete(models.Rollup1h))
    assert {said.split()[0] for said in rollups.differences(session, project.id)} == {"rollups_1h", "margins_1h"}
    session.execute(sa.delete(models.Margin1h))
    session.execute(sa.delete(models.Check))
    assert [said.split()[0] for said in rollups.differences(session, project.id)] == ["rollups_5m", "rollups_1d"]


def test_a_recount_sees_one_too_many_in_a_histogram(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id)
    factories.check_all(session)
    session.execute(sa.text("UPDATE rollups_1d SET sim_hist[261] = sim_hist[261] + 1"))
    assert rollups.differences(session, project.id)[0].startswith("rollups_1d")
    session.execute(sa.text("UPDATE rollups_1d SET sim_hist[261] = sim_hist[261] - 1"))
    assert rollups.differences(session, project.id) == []
    session.execute(sa.text("UPDATE margins_1d SET sim_hist = '[260:261]={1,0}' WHERE dimension = ''"))
    [said] = rollups.differences(session, project.id)
    assert "margins_1d" in said, "as many, in another bin"


def test_two_checkers_are_counted_apart(session: orm.Session, project: models.Project) -> None:
    first, second = factories.checker(session, "clip:a"), factories.checker(session, "clip:b")
    factories.ingest(session, project.id)
    factories.check_all(session, checker_id=first)
    factories.ingest(session, project.id)
    factories.check_all(session, checker_id=second)
    rows = session.execute(sa.select(models.Rollup5m.checker_id, models.Rollup5m.scored)).all()
    assert sorted(map(tuple, rows)) == [(first, 1), (second, 1)]
    assert rollups.differences(session, project.id) == []


# Margins: the sums over slices


def test_margins_are_what_the_rows_by_slice_add_up_to(session: orm.Session, project: models.Project) -> None:
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    for hours, endpoint, customer, score in [(0, "/a", "x", 0.01), (1, "/a", "y", 0.5), (25, "/b", "x", 0.01)]:
        factories.ingest(session, project.id, now - dt.timedelta(hours=hours), endpoint=endpoint, customer=customer)
        factories.check_all(session, score)
    row = models.Margin1h
    found = session.execute(
        sa.select(row.dimension, row.value, sa.func.sum(row.n), sa.func.sum(row.flagged))
        .group_by(row.dimension, row.value)
        .where(row.dimension.in_(["", "endpoint", "customer", "model"]))
    ).all()
    assert sorted(map(tuple, found)) == [
        ("", "", 3, 2),
        ("customer", "x", 2, 2),
        ("customer", "y", 1, 0),
        ("endpoint", "/a", 2, 1),
        ("endpoint", "/b", 1, 1),
        ("model", "", 3, 2),
    ]
    assert rollups.differences(session, project.id) == []


def test_one_sum_serves_every_margin_over_the_same_slices() -> None:
    """Three slices of one customer: nothing is summed but they, and the two that share an endpoint."""
    slices = [Slice("/a", "one", "c"), Slice("/a", "two", "c"), Slice("/b", "three", "c")]
    rows = tallies.rows(tallies.take([factories.decided(0.5, slice=one) for one in slices]))
    assert [(row["scored"], row.get("margins")) for row in rows] == [
        (1, {"prompt_type": "one"}),
        (1, {"prompt_type": "two"}),
        (1, {"endpoint": "/b", "prompt_type": "three"}),
        (3, {"": "", "customer": "c", "model": "", "model_version": "", "environment": ""}),
        (2, {"endpoint": "/a"}),
    ]
    assert ["endpoint" in row for row in rows] == [True, True, True, False, False], "a sum is no slice"


WORDS = st.sampled_from(["", "x", "y"])
MIXED = st.builds(
    factories.decided,
    score=st.floats(0, 1),
    similarity=st.floats(-1, 1),
    outcome=st.sampled_from(["scored", "scored", "model_error"]),
    is_late=st.booleans(),
    slice=st.builds(Slice, st.sampled_from(["", "/a", "/b"]), WORDS, WORDS, WORDS, WORDS, WORDS),
)
BATCH = st.lists(st.tuples(MIXED, st.integers(0, 3), st.integers(1, 2)), max_size=12)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BATCH, max_size=3))
def test_margins_are_exact_whatever_one_batch_holds(
    session: orm.Session, project: models.Project, batches: list[list[tuple[Decided, int, int]]]
) -> None:
    """Slices that share some values and not others, over midnight, under two policies; then moved as one."""
    start = dt.datetime(2026, 11, 1, 23, 50, tzinfo=dt.UTC)
    with session.begin_nested() as savepoint:
        for batch in batches:
            made = []
            for one, fives, version in batch:
                event = replace(one.result.event, project_id=project.id, bucket=start + fives * dt.timedelta(minutes=5))
                decision = replace(one.decision, policy_version=version)
                made.append(replace(one, result=replace(one.result, event=event), decision=decision))
            rollups.add(session, made)
            rollups.add_again(session, made)
            half = made[::2]
            later = [replace(one, decision=replace(one.decision, policy_version=2)) for one in half]
            rollups.move(session, half, later)
        counted = session.scalar(sa.select(sa.func.sum(models.Rollup1d.scored + models.Rollup1d.model_error)))
        wrong = [said for said in rollups.differences(session, project.id) if said.startswith("margins")]
        savepoint.rollback()
    assert (counted or 0) == sum(map(len, batches))
    assert wrong == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CHECKS, st.integers(0, 3), st.sampled_from(["add", "move", "again"])), max_size=12))
def test_margins_stay_exact_whatever_is_added_moved_or_decided_again(
    session: orm.Session, project: models.Project, acts: list[tuple[Decided, int, str]]
) -> None:
    """No events behind them, so that only margins can be compared; each example in a savepoint of its own."""
    start = dt.datetime(2026, 11, 1, 23, 50, tzinfo=dt.UTC)
    with session.begin_nested() as savepoint:
        for one, fives, act in acts:
            event = replace(one.result.event, project_id=project.id, bucket=start + fives * dt.timedelta(minutes=5))
            made = replace(one, result=replace(one.result, event=event))
            if act == "again":
                rollups.add_again(session, [made])
                continue
            rollups.add(session, [made])
            if act == "move":
                later = replace(made, decision=replace(made.decision, policy_version=2))
                rollups.move(session, [made], [later])
        wrong = [said for said in rollups.differences(session, project.id) if said.startswith("margins")]
        savepoint.rollback()
    assert wrong == []


def test_what_the_release_before_added_by_slice_alone_is_summed_once(
    session: orm.Session, project: models.Project
) -> None:
    """As it writes: whole histograms, neither days nor margins; into rows that this release made, and into new ones."""
    now = dt.datetime.now(dt.UTC)
    factories.ingest_many(session, project.id, 3)
    factories.check_all(session, 0.01)
    assert rollups.mend(session) == 0
    whole = [0] * 260 + [2] + [0] * 139
    for table in ("rollups_5m", "rollups_1h"):
        session.execute(
            sa.text(
                f"UPDATE {table} SET scored = scored + 2, n = n + 2, sim_hist = cmw_add(sim_hist, CAST(:bins AS int[]))"
            ),
            {"bins": whole},
        )
        session.execute(
            sa.text(
                f"INSERT INTO {table} (project_id, bucket, endpoint, prompt_type, customer, model, model_version, "
                "environment, checker_id, policy_version, scored, n, sim_hist, score_hist) "
                "SELECT project_id, bucket - interval '1 day', '/new', '', '', '', '', '', checker_id, 1, 2, 2, "
                f":bins, array_fill(0, ARRAY[100]) FROM {table}"
            ),
            {"bins": whole},
        )
    assert rollups.mend(session) == 2
    assert rollups.mend(session) == 0
    [total] = cmer_series.query(session, project.id, now - dt.timedelta(days=3), now + dt.timedelta(hours=1), "all")
    assert (total.n, total.flagged, sum(total.sim_hist)) == (7, 3, 7)
    assert [one for one in rollups.differences(session, project.id) if one.startswith("margins")] == []


def test_of_workers_that_find_the_same_day_wanting_one_sums_it(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        for i in range(40):
            factories.ingest(session, project_id, endpoint=f"/{i}")
        factories.check_all(session, 0.01)
        for table in ("rollups_5m", "rollups_1h"):
            session.execute(sa.text(f"UPDATE {table} SET n = n + 2, scored = scored + 2"))
    start = threading.Barrier(3)

    def mend() -> int:
        start.wait()
        with db.transaction() as session:
            return rollups.mend(session)

    with ThreadPoolExecutor(3) as pool:
        mended = [pool.submit(mend) for _ in range(3)]
        assert sorted(one.result() for one in mended) == [0, 0, 1]
    with db.transaction() as session:
        assert not any(said.startswith("margins") for said in rollups.differences(session, project_id))
