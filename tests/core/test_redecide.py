"""Deciding history again: each output once, counts that agree with a recount, and both versions readable."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import alert_numbers, cmer_series, db, errors, event_views, models, policies, redecide, rollups
from cmerwatch.cmer import Rate
from cmerwatch.cmer_series import CmerRow
from tests import factories

STRICTER = [{"sim_threshold": 0.2}]


def window(session: orm.Session, project_id: uuid.UUID, policy_version: int | None = None) -> CmerRow:
    now = dt.datetime.now(dt.UTC)
    start, end = now - dt.timedelta(hours=3), now + dt.timedelta(hours=1)
    [row] = cmer_series.query(session, project_id, start, end, "all", policy_version=policy_version)
    return row


def lay(session: orm.Session, project_id: uuid.UUID, n: int, score: float | None = 0.1, **details: object) -> None:
    factories.ingest_many(session, project_id, n, **details)
    factories.check_all(session, score)


def change(session: orm.Session, project_id: uuid.UUID, rules: list[dict[str, object]]) -> int:
    """A new version, long enough in force for every worker to have seen it."""
    version = policies.create(session, project_id, rules, "user:ada")
    settled = sa.func.now() - 2 * redecide.SETTLED
    session.execute(
        sa.update(models.PolicyVersion).where(models.PolicyVersion.version == version).values(created_at=settled)
    )
    return version


def finish(session: orm.Session, size: int = 3) -> int:
    steps = 0
    while redecide.step(session, size):
        steps += 1
    return steps


def test_history_is_decided_again_and_both_versions_stay_readable(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 7)
    lay(session, project.id, 2, confidence=None)
    lay(session, project.id, 3, score=0.9)
    version = change(session, project.id, STRICTER)
    lay(session, project.id, 4)
    assert window(session, project.id).cmer == Rate(4, 14)
    redecide.start(session, project.id, version, "user:ada")
    assert redecide.progress(session, project.id)[version].total == 16
    finish(session)
    now = window(session, project.id)
    assert (now.cmer, now.uer, now.low_unconfirmed) == (Rate(11, 14), Rate(13, 16), 2)
    assert (now.scored, now.accepted, now.coverage, now.undecided) == (16, 16, 1.0, 0)
    assert sum(now.sim_hist) == 16
    first, second = window(session, project.id, 1), window(session, project.id, version)
    assert (first.cmer, first.undecided) == (Rate(0, 10), 4)
    assert (second.cmer, second.undecided) == (Rate(11, 14), 0)
    assert redecide.progress(session, project.id)[version].share == 1.0


def test_the_counters_of_the_day_stay_exact(session: orm.Session, project: models.Project) -> None:
    lay(session, project.id, 5)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    finish(session)
    lay(session, project.id, 2)
    assert rollups.differences(session, project.id) == []


def test_an_output_is_shown_with_its_newest_decision(session: orm.Session, project: models.Project) -> None:
    lay(session, project.id, 1)
    version = change(session, project.id, STRICTER)
    redecide.start(session, project.id, version, "user:ada")
    finish(session)
    event_id = session.scalars(sa.select(models.Event.id)).one()
    decision = event_views.get(session, project.id, event_id).decision
    assert decision is not None
    assert (decision.policy_version, decision.flagged, decision.sim_threshold) == (version, True, 0.2)


def test_alert_rules_have_their_windows_and_baselines_back_at_once(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 6)
    version = change(session, project.id, STRICTER)
    lay(session, project.id, 2)
    end = cmer_series.floor(dt.datetime.now(dt.UTC), 300) + dt.timedelta(minutes=5)
    start = end - dt.timedelta(hours=2)

    def total() -> alert_numbers.Counts:
        return alert_numbers.Numbers(session, project.id).window(start, end).total

    assert (total().rate("cmer"), total().undecided, total().coverage) == ((2, 2), 6, 1.0)
    redecide.start(session, project.id, version, "user:ada")
    finish(session)
    assert (total().rate("cmer"), total().rate("uer"), total().undecided) == ((8, 8), (8, 8), 0)
    assert (total().scored, total().coverage) == (8, 1.0)


def test_until_it_is_finished_nothing_is_read_from_it(session: orm.Session, project: models.Project) -> None:
    lay(session, project.id, 5)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    assert redecide.step(session, 3)
    assert window(session, project.id).cmer == Rate(0, 5)
    progress = redecide.progress(session, project.id)[2]
    assert (progress.seen, progress.total, progress.finished_at) == (3, 5, None)


def test_a_later_version_goes_on_from_what_was_decided_again(session: orm.Session, project: models.Project) -> None:
    lay(session, project.id, 5)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    finish(session)
    change(session, project.id, [{"sim_threshold": 0.05}])
    lay(session, project.id, 3)
    assert window(session, project.id).cmer == Rate(5, 8), "5 under version 2, 3 under version 3"
    assert window(session, project.id, 3).cmer == Rate(0, 3)


def test_it_begins_at_once_where_no_worker_is_deciding(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 3)
        version = policies.create(session, project_id, STRICTER, "user:ada")
        redecide.start(session, project_id, version, "user:ada")
    with db.transaction() as session:
        assert redecide.step(session)
        assert redecide.progress(session, project_id)[version].seen == 3


def test_it_waits_until_no_worker_can_decide_under_the_old_version(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 1)
        factories.ingest_many(session, project_id, 2)
    with db.SessionLocal() as worker:
        factories.check_all(worker, 0.1)  # read the version in force, and will commit below
        with db.transaction() as session:
            version = policies.create(session, project_id, STRICTER, "user:ada")
            redecide.start(session, project_id, version, "user:ada")
        with db.transaction() as session:
            assert not redecide.step(session)
        worker.commit()
    with db.transaction() as session:
        finish(session)
        assert redecide.progress(session, project_id)[version].seen == 3
        assert window(session, project_id).cmer == Rate(3, 3)


def test_a_worker_that_never_ends_its_transaction_holds_it_up_no_longer_than_one_may_last(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 1)
    with db.SessionLocal() as worker, db.transaction() as session:
        policies.current(worker, [project_id])
        redecide.start(session, project_id, change(session, project_id, STRICTER), "user:ada")
        assert redecide.step(session)


def test_only_the_version_in_force_and_only_once(session: orm.Session, project: models.Project) -> None:
    change(session, project.id, STRICTER)
    with pytest.raises(errors.Conflict, match="not in force"):
        redecide.start(session, project.id, 1, "user:ada")
    redecide.start(session, project.id, 2, "user:ada")
    with pytest.raises(errors.Conflict, match="already"):
        redecide.start(session, project.id, 2, "user:ada")


def test_it_is_cancelled_between_two_steps_and_leaves_everything_as_it_was_read(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 5)
    version = change(session, project.id, STRICTER)
    redecide.start(session, project.id, version, "user:ada")
    assert redecide.step(session, 3)
    assert redecide.cancel(session, project.id) == version
    assert not redecide.step(session, 3)
    progress = redecide.progress(session, project.id)[version]
    assert (progress.seen, progress.is_running, progress.finished_at) == (3, False, None)
    assert window(session, project.id).cmer == window(session, project.id, 1).cmer == Rate(0, 5)
    second = window(session, project.id, version)
    assert (second.cmer, second.undecided) == (Rate(3, 3), 2)
    assert rollups.differences(session, project.id) == []


def test_cancelled_and_started_again_it_goes_on_and_decides_each_output_once(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 5)
    version = change(session, project.id, STRICTER)
    redecide.start(session, project.id, version, "user:ada")
    redecide.step(session, 3)
    redecide.cancel(session, project.id, version)
    redecide.start(session, project.id, version, "user:ada")
    finish(session)
    assert redecide.progress(session, project.id)[version].seen == 5
    assert window(session, project.id).cmer == window(session, project.id, version).cmer == Rate(5, 5)
    assert rollups.differences(session, project.id) == []


def test_a_second_one_is_refused_while_one_runs_and_taken_once_it_is_cancelled(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 4)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    redecide.step(session, 1)
    later = change(session, project.id, [{"sim_threshold": 0.3}])
    with pytest.raises(errors.Conflict, match=r"under version 2 already \(25% so far\).*cancel it"):
        redecide.start(session, project.id, later, "user:ada")
    redecide.cancel(session, project.id)
    redecide.start(session, project.id, later, "user:ada")
    finish(session)
    assert window(session, project.id).cmer == Rate(4, 4)
    assert rollups.differences(session, project.id) == []


def test_where_none_runs_there_is_nothing_to_cancel(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    lay(session, project.id, 1)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    for other, version in ((stranger.id, None), (project.id, 1)):
        with pytest.raises(errors.Conflict, match="nothing to cancel"):
            redecide.cancel(session, other, version)
    finish(session)
    with pytest.raises(errors.Conflict, match="nothing to cancel"):
        redecide.cancel(session, project.id)


def test_two_people_who_start_one_at_the_same_moment_start_one(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 4)
        version = change(session, project_id, STRICTER)
    begin = threading.Barrier(4)

    def press(_: int) -> bool:
        begin.wait()
        try:
            with db.transaction() as session:
                redecide.start(session, project_id, version, "user:ada")
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(press, range(4))) == [False, False, False, True]


def test_a_day_whose_events_are_gone_neither_ends_nor_holds_up_the_rest(
    session: orm.Session, project: models.Project
) -> None:
    lay(session, project.id, 9)
    gone = sorted(session.scalars(sa.select(models.Event.id)))[:6]
    session.execute(sa.delete(models.Event).where(models.Event.id.in_(gone)))
    version = change(session, project.id, STRICTER)
    redecide.start(session, project.id, version, "user:ada")
    finish(session, 2)
    again = sa.select(sa.func.count()).where(models.DecisionRow.policy_version == version)
    assert session.scalar(again) == 3
    assert redecide.progress(session, project.id)[version].finished_at is not None


def test_another_project_and_what_was_never_decided_are_left_alone(
    session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    lay(session, stranger.id, 2)
    factories.ingest_many(session, project.id, 2)
    factories.check_all(session, None, is_calibrated=False)
    redecide.start(session, project.id, change(session, project.id, STRICTER), "user:ada")
    finish(session)
    assert window(session, project.id).undecided == 2
    assert session.query(models.Redecided1h).count() == 0
    assert window(session, stranger.id).cmer == Rate(0, 2)


def test_two_workers_at_once_count_each_output_once(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 40)
        redecide.start(session, project_id, change(session, project_id, STRICTER), "user:ada")
    begin = threading.Barrier(3)

    def work() -> None:
        begin.wait()
        while True:
            with db.transaction() as session:
                redecide.step(session, 3)
                if redecide.progress(session, project_id)[2].finished_at:
                    return

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for _ in range(3)]:
            future.result()
    with db.transaction() as session:
        assert window(session, project_id).cmer == Rate(40, 40)
        assert redecide.progress(session, project_id)[2].seen == 40


def test_a_step_that_dies_leaves_nothing_half_done(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        lay(session, project_id, 6)
        redecide.start(session, project_id, change(session, project_id, STRICTER), "user:ada")
    with db.SessionLocal() as session:
        assert redecide.step(session, 4)  # never committed: the process ends here
    with db.transaction() as session:
        finish(session)
        assert window(session, project_id).cmer == Rate(6, 6)
        assert session.query(models.DecisionRow).count() == 12


def test_a_denial_is_left_alone_by_a_fixed_cosine_in_history_too(session: orm.Session, project: models.Project) -> None:
    lay(session, project.id, 2)
    lay(session, project.id, 3)
    session.execute(
        sa.text(
            "UPDATE checks SET claims = jsonb_set(claims, '{0,negated}', 'true') "
            "WHERE event_id IN (SELECT event_id FROM checks ORDER BY event_id LIMIT 3)"
        )
    )
    version = change(session, project.id, [{"measure": "cosine", "sim_threshold": 0.35}])
    redecide.start(session, project.id, version, "user:ada")
    finish(session)
    assert window(session, project.id).cmer == Rate(2, 5)
