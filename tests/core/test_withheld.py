"""What a fixed cosine cannot decide of a checker with a logit bias: undecided with a reason, then decided once."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import cmer_series, db, ids, models, policies, redecide, rollups, withheld
from cmerwatch.cmer import Rate
from cmerwatch.cmer_series import CmerRow
from tests import factories

COSINE = [{"measure": "cosine", "sim_threshold": 0.25}]
AUTO = [{"sim_threshold": "auto"}]
BY_SCORE_OF_ONE_ENDPOINT = [{"match": {"endpoint": "/vqa"}}, *COSINE]


@pytest.fixture
def siglip(session: orm.Session) -> int:
    return biased(session)


def biased(session: orm.Session) -> int:
    return factories.checker(session, "siglip:test:0:1", logit_scale=100.0, logit_bias=-10.0)


def window(session: orm.Session, project_id: uuid.UUID, policy_version: int | None = None) -> CmerRow:
    now = dt.datetime.now(dt.UTC)
    start, end = now - dt.timedelta(hours=3), now + dt.timedelta(hours=1)
    [row] = cmer_series.query(session, project_id, start, end, "all", policy_version=policy_version)
    return row


def lay(session: orm.Session, project_id: uuid.UUID, n: int, checker_id: int, score: float, **details: object) -> None:
    factories.ingest_many(session, project_id, n, **details)
    factories.check_all(session, score, checker_id)


def decide_all(session: orm.Session, size: int = 3) -> int:
    done = 0
    while (made := withheld.step(session, size)).taken:
        done += len(made.decided)
    return done


def change(session: orm.Session, project_id: uuid.UUID, rules: list[dict[str, object]]) -> int:
    version = policies.create(session, project_id, rules, "user:ada")
    settled = sa.func.now() - 2 * redecide.SETTLED
    session.execute(
        sa.update(models.PolicyVersion).where(models.PolicyVersion.version == version).values(created_at=settled)
    )
    return version


def test_a_fixed_cosine_decides_nothing_of_a_checker_with_a_logit_bias(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 4, siglip, 0.01)
    seen = window(session, project.id)
    assert (seen.cmer, seen.uer, seen.scored, seen.undecided) == (Rate(0, 0), Rate(0, 0), 4, 4)
    assert session.query(models.DecisionRow).count() == 0
    assert rollups.differences(session, project.id) == []


def test_of_a_checker_without_one_it_decides_as_ever(session: orm.Session, project: models.Project) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 4, factories.checker(session, logit_scale=100.0), 0.01)
    assert window(session, project.id).cmer.n == 4
    assert withheld.count(session, project.id) == 0


def test_a_rule_by_score_beside_it_goes_on_deciding(session: orm.Session, project: models.Project, siglip: int) -> None:
    change(session, project.id, BY_SCORE_OF_ONE_ENDPOINT)
    lay(session, project.id, 2, siglip, 0.01, endpoint="/vqa")
    lay(session, project.id, 3, siglip, 0.01)
    assert window(session, project.id).cmer == Rate(2, 2)
    assert withheld.count(session, project.id) == 3


def test_nothing_is_decided_until_the_policy_is_changed(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 4, siglip, 0.01)
    assert withheld.step(session, 10).taken == 0


def test_a_version_that_fits_decides_and_counts_them_as_if_checked_today(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    cosine = change(session, project.id, COSINE)
    lay(session, project.id, 5, siglip, 0.01)
    lay(session, project.id, 2, siglip, 0.9, occurred_at=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    lay(session, project.id, 1, siglip, 0.01, confidence=None)
    auto = change(session, project.id, AUTO)
    assert decide_all(session) == 8
    seen = window(session, project.id)
    assert (seen.cmer, seen.uer, seen.low_unconfirmed, seen.undecided) == (Rate(5, 7), Rate(6, 8), 1, 0)
    assert (seen.scored, seen.accepted, sum(seen.sim_hist)) == (8, 8, 8)
    assert window(session, project.id, auto).cmer == Rate(5, 7)
    assert window(session, project.id, cosine).undecided == 8
    assert rollups.differences(session, project.id) == []
    assert withheld.count(session, project.id) == 0
    assert set(session.scalars(sa.select(models.Check.policy_version))) == {auto}


def test_a_version_that_does_not_fit_either_leaves_them_withheld_under_it_and_is_not_asked_again(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 4, siglip, 0.01)
    lay(session, project.id, 2, siglip, 0.01, endpoint="/vqa")
    change(session, project.id, BY_SCORE_OF_ONE_ENDPOINT)
    assert decide_all(session) == 2
    assert (window(session, project.id).cmer, window(session, project.id).undecided) == (Rate(2, 2), 4)
    assert rollups.differences(session, project.id) == []
    change(session, project.id, AUTO)
    assert decide_all(session) == 4
    assert window(session, project.id).cmer == Rate(6, 6)
    assert rollups.differences(session, project.id) == []


def test_history_decided_again_meanwhile_leaves_them_to_their_first_decision(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 4, siglip, 0.01)
    redecide.start(session, project.id, change(session, project.id, AUTO), "user:ada")
    while redecide.step(session, 3):
        pass
    assert session.query(models.DecisionRow).count() == 0
    assert decide_all(session) == 4
    assert window(session, project.id).cmer == Rate(4, 4)
    assert session.query(models.Redecided1h).count() == 0
    assert rollups.differences(session, project.id) == []


def test_history_is_not_decided_again_by_a_cosine_that_means_nothing(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    lay(session, project.id, 4, siglip, 0.01)
    lay(session, project.id, 1, factories.checker(session, "zz-clip:test:0:1", logit_scale=100.0), 0.01)
    version = change(session, project.id, COSINE)
    redecide.start(session, project.id, version, "user:ada")
    while redecide.step(session, 3):
        pass
    again = sa.select(models.DecisionRow.checker_id).where(models.DecisionRow.policy_version == version)
    assert siglip not in session.scalars(again).all()
    assert rollups.differences(session, project.id) == []


def test_workers_at_the_same_time_decide_each_once(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        change(session, project_id, COSINE)
        lay(session, project_id, 40, biased(session), 0.01)
        change(session, project_id, AUTO)
    begin = threading.Barrier(3)

    def work(_: int) -> int:
        begin.wait()
        done = 0
        for _ in range(40):
            with db.transaction() as session:
                done += len(withheld.step(session, 3).decided)
        return done

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(work, range(3))) == 40
    with db.transaction() as session:
        assert window(session, project_id).cmer == Rate(40, 40)
        assert rollups.differences(session, project_id) == []


def test_a_step_that_dies_leaves_nothing_half_done(committed: str) -> None:
    with db.transaction() as session:
        project_id = factories.project(session)
        change(session, project_id, COSINE)
        lay(session, project_id, 6, biased(session), 0.01)
        change(session, project_id, AUTO)
    with db.SessionLocal() as session:
        assert withheld.step(session, 4).taken == 4  # never committed: the process ends here
    with db.transaction() as session:
        assert decide_all(session) == 6
        assert window(session, project_id).cmer == Rate(6, 6)
        assert rollups.differences(session, project_id) == []


def test_rows_whose_event_is_gone_are_dropped_and_hold_nothing_up(
    session: orm.Session, project: models.Project, siglip: int
) -> None:
    change(session, project.id, COSINE)
    lay(session, project.id, 6, siglip, 0.01)
    gone = sorted(session.scalars(sa.select(models.Event.id)))[:4]
    session.execute(sa.delete(models.Event).where(models.Event.id.in_(gone)))
    session.execute(
        sa.insert(models.Withheld).values(
            project_id=project.id, policy_version=1, event_id=ids.uuid7(factories.AT), checker_id=siglip
        )
    )
    change(session, project.id, AUTO)
    assert decide_all(session, 2) == 2
    assert withheld.count(session, project.id) == 0


def test_the_reason_names_policy_and_checker(session: orm.Session, project: models.Project, siglip: int) -> None:
    checker = session.get_one(models.Checker, siglip)
    version = change(session, project.id, COSINE)
    why = policies.misfit(version, COSINE, checker)
    assert why is not None
    assert why.startswith(f"policy {version} is a fixed cosine and checker siglip:test:0:1 has a logit bias")
    assert why.endswith("choose auto")
    assert policies.misfits(session, siglip) == {project.slug: why}
    change(session, project.id, AUTO)
    assert policies.misfits(session, siglip) == {}


def test_a_policy_by_score_or_a_checker_without_a_bias_is_no_misfit(session: orm.Session) -> None:
    clip = session.get_one(models.Checker, factories.checker(session, logit_scale=100.0))
    siglip = session.get_one(models.Checker, biased(session))
    assert policies.misfit(1, COSINE, clip) is None
    assert policies.misfit(1, AUTO, siglip) is None
    assert policies.misfit(1, COSINE, None) is None
