"""/v1/channels over HTTP: what is made, what is refused, and that no secret ever comes back."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import models, outbound, sealing
from tests import alerting
from tests.web.conftest import KeyMaker

SLACK = {"kind": "slack", "name": "on-call", "url": "https://203.0.113.9/services/T000/B000/secretsecretsecret"}
PAGERDUTY = {"kind": "pagerduty", "name": "pages", "routing_key": "R0123456789012345678901234567890"}
WEBHOOK = {"kind": "webhook", "name": "ours", "url": "https://192.0.2.1/hooks/very-secret-path-token"}


@pytest.fixture(autouse=True)
def allowed(configured: Any) -> None:
    """Addresses of documentation blocks, so that nothing is ever reached and no resolver is asked."""
    configured(allow_private_targets="203.0.113.0/24,192.0.2.0/24")


@pytest.fixture
def admin(key: KeyMaker) -> dict[str, str]:
    return key("admin")


def made(http: TestClient, admin: dict[str, str], **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/channels", json=WEBHOOK | fields, headers=admin)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("wanted", [SLACK, WEBHOOK])
def test_a_channel_is_made_and_its_address_never_comes_back(
    http: TestClient, admin: dict[str, str], wanted: dict[str, str]
) -> None:
    answer = http.post("/v1/channels", json=wanted, headers=admin)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["kind"], body["name"], body["enabled"], body["min_severity"]) == (
        wanted["kind"], wanted["name"], True, "info",
    )  # fmt: skip
    for text in (answer.text, http.get("/v1/channels", headers=admin).text):
        assert wanted["url"] not in text
        assert "secretsecret" not in text
        assert "very-secret" not in text


def test_a_pagerduty_key_is_shown_by_its_last_four_characters(http: TestClient, admin: dict[str, str]) -> None:
    body = http.post("/v1/channels", json=PAGERDUTY, headers=admin).json()
    assert body["target"] == "key …7890"


def test_a_webhooks_secret_is_told_once(http: TestClient, admin: dict[str, str]) -> None:
    body = made(http, admin)
    assert body["secret"].startswith("whsec_")
    again = http.get(f"/v1/channels/{body['id']}", headers=admin)
    assert again.status_code == 200
    assert body["secret"] not in again.text
    assert "secret" not in again.json()


def test_neither_the_table_nor_the_audit_log_holds_a_secret_in_plain_text(
    http: TestClient, admin: dict[str, str], session: orm.Session
) -> None:
    secret = made(http, admin)["secret"]
    http.post("/v1/channels", json=SLACK, headers=admin)
    http.post("/v1/channels", json=PAGERDUTY, headers=admin)
    rows = [
        text
        for table in ("channels", "audit_log")
        for text in session.scalars(sa.text(f"SELECT CAST(to_jsonb(t) AS text) FROM {table} t"))
    ]
    sealed = session.scalars(sa.select(models.Channel.sealed_config)).all()
    rows += [bytes(value).decode("latin-1") for value in sealed]
    assert len(rows) == 9
    for hidden in (secret, secret[6:20], "very-secret-path", "secretsecret", PAGERDUTY["routing_key"]):
        assert hidden not in "".join(rows)


REFUSED = [
    ({"kind": "email"}, "kind"),
    ({"name": ""}, "name"),
    ({"name": "x" * 101}, "name"),
    ({"min_severity": "loud"}, "min_severity"),
    ({"url": ""}, "url"),
    ({"url": "ftp://192.0.2.1/"}, "url"),
    ({"url": "https://user:pass@192.0.2.1/"}, "url"),
    ({"url": "https://127.0.0.1/hook"}, "url"),
    ({"url": "http://localhost:8383/hook"}, "url"),
    ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
    ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
    ({"url": "https://2130706433/"}, "url"),
    ({"url": "https://192.0.2.1/" + "x" * 3000}, "url"),
    ({"secret": "whsec_c2hvcnQ="}, "secret"),
    ({"routing_key": "x" * 32}, "routing_key"),
    ({"urll": "https://192.0.2.1/"}, "urll"),
    (SLACK | {"secret": "whsec_x"}, "secret"),
    (PAGERDUTY | {"url": "https://192.0.2.1/", "routing_key": "short"}, "routing_key"),
]


@pytest.mark.parametrize("change, field", REFUSED)
def test_a_bad_channel_is_refused_naming_the_field_and_nothing_is_stored(
    http: TestClient, admin: dict[str, str], session: orm.Session, change: dict[str, str], field: str
) -> None:
    answer = http.post("/v1/channels", json=WEBHOOK | change, headers=admin)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["details"]["field"] == field
    assert field in error["message"]
    assert session.query(models.Channel).count() == 0


def test_a_private_address_is_refused_in_a_sentence_that_says_what_an_operator_can_do(
    http: TestClient, admin: dict[str, str]
) -> None:
    answer = http.post("/v1/channels", json=WEBHOOK | {"url": "https://10.1.2.3/hook"}, headers=admin)
    message = answer.json()["error"]["message"]
    assert "private or reserved network address" in message
    assert "CMERWATCH_ALLOW_PRIVATE_TARGETS" in message


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("GET", "", None),
        ("PATCH", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/test", None),
        ("POST", "/rotate-secret", None),
    ],
)
def test_another_projects_channel_is_not_found(
    http: TestClient,
    admin: dict[str, str],
    key: KeyMaker,
    stranger: models.Project,
    method: str,
    path: str,
    body: dict[str, str] | None,
) -> None:
    channel = made(http, admin)
    foreign = key("admin", of=stranger)
    answer = http.request(method, f"/v1/channels/{channel['id']}{path}", json=body, headers=foreign)
    assert answer.status_code == 404
    assert http.get("/v1/channels", headers=foreign).json() == {"rows": []}
    assert http.get(f"/v1/channels/{channel['id']}", headers=admin).json()["name"] == "ours"


@pytest.mark.parametrize("scope", ["ingest", "read"])
def test_a_key_without_the_scope_may_not_even_look(http: TestClient, key: KeyMaker, scope: str) -> None:
    assert http.get("/v1/channels", headers=key(scope)).status_code == 403
    assert http.post("/v1/channels", json=WEBHOOK, headers=key(scope)).status_code == 403


def test_what_is_given_is_changed_and_the_secret_stays(
    http: TestClient, admin: dict[str, str], session: orm.Session
) -> None:
    body = made(http, admin)
    change = {"name": "renamed", "min_severity": "critical", "url": "https://192.0.2.2/"}
    answer = http.patch(f"/v1/channels/{body['id']}", json=change, headers=admin)
    assert answer.status_code == 200
    assert (answer.json()["name"], answer.json()["min_severity"]) == ("renamed", "critical")
    stored = session.get_one(models.Channel, uuid.UUID(body["id"]))
    assert alerting.opened(stored) == {"url": "https://192.0.2.2/", "secret": body["secret"]}


def test_a_channel_is_switched_off_and_on(http: TestClient, admin: dict[str, str]) -> None:
    path = f"/v1/channels/{made(http, admin)['id']}"
    off = http.patch(path, json={"enabled": False}, headers=admin).json()
    assert (off["enabled"], off["disabled_reason"] is not None) == (False, True)
    on = http.patch(path, json={"enabled": True}, headers=admin).json()
    assert (on["enabled"], on["disabled_reason"]) == (True, None)


def test_a_new_secret_signs_beside_the_old_one(http: TestClient, admin: dict[str, str], session: orm.Session) -> None:
    body = made(http, admin)
    rotated = http.post(f"/v1/channels/{body['id']}/rotate-secret", headers=admin).json()
    config = alerting.opened(session.get_one(models.Channel, uuid.UUID(body["id"])))
    assert (config["secret"], config["old_secret"]) == (rotated["secret"], body["secret"])
    assert rotated["secret"] != body["secret"]


def test_a_second_rotation_within_the_day_is_refused_so_that_the_first_secret_keeps_its_time(
    http: TestClient, admin: dict[str, str], session: orm.Session
) -> None:
    body = made(http, admin)
    path = f"/v1/channels/{body['id']}"
    second = http.post(f"{path}/rotate-secret", headers=admin).json()["secret"]
    again = http.post(f"{path}/rotate-secret", headers=admin)
    assert again.status_code == 409
    channel = session.get_one(models.Channel, uuid.UUID(body["id"]))
    config = alerting.opened(channel)
    assert (config["secret"], config["old_secret"]) == (second, body["secret"])
    until = dt.datetime.fromisoformat(again.json()["error"]["details"]["until"])
    assert f"{until:%Y-%m-%d %H:%M} UTC" in again.json()["error"]["message"]
    # Once the day is over, the next one may come.
    config["old_until"] = (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)).isoformat()
    channel.sealed_config = sealing.seal(json.dumps(config).encode(), f"channel:{channel.id}")
    session.commit()
    assert http.post(f"{path}/rotate-secret", headers=admin).status_code == 200
    session.refresh(channel)
    assert alerting.opened(channel)["old_secret"] == second


def test_two_channels_of_a_project_cannot_share_a_name(http: TestClient, admin: dict[str, str]) -> None:
    first = http.post("/v1/channels", json=WEBHOOK, headers=admin).json()
    again = http.post("/v1/channels", json=SLACK | {"name": " Ours"}, headers=admin)
    assert (again.status_code, again.json()["error"]["details"]["field"]) == (409, "name")
    assert "has a channel called “Ours” already" in again.json()["error"]["message"]
    other = http.post("/v1/channels", json=SLACK, headers=admin).json()
    address = f"/v1/channels/{other['id']}"
    assert http.patch(address, json={"name": "ours"}, headers=admin).status_code == 409
    assert http.patch(address, json={"name": "On-Call"}, headers=admin).status_code == 200
    assert http.delete(f"/v1/channels/{first['id']}", headers=admin).status_code == 204
    assert http.patch(address, json={"name": "ours"}, headers=admin).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_name_is_looked_up_while_no_transaction_is_open(
    http: TestClient, admin: dict[str, str], session: orm.Session, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A resolver may take seconds, which no connection and no row should wait for."""
    path = f"/v1/channels/{made(http, admin)['id']}" if method == "PATCH" else "/v1/channels"
    begun: set[orm.Session] = set()
    seen: list[int] = []
    check = outbound.check

    def ask(*args: Any) -> None:
        seen.append(len(begun))
        check(*args)

    def begin(one: orm.Session, transaction: orm.SessionTransaction, connection: sa.Connection) -> None:
        if one is not session:
            begun.add(one)

    def end(one: orm.Session, transaction: orm.SessionTransaction) -> None:
        if transaction.parent is None:
            begun.discard(one)

    monkeypatch.setattr(outbound, "check", ask)
    with watched(orm.Session, "after_begin", begin), watched(orm.Session, "after_transaction_end", end):
        fields = {"url": "https://192.0.2.7/x"} | ({} if method == "PATCH" else {"kind": "webhook", "name": "x"})
        answer = http.request(method, path, json=fields, headers=admin)
    assert answer.status_code in (200, 201), answer.text
    assert seen == [0]


