"""/v1/policies: versions to read, the next one to make, and what it would have flagged; /v1/cmer reads one version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import blobs, models, policies, redecide
from tests.web import seeded

Headers = dict[str, str]
RULES = [{"match": {"endpoint": "/scan"}, "sim_threshold": 0.1}, {"match": {}, "sim_threshold": "auto"}]


@pytest.fixture
def admin(key: Callable[..., Headers]) -> Headers:
    return key("admin")


@pytest.fixture
def lay(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Callable[..., None]:
    def make(n: int, score: float, **details: Any) -> None:
        for _ in range(n):
            seeded.event(session, blob_store, project.id, **details)
        seeded.check(session, seeded.scored(0.3, score))
        session.commit()

    return make


def test_the_first_version_is_there_from_the_start(http: TestClient, read: Headers) -> None:
    answer = http.get("/v1/policies", headers=read).json()
    assert answer["current"] == 1
    [row] = answer["rows"]
    assert (row["version"], row["created_by"], row["rules"]) == (1, "cmerwatch", policies.DEFAULT_RULES)


def test_a_new_version_is_in_force_at_once_and_the_old_one_stays_readable(
    http: TestClient, admin: Headers, read: Headers, session: orm.Session
) -> None:
    answer = http.post("/v1/policies", headers=admin, json={"rules": RULES, "based_on": 1})
    assert answer.status_code == 201
    assert (answer.json()["version"], answer.json()["rules"]) == (2, RULES)
    assert answer.json()["created_by"].startswith("key:")
    assert [row["version"] for row in http.get("/v1/policies", headers=read).json()["rows"]] == [2, 1]
    assert http.get("/v1/policies/1", headers=read).json()["rules"] == policies.DEFAULT_RULES
    [entry] = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "policy.create"))
    assert (entry.target, entry.details) == ("version 2", {"rules": 2})


def test_a_version_made_meanwhile_is_a_conflict(http: TestClient, admin: Headers) -> None:
    assert http.post("/v1/policies", headers=admin, json={"rules": RULES, "based_on": 1}).status_code == 201
    answer = http.post("/v1/policies", headers=admin, json={"rules": RULES, "based_on": 1})
    assert (answer.status_code, answer.json()["error"]["details"]) == (409, {"version": 2})


def test_a_preview_saves_nothing_and_says_whether_it_is_exact(
    http: TestClient, admin: Headers, read: Headers, lay: Callable[..., None]
) -> None:
    lay(6, 0.5)
    lay(4, 0.07, endpoint="/scan")
    answer = http.post("/v1/policies/preview", headers=read, json={"rules": RULES}).json()
    assert [row["least"] for row in answer["rows"]] == [4, 0]
    assert answer["total"] == {"n": 10, "flagged": 0, "least": 4, "most": 4, "is_exact": True}
    answer = http.post("/v1/policies/preview", headers=admin, json={"rules": [{"conf_threshold": 0.97}]}).json()
    assert (answer["total"]["least"], answer["total"]["most"], answer["total"]["is_exact"]) == (0, 0, True)
    answer = http.post(
        "/v1/policies/preview", headers=read, json={"rules": [{"conf_threshold": 0.9, "sim_threshold": 0.065}]}
    ).json()
    assert (answer["total"]["least"], answer["total"]["most"], answer["total"]["is_exact"]) == (0, 0, True)
    answer = http.post("/v1/policies/preview", headers=read, json={"rules": [{"sim_threshold": 0.075}]}).json()
    assert (answer["total"]["least"], answer["total"]["most"], answer["total"]["is_exact"]) == (0, 4, False)
    assert http.get("/v1/policies", headers=read).json()["current"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rules": []}, "rules"),
        ({"rules": [{"match": {"endpoint": "/a"}}]}, "rules"),
        ({"rules": [{"match": {"colour": "red"}}, {}]}, "match"),
        ({"rules": [{"match": {"endpoint": "a\x00"}}, {}]}, "match"),
        ({"rules": [{"match": {"endpoint": 1}}, {}]}, "match"),
        ({"rules": [{"match": []}]}, "match"),
        ({"rules": [{}, {}]}, "match"),
        ({"rules": [{"sim_threshold": 2}]}, "sim_threshold"),
        ({"rules": [{"sim_threshold": True}]}, "sim_threshold"),
        ({"rules": [{"conf_threshold": "0.8"}]}, "conf_threshold"),
        ({"rules": [{"threshold": 0.8}]}, "threshold"),
        ({"rules": [{"measure": "cosine", "sim_threshold": 0.25}]}, "measure"),
        ({"rules": [{}] * 101}, "rules"),
        ({"rules": ["x"]}, "rules.0"),
        ({"rules": [{}], "based_on": "1"}, "based_on"),
        ({"rules": [{}], "force": True}, "force"),
        ({}, "rules"),
    ],
)
def test_rules_that_cannot_be_kept_are_named(
    http: TestClient, admin: Headers, read: Headers, body: dict[str, Any], field: str
) -> None:
    for path in ("/v1/policies", "/v1/policies/preview"):
        answer = http.post(path, headers=admin, json=body)
        assert (answer.status_code, answer.json()["error"]["details"].get("field")) == (422, field), answer.json()
    assert http.get("/v1/policies", headers=read).json()["current"] == 1


def test_who_may_read_may_not_change(http: TestClient, read: Headers, ingest: Headers) -> None:
    assert http.post("/v1/policies", headers=read, json={"rules": RULES}).status_code == 403
    assert http.get("/v1/policies", headers=ingest).status_code == 403


@pytest.mark.parametrize("version", ["2", "99999999999999999999"])
def test_a_version_that_is_not_there_is_404(http: TestClient, read: Headers, version: str) -> None:
    assert http.get(f"/v1/policies/{version}", headers=read).status_code == 404


def test_another_projects_versions_are_not_there(
    http: TestClient,
    key: Callable[..., Headers],
    session: orm.Session,
    project: models.Project,
    stranger: models.Project,
) -> None:
    policies.create(session, project.id, RULES, "user:ada")
    session.commit()
    theirs = key("read", "admin", of=stranger)
    assert http.get("/v1/policies", headers=theirs).json()["current"] == 1
    assert http.get("/v1/policies/2", headers=theirs).status_code == 404


def test_rates_go_on_over_a_change_and_one_version_can_be_read_alone(
    http: TestClient, admin: Headers, read: Headers, lay: Callable[..., None]
) -> None:
    lay(8, 0.07)
    http.post("/v1/policies", headers=admin, json={"rules": [{"sim_threshold": 0.1}]})
    lay(4, 0.07)
    answer = http.get("/v1/cmer?bucket=1d", headers=read).json()
    [row] = answer["rows"]
    assert (row["n"], row["flagged"], row["accepted"], row["coverage"]) == (12, 4, 12, 1.0)
    assert (answer["policy_version"], [one["version"] for one in answer["policy_changes"]]) == (None, [2])
    [row] = http.get("/v1/cmer?bucket=1d&policy_version=1", headers=read).json()["rows"]
    assert (row["n"], row["flagged"], row["accepted"], row["undecided"], row["coverage"]) == (8, 0, 12, 4, 1.0)
    [row] = http.get("/v1/cmer?bucket=1d&policy_version=2", headers=read).json()["rows"]
    assert (row["n"], row["flagged"], row["uer_n"]) == (4, 4, 4)


@pytest.mark.parametrize("version", ["3", "0", "x", "99999999999"])
def test_rates_of_a_version_that_is_not_there_are_refused(http: TestClient, read: Headers, version: str) -> None:
    answer = http.get(f"/v1/cmer?policy_version={version}", headers=read)
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "policy_version")


def test_history_is_decided_again_on_request_and_says_how_far_it_is(
    http: TestClient, admin: Headers, read: Headers, session: orm.Session, lay: Callable[..., None]
) -> None:
    lay(3, 0.07)
    answer = http.post("/v1/policies", headers=admin, json={"rules": [{"sim_threshold": 0.1}], "redecide": True})
    assert answer.json()["redecided"] == {"seen": 0, "total": 3, "finished_at": None, "cancelled_at": None}
    session.execute(sa.update(models.PolicyVersion).values(created_at=sa.func.now() - 2 * redecide.SETTLED))
    while redecide.step(session):
        session.commit()
    assert http.get("/v1/policies/2", headers=read).json()["redecided"]["finished_at"] is not None
    [row] = http.get("/v1/cmer?bucket=1d", headers=read).json()["rows"]
    assert (row["n"], row["flagged"]) == (3, 3)
    [row] = http.get("/v1/cmer?bucket=1d&policy_version=1", headers=read).json()["rows"]
    assert (row["n"], row["flagged"]) == (3, 0)


def test_deciding_again_is_started_later_and_stopped_by_key(
    http: TestClient, admin: Headers, session: orm.Session, lay: Callable[..., None]
) -> None:
    lay(3, 0.07)
    http.post("/v1/policies", headers=admin, json={"rules": [{"sim_threshold": 0.1}]})
    started = http.post("/v1/policies/2/redecide", headers=admin)
    assert (started.status_code, started.json()["redecided"]["cancelled_at"]) == (202, None)
    again = http.post("/v1/policies/2/redecide", headers=admin)
    assert (again.status_code, again.json()["error"]["details"]) == (409, {"version": 2})
    stopped = http.delete("/v1/policies/2/redecide", headers=admin)
    assert (stopped.status_code, stopped.json()["redecided"]["cancelled_at"] is None) == (200, False)
    assert http.delete("/v1/policies/2/redecide", headers=admin).status_code == 409
    assert http.post("/v1/policies/7/redecide", headers=admin).status_code == 404
    assert http.post("/v1/policies/1/redecide", headers=admin).status_code == 409
