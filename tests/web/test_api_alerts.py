"""/v1/alert-rules, /v1/alerts, /v1/silences as clients see them."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, alerts, models
from tests.core import watched
from tests.web.conftest import KeyMaker

RULE = {"name": "too many", "kind": "threshold", "threshold": 0.2}


@pytest.fixture
def admin(key: KeyMaker) -> dict[str, str]:
    return key("admin", "read")


def fire(session: orm.Session, project: models.Project, **rule: Any) -> models.AlertRule:
    """A rule that fires on counts laid in the last closed hour."""
    now = dt.datetime.now(dt.UTC)
    made = watched.rule(session, project.id, **rule)
    at = alerts.last_closed(now) - watched.MINUTES_10
    watched.lay(session, project.id, at, 60, flagged=40, endpoint="/vqa", model_version="v2")
    watched.lay(session, project.id, at, 60, flagged=30, endpoint="/describe", model_version="v1")
    alerts.evaluate(session, project.id, now)
    session.commit()
    return made


def test_a_rule_is_made_read_changed_and_deleted(http: TestClient, admin: dict[str, str]) -> None:
    made = http.post("/v1/alert-rules", json=RULE, headers=admin)
    assert made.status_code == 201
    rule = made.json()
    assert (rule["threshold"], rule["min_n"], rule["min_coverage"], rule["version"]) == (0.2, 50, 0.95, 1)
    assert rule["condition"] == "CMER over 20%, in 1 h"
    address = f"/v1/alert-rules/{rule['id']}"
    assert http.get(address, headers=admin).json() == rule
    changed = http.patch(address, json={"threshold": 0.3, "enabled": False}, headers=admin).json()
    assert (changed["threshold"], changed["enabled"], changed["version"], changed["name"]) == (
        0.3,
        False,
        2,
        "too many",
    )
    assert http.delete(address, headers=admin).status_code == 204
    assert http.get(address, headers=admin).status_code == 404
    assert http.get("/v1/alert-rules", headers=admin).json() == {"rows": []}


def test_two_rules_of_a_project_cannot_share_a_name(
    http: TestClient, admin: dict[str, str], session: orm.Session, stranger: models.Project
) -> None:
    watched.rule(session, stranger.id, name="too many")
    session.commit()
    first = http.post("/v1/alert-rules", json=RULE, headers=admin)
    assert first.status_code == 201
    again = http.post("/v1/alert-rules", json=RULE | {"name": "Too many "}, headers=admin)
    assert (again.status_code, again.json()["error"]["details"]["field"]) == (409, "name")
    assert "has a rule called “Too many” already" in again.json()["error"]["message"]
    other = http.post("/v1/alert-rules", json=RULE | {"name": "other"}, headers=admin).json()
    address = f"/v1/alert-rules/{other['id']}"
    assert http.patch(address, json={"name": "too many"}, headers=admin).status_code == 409
    assert http.patch(address, json={"name": "Other"}, headers=admin).status_code == 200
    assert http.delete(f"/v1/alert-rules/{first.json()['id']}", headers=admin).status_code == 204
    assert http.patch(address, json={"name": "too many"}, headers=admin).status_code == 200, (
        "a deleted rule has no name"
    )


@pytest.mark.parametrize(
    "wrong, field",
    [
        ({"scopes": ["colour"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"match": {"colour": "red"}}, "match"),
        ({"match": {"endpoint": "x" * 301}}, "match"),
        ({"window_seconds": 400}, "window_seconds"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"window_seconds": 90_000}, "window_seconds"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"multiple": 2}, "multiple"),
        ({"kind": "baseline", "multiple": 1}, "multiple"),
        ({"kind": "baseline"}, "multiple"),
        ({"kind": "no_data"}, "threshold"),
        ({"kind": "change"}, "kind"),
        ({"metric": "f1"}, "metric"),
        ({"severity": "page"}, "severity"),
        ({"for_seconds": -1}, "for_seconds"),
        ({"keep_firing_seconds": -300}, "keep_firing_seconds"),
        ({"repeat_seconds": 10}, "repeat_seconds"),
        ({"min_n": 0}, "min_n"),
        ({"min_n": 10**30}, "min_n"),
        ({"min_n": 2.5}, "min_n"),
        ({"min_coverage": 0}, "min_coverage"),
        ({"min_coverage": None}, "min_coverage"),
        ({"name": " "}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"channel_ids": ["nobody"]}, "channel_ids"),
        ({"channel_ids": [str(uuid.uuid4())]}, "channel_ids"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_named(
    http: TestClient, admin: dict[str, str], session: orm.Session, wrong: dict[str, Any], field: str
) -> None:
    answer = http.post("/v1/alert-rules", json=RULE | wrong, headers=admin)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["error"]["details"]["field"]
    assert session.scalars(sa.select(models.AlertRule)).all() == []


@pytest.mark.parametrize("missing", ["name", "kind"])
def test_a_missing_field_is_named(http: TestClient, admin: dict[str, str], missing: str) -> None:
    body = {name: value for name, value in RULE.items() if name != missing}
    answer = http.post("/v1/alert-rules", json=body, headers=admin)
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, missing)


def test_an_edit_that_would_make_the_rule_meaningless_is_refused(http: TestClient, admin: dict[str, str]) -> None:
    rule = http.post("/v1/alert-rules", json=RULE, headers=admin).json()
    answer = http.patch(f"/v1/alert-rules/{rule['id']}", json={"kind": "no_data"}, headers=admin)
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "threshold")
    answer = http.patch(f"/v1/alert-rules/{rule['id']}", json={"kind": "no_data", "threshold": None}, headers=admin)
    assert answer.status_code == 200


def test_a_backtest_says_when_it_would_have_fired_and_saves_nothing(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    at = alerts.last_closed(dt.datetime.now(dt.UTC)) - watched.DAY
    watched.lay(session, project.id, at, 60, flagged=40, endpoint="/vqa")
    session.commit()
    body = RULE | {"scopes": ["project", "endpoint"], "keep_firing_seconds": 0}
    found = http.post("/v1/alert-rules/backtest", json=body, headers=admin).json()
    assert (found["fired"], found["slices"], found["slices_left_out"]) == (2, 2, 0)
    assert {tuple(one["slice"].items()) for one in found["episodes"]} == {(), (("endpoint", "/vqa"),)}
    assert dt.datetime.fromisoformat(found["episodes"][0]["fired_at"]) == at + watched.MINUTES_5
    assert http.get("/v1/alert-rules", headers=admin).json()["rows"] == []
    wrong = http.post("/v1/alert-rules/backtest", json=body | {"window_seconds": 1}, headers=admin)
    assert (wrong.status_code, wrong.json()["error"]["details"]["field"]) == (422, "window_seconds")


@pytest.mark.parametrize("scope", ["ingest", "read"])
def test_rules_and_silences_want_the_scope_admin(http: TestClient, key: KeyMaker, scope: str) -> None:
    for address, body in (("/v1/alert-rules", RULE), ("/v1/silences", {"reason": "x", "seconds": 60})):
        answer = http.post(address, json=body, headers=key(scope))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_a_key_that_reads_sees_alerts_and_one_that_sends_does_not(http: TestClient, key: KeyMaker) -> None:
    for address in ("/v1/alert-rules", "/v1/alerts", "/v1/silences"):
        assert http.get(address, headers=key("read")).status_code == 200
        assert http.get(address, headers=key("admin")).status_code == 200
        assert http.get(address, headers=key("ingest")).status_code == 403
        assert http.get(address).status_code == 401


def test_another_projects_rules_alerts_and_silences_are_not_found(
    http: TestClient, key: KeyMaker, session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    rule = fire(session, project)
    [alert] = watched.episodes(session, project.id)
    mine, theirs = key("admin", "read"), key("admin", "read", of=stranger)
    silence = http.post("/v1/silences", json={"reason": "x", "seconds": 600}, headers=mine).json()
    for method, address in (
        ("GET", f"/v1/alert-rules/{rule.id}"),
        ("PATCH", f"/v1/alert-rules/{rule.id}"),
        ("DELETE", f"/v1/alert-rules/{rule.id}"),
        ("GET", f"/v1/alerts/{alert.id}"),
        ("DELETE", f"/v1/silences/{silence['id']}"),
    ):
        assert http.request(method, address, json={}, headers=theirs).status_code == 404
    body = {"reason": "x", "seconds": 600, "rule_id": str(rule.id)}
    assert http.post("/v1/silences", json=body, headers=theirs).status_code == 404
    assert http.get("/v1/alerts", headers=theirs).json()["rows"] == []
    assert http.get("/v1/silences", headers=theirs).json()["rows"] == []


def test_what_fires_is_listed_with_its_numbers_links_and_deliveries(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    watched.channel(session, project.id, name="on-call")
    fire(session, project, scopes=("endpoint",), name="per endpoint")
    rows = http.get("/v1/alerts", params={"state": "firing"}, headers=admin).json()["rows"]
    row = next(row for row in rows if row["slice"] == {"endpoint": "/vqa"})
    assert (row["state"], row["rule"], row["severity"], row["n"]) == ("firing", "per endpoint", "warning", 60)
    assert row["low"] < row["value"] < row["high"]
    assert "endpoint=%2Fvqa" in row["link"]
    [delivery] = row["deliveries"]
    assert (delivery["channel"], delivery["state"], delivery["error"]) == ("on-call", "pending", None)
    whole = http.get(f"/v1/alerts/{row['id']}", headers=admin).json()
    assert [(one["from"], one["to"]) for one in whole["history"]] == [("ok", "firing")]


def test_each_slice_of_an_incident_names_its_group_and_shows_the_message_that_told_of_it(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    watched.channel(session, project.id, name="on-call")
    fire(session, project, scopes=("project", "endpoint"))
    rows = http.get("/v1/alerts", headers=admin).json()["rows"]
    assert len(rows) == 3
    [leader] = [row for row in rows if row["leads"]]
    assert (leader["slice"], leader["group"]) == ({}, leader["id"])
    assert {row["group"] for row in rows} == {leader["id"]}
    told = [[(one["id"], one["kind"], one["channel"]) for one in row["deliveries"]] for row in rows]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 1


def test_the_alerts_of_one_group_are_listed_alone(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    fire(session, project, scopes=("endpoint",))
    rows = http.get("/v1/alerts", headers=admin).json()["rows"]
    group = rows[0]["group"]
    assert len({row["group"] for row in rows}) == 2
    found = http.get("/v1/alerts", params={"group": group}, headers=admin).json()["rows"]
    assert [row["id"] for row in found] == [row["id"] for row in rows if row["group"] == group]
    assert http.get("/v1/alerts", params={"group": "x"}, headers=admin).status_code == 422


def test_pages_of_alerts_hold_each_once(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    fire(session, project, scopes=("project", "endpoint", "model_version"))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        given = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/v1/alerts", params=given, headers=admin).json()
        seen += [row["id"] for row in page["rows"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen, reverse=True)


def test_messages_are_listed_page_by_page_with_what_became_of_them(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project, stranger: models.Project
) -> None:
    for name in ("on-call", "team", "log"):
        watched.channel(session, project.id, name=name)
    watched.channel(session, stranger.id, name="theirs")
    fire(session, stranger)
    fire(session, project, scopes=("project", "endpoint"))
    first = http.get("/v1/deliveries", params={"limit": 2}, headers=admin).json()
    rest = http.get("/v1/deliveries", params={"cursor": first["next_cursor"]}, headers=admin).json()
    rows = [*first["rows"], *rest["rows"]]
    assert sorted(row["channel"] for row in rows) == ["log", "on-call", "team"]
    assert rest["next_cursor"] is None
    assert [(row["state"], row["kind"], row["slices"]) for row in rows] == [("pending", "firing", 3)] * 3
    assert http.get("/v1/deliveries", params={"state": "dead"}, headers=admin).json()["rows"] == []
    assert http.get("/v1/deliveries", params={"state": "lost"}, headers=admin).status_code == 422


def test_slices_without_an_episode_are_listed_by_how_they_stand(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    fire(session, project, scopes=("endpoint",), min_n=100)
    seen: list[dict[str, str]] = []
    cursor: str | None = None
    while True:
        given = {"state": "insufficient", "limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/v1/alerts", params=given, headers=admin).json()
        seen += [row["slice"] for row in page["rows"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [{"endpoint": "/describe"}, {"endpoint": "/vqa"}]
    assert page["rows"][0]["reason"] == "60 outputs with a known confidence, it takes 100"


@pytest.mark.parametrize(
    "query, field", [("state=on", "state"), ("cursor=x", "cursor"), ("limit=0", "limit"), ("color=red", "color")]
)
def test_a_wrong_question_about_alerts_is_refused(
    http: TestClient, admin: dict[str, str], query: str, field: str
) -> None:
    answer = http.get(f"/v1/alerts?{query}", headers=admin)
    assert answer.status_code == 422
    assert field in answer.json()["error"]["details"]["field"]


def test_a_silence_is_made_shown_and_ended(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    fire(session, project)
    made = http.post("/v1/silences", json={"reason": "planned", "seconds": 3600}, headers=admin)
    assert made.status_code == 201
    silence = made.json()
    assert (silence["lasts"], silence["match"], silence["rule_id"]) == (True, {}, None)
    assert http.get("/v1/alerts", headers=admin).json()["rows"][0]["silenced_until"] == silence["ends_at"]
    ended = http.delete(f"/v1/silences/{silence['id']}", headers=admin).json()
    assert ended["lasts"] is False
    assert http.get("/v1/alerts", headers=admin).json()["rows"][0]["silenced_until"] is None


@pytest.mark.parametrize(
    "wrong, field",
    [
        ({"reason": " "}, "reason"),
        ({"reason": "x" * 10_001}, "reason"),
        ({"seconds": 59}, "seconds"),
        ({"seconds": 10**9}, "seconds"),
        ({"ends_at": "2030-01-01T00:00:00Z"}, "ends_at"),
        ({"match": {"colour": "red"}}, "match"),
        ({"rule_id": "x"}, "rule_id"),
        ({"starts_at": "tomorrow"}, "starts_at"),
    ],
)
def test_a_wrong_silence_is_refused_by_field(
    http: TestClient, admin: dict[str, str], wrong: dict[str, Any], field: str
) -> None:
    answer = http.post("/v1/silences", json={"reason": "x", "seconds": 600} | wrong, headers=admin)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["error"]["details"]["field"]


def test_a_silence_that_ends_before_now_is_refused(http: TestClient, admin: dict[str, str]) -> None:
    body = {"reason": "x", "ends_at": "2020-01-01T00:00:00Z"}
    answer = http.post("/v1/silences", json=body, headers=admin)
    assert (answer.status_code, answer.json()["error"]["details"]["field"]) == (422, "ends_at")


def test_changes_are_in_the_audit_log(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    rule = http.post("/v1/alert-rules", json=RULE, headers=admin).json()
    http.patch(f"/v1/alert-rules/{rule['id']}", json={"threshold": 0.3}, headers=admin)
    http.delete(f"/v1/alert-rules/{rule['id']}", headers=admin)
    silence = http.post("/v1/silences", json={"reason": "x", "seconds": 600}, headers=admin).json()
    http.delete(f"/v1/silences/{silence['id']}", headers=admin)
    noted = session.scalars(sa.select(models.AuditEntry.action).order_by(models.AuditEntry.id)).all()
    wanted = ["alert_rule.create", "alert_rule.change", "alert_rule.delete", "silence.create", "silence.end"]
    assert [action for action in noted if action.startswith(("alert", "silence"))] == wanted


def test_a_lead_may_silence_but_not_change_rules(
    http: TestClient, session: orm.Session, project: models.Project
) -> None:
    """A key that acts as a person does no more than that person may."""
    person = access.create_user(session, project.id, "lea", "Lea", "lead")
    key = access.create_key(session, project.id, "leas", ["admin", "review"], person.id)
    session.commit()
    headers = {"Authorization": f"Bearer {key}"}
    assert http.post("/v1/silences", json={"reason": "x", "seconds": 600}, headers=headers).status_code == 201
    assert http.post("/v1/alert-rules", json=RULE, headers=headers).status_code == 403