@contextlib.contextmanager
def watched(target: Any, name: str, listener: Any) -> Iterator[None]:
    sa.event.listen(target, name, listener)
    try:
        yield
    finally:
        sa.event.remove(target, name, listener)


def test_a_new_address_leaves_the_old_secret_its_day(
    http: TestClient, admin: dict[str, str], session: orm.Session
) -> None:
    body = made(http, admin)
    rotated = http.post(f"/v1/channels/{body['id']}/rotate-secret", headers=admin).json()
    http.patch(f"/v1/channels/{body['id']}", json={"url": "https://192.0.2.2/"}, headers=admin)
    config = alerting.opened(session.get_one(models.Channel, uuid.UUID(body["id"])))
    assert (config["url"], config["secret"]) == ("https://192.0.2.2/", rotated["secret"])
    assert config["old_secret"] == body["secret"]
    entered = alerting.opened(session.get_one(models.Channel, uuid.UUID(made(http, admin, name="other")["id"])))[
        "secret"
    ]
    http.patch(f"/v1/channels/{body['id']}", json={"secret": entered}, headers=admin)
    session.expire_all()
    config = alerting.opened(session.get_one(models.Channel, uuid.UUID(body["id"])))
    assert (config["secret"], "old_secret" in config) == (entered, False)


def test_an_empty_secret_changes_nothing(http: TestClient, admin: dict[str, str], session: orm.Session) -> None:
    body = made(http, admin)
    assert http.patch(f"/v1/channels/{body['id']}", json={"secret": " "}, headers=admin).status_code == 200
    config = alerting.opened(session.get_one(models.Channel, uuid.UUID(body["id"])))
    assert config["secret"] == body["secret"]


def test_a_deleted_channel_is_gone_with_its_configuration(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    body = made(http, admin)
    channel = session.get_one(models.Channel, uuid.UUID(body["id"]))
    waiting = alerting.message(session, channel, alerting.alert(session, project.id))
    session.commit()
    assert http.delete(f"/v1/channels/{body['id']}", headers=admin).status_code == 204
    assert http.get(f"/v1/channels/{body['id']}", headers=admin).status_code == 404
    session.expire_all()
    assert (channel.sealed_config, waiting.state) == (b"", "superseded")


def test_a_test_that_no_worker_takes_says_so(
    http: TestClient, admin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch_web.api.channels.TEST_SECONDS", 0.0)
    answer = http.post(f"/v1/channels/{made(http, admin)['id']}/test", headers=admin)
    assert answer.status_code == 200
    assert answer.json()["state"] == "pending"
    assert "No worker took the test" in answer.json()["error"]


def test_a_project_has_at_most_fifty_channels(
    http: TestClient, admin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmerwatch.channels.MOST", 2)
    made(http, admin)
    made(http, admin, name="another")
    refused = http.post("/v1/channels", json=WEBHOOK | {"name": "third"}, headers=admin)
    assert (refused.status_code, refused.json()["error"]["details"]["limit"]) == (422, 2)


def test_metrics_tell_what_could_not_be_told(
    http: TestClient, admin: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    off = made(http, admin)
    channel = session.get_one(models.Channel, uuid.UUID(made(http, admin, name="other")["id"]))
    late, dead = (alerting.message(session, channel, alerting.alert(session, project.id)) for _ in range(2))
    late.next_at = channel.next_send_at = alerting.AT
    dead.state = "dead"
    session.commit()
    http.patch(f"/v1/channels/{off['id']}", json={"enabled": False}, headers=admin)
    lines = http.get("/metrics").text.splitlines()
    for name in ("messages_waiting", "messages_overdue", "messages_dead", "channels_off"):
        assert f"cmerwatch_{name} 1" in lines
