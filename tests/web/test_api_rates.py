"""GET /v1/cmer, /v1/ledger and the health routes answer from what was really stored, checked and counted."""

from __future__ import annotations

import datetime as dt
import re
import uuid

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import checks, models, policies, rollups
from cmerwatch.shapes import CheckResult, Claimed, ClaimScore
from cmerwatch_web.api import cmer
from tests import factories
from tests.web.wire import Headers, event

CHECKER = "small:weights:preprocess:1"


def post(http: TestClient, ingest: Headers, **fields: object) -> str:
    answer = http.post("/v1/events", json=event(**fields), headers=ingest)
    made: str = answer.json()["results"][0]["id"]
    return made


def check_all(session: orm.Session, score: dict[str, float]) -> None:
    """What a worker does after its model has spoken: each output's score is given, by its text."""
    checker = checks.register(session, name=CHECKER, label="small", is_demo=False, reference_version="r1")
    token = uuid.uuid4()
    claimed = checks.claim(session, 100, 30, token)
    policy = policies.current(session, {one.project_id for one in claimed})

    def result(one: Claimed) -> CheckResult:
        if one.output not in score:
            return CheckResult(one, "unscorable", reasons=("nothing_visual",))
        claims = (ClaimScore(0, len(one.output), 0.3, score[one.output]),)
        return CheckResult(one, "scored", similarity=0.3, score=score[one.output], claims=claims)

    results = [result(one) for one in claimed]
    pairs = [(one, policy[one.event.project_id].decide(one, True)) for one in results]
    rollups.add(session, checks.complete(session, token, checker, pairs))
    session.commit()


@pytest.fixture
def checked(http: TestClient, ingest: Headers, session: orm.Session) -> dict[str, str]:
    """Three scored events (one flagged), one unscorable, one still waiting; their ids by output."""
    sure = {"logprobs": [-0.01]}
    ids = {
        "good": post(http, ingest, output="good", customer="a", **sure),
        "bad": post(http, ingest, output="bad", customer="b", **sure),
        "fine": post(http, ingest, output="fine", customer="b", **sure),
        "no": post(http, ingest, output="no", customer="b", **sure),
    }
    check_all(session, {"good": 0.9, "bad": 0.001, "fine": 0.5})
    return ids | {"later": post(http, ingest, output="later", customer="b", **sure)}


def test_rates_come_with_n_interval_and_coverage(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    answer = http.get("/v1/cmer?bucket=1d", headers=read).json()
    assert (answer["bucket"], answer["checker"]) == ("1d", CHECKER)
    [row] = answer["rows"]
    assert (row["n"], row["scored"], row["flagged"]) == (3, 3, 1)
    assert row["cmer"] == pytest.approx(1 / 3)
    assert 0 < row["low"] < 1 / 3 < row["high"] < 1
    assert row["coverage"] == pytest.approx(4 / 5)
    assert (row["uer"], row["uer_n"]) == (pytest.approx(1 / 3), 3)
    assert 0 < row["uer_low"] < 1 / 3 < row["uer_high"] < 1
    assert len(row["sim_quartiles"]) == 3
    assert (row["accepted"], row["waiting"], row["unscorable"]) == (5, 1, 1)


def test_rates_are_grouped_and_filtered(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    rows = http.get("/v1/cmer?bucket=1d&group_by=customer,endpoint", headers=read).json()["rows"]
    assert [(row["customer"], row["endpoint"], row["n"], row["flagged"]) for row in rows] == [
        ("a", "chat", 1, 0),
        ("b", "chat", 2, 1),
    ]
    rows = http.get("/v1/cmer?bucket=1d&customer=a", headers=read).json()["rows"]
    assert [(row["n"], row["flagged"]) for row in rows] == [(1, 0)]
    assert http.get("/v1/cmer?customer=nobody", headers=read).json()["rows"] == []


def test_every_bucket_width_counts_the_same(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    for bucket in ("5m", "1h", "1d"):
        rows = http.get(f"/v1/cmer?bucket={bucket}", headers=read).json()["rows"]
        assert (sum(row["n"] for row in rows), sum(row["flagged"] for row in rows)) == (3, 1), bucket


def test_without_an_n_there_is_no_rate_and_no_interval(
    http: TestClient, ingest: Headers, read: Headers, session: orm.Session
) -> None:
    post(http, ingest)
    [row] = http.get("/v1/cmer?bucket=1d", headers=read).json()["rows"]
    assert (row["n"], row["cmer"], row["low"], row["high"], row["uer"]) == (0, None, None, None, None)
    assert (row["uer_n"], row["uer_low"], row["uer_high"]) == (0, None, None)
    assert row["coverage"] == 0


@pytest.mark.parametrize(
    "query, field",
    [
        ("bucket=7m", "bucket"),
        ("group_by=colour", "group_by"),
        ("group_by=customer,colour", "group_by"),
        ("custmer=a", "custmer"),
        ("from=2026-11-24", "from"),
        ("from=2026-11-24T00:00:00Z&to=2026-11-23T00:00:00Z", "from"),
        ("bucket=5m&from=2026-01-01T00:00:00Z&to=2026-11-23T00:00:00Z", "from"),
        ("to=tomorrow", "to"),
        ("checker=nobody", "checker"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_name(
    http: TestClient, read: Headers, query: str, field: str
) -> None:
    answer = http.get(f"/v1/cmer?{query}", headers=read)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field


def test_an_answer_of_too_many_rates_is_refused_and_says_what_to_do(
    http: TestClient, read: Headers, checked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "/v1/cmer?bucket=5m&group_by=endpoint,model_version"
    rows = len(http.get(asked, headers=read).json()["rows"])
    monkeypatch.setattr(cmer, "MOST_ROWS", rows)
    assert http.get(asked, headers=read).status_code == 200, "as many as are allowed"
    monkeypatch.setattr(cmer, "MOST_ROWS", rows - 1)
    answer = http.get(asked, headers=read)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["details"] == {"field": "group_by", "limit": rows - 1}
    assert f"more than {rows - 1:,} rows" in error["message"]
    assert "wider `bucket`" in error["message"]


def test_an_unescaped_plus_in_a_time_is_understood(http: TestClient, read: Headers) -> None:
    answer = http.get("/v1/cmer?from=2026-11-20T00:00:00+01:00&to=2026-11-21T00:00:00Z", headers=read).json()
    assert answer["from"] == "2026-11-19T23:00:00+00:00"


def test_an_event_shows_its_check_and_decision(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    bad = http.get(f"/v1/events/{checked['bad']}", headers=read).json()
    assert bad["state"] == "checked"
    assert (bad["check"]["outcome"], bad["check"]["checker"]) == ("scored", CHECKER)
    assert (bad["check"]["similarity"], bad["check"]["score"]) == (0.3, 0.001)
    whole = {"start": 0, "end": 3, "text": "bad", "similarity": 0.3, "percentile": 0.001}
    assert bad["check"]["claims"] == [whole | {"statement": None, "negated": False}]
    assert (bad["decision"]["flagged"], bad["decision"]["policy_version"]) == (True, 1)
    unscorable = http.get(f"/v1/events/{checked['no']}", headers=read).json()
    assert (unscorable["check"]["outcome"], unscorable["check"]["reasons"]) == ("unscorable", ["nothing_visual"])
    assert unscorable["decision"] is None


@pytest.mark.parametrize(
    "query, outputs",
    [
        ("flagged=true", {"bad"}),
        ("flagged=false", {"good", "fine", "no", "later"}),
        ("outcome=scored", {"good", "bad", "fine"}),
        ("outcome=unscorable", {"no"}),
        ("state=checked", {"good", "bad", "fine", "no"}),
        ("state=waiting", {"later"}),
        ("flagged=true&customer=a", set()),
    ],
)
def test_lists_filter_by_check_and_decision(
    http: TestClient, read: Headers, checked: dict[str, str], query: str, outputs: set[str]
) -> None:
    rows = http.get(f"/v1/events?{query}", headers=read).json()["rows"]
    assert {row["id"] for row in rows} == {checked[output] for output in outputs}


def test_the_ledger_balances_every_hour_and_in_total(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    answer = http.get("/v1/ledger", headers=read).json()
    expected = {"accepted": 5, "scored": 3, "unscorable": 1, "waiting": 1}
    zero = dict.fromkeys(("invalid_image", "model_error", "quarantined"), 0)
    assert answer["totals"] == expected | zero
    for row in answer["rows"]:
        parts = [row[name] for name in answer["totals"] if name != "accepted"]
        assert row["accepted"] == sum(parts)
        assert row["difference"] == 0


def test_the_ledger_shows_an_event_that_went_missing(
    http: TestClient, ingest: Headers, read: Headers, session: orm.Session
) -> None:
    post(http, ingest)
    session.execute(sa.delete(models.Work))
    session.commit()
    [row] = http.get("/v1/ledger", headers=read).json()["rows"]
    assert (row["accepted"], row["difference"]) == (1, 1)


def test_a_ledger_that_takes_too_long_to_count_asks_for_a_shorter_window(
    http: TestClient, read: Headers, checked: dict[str, str], session: orm.Session
) -> None:
    factories.slow_events(session)
    session.commit()
    answer = http.get("/v1/ledger", headers=read)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"] == {"field": "from"}


def numbers(text: str) -> dict[str, float]:
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}


def test_metrics_count_what_became_of_events(http: TestClient, ingest: Headers, session: orm.Session) -> None:
    before = numbers(http.get("/metrics").text)
    http.post(
        "/v1/events", json={"events": [event(event_id="a"), event(event_id="a"), event(output="")]}, headers=ingest
    )
    http.post("/v1/events", json=event(output=""), headers=ingest)
    answer = http.get("/metrics")
    after = numbers(answer.text)
    grown = {name: after[name] - before[name] for name in after}
    assert grown['cmerwatch_events_total{status="accepted"}'] == 1
    assert grown['cmerwatch_events_total{status="duplicate"}'] == 1
    assert grown['cmerwatch_events_total{status="rejected"}'] == 2
    assert grown["cmerwatch_ingest_seconds_count"] == 1
    assert after["cmerwatch_waiting"] == 1
    assert after["cmerwatch_quarantined"] == 0
    session.execute(sa.update(models.Work).values(state=models.QUARANTINED))
    session.commit()
    later = numbers(http.get("/metrics").text)
    assert (later["cmerwatch_waiting"], later["cmerwatch_quarantined"]) == (0, 1)


def test_metrics_are_well_formed(http: TestClient) -> None:
    answer = http.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    for line in answer.text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) cmerwatch_\w+ .+|cmerwatch_\w+(\{\w+="[^"]+"\})? [\dNae.+-]+', line), line
    buckets = [value for name, value in numbers(answer.text).items() if "_bucket" in name]
    assert buckets == sorted(buckets)
    assert buckets[-1] == numbers(answer.text)["cmerwatch_ingest_seconds_count"]


def test_ready_says_how_far_ahead_events_can_be_taken(http: TestClient, session: orm.Session) -> None:
    answer = http.get("/readyz").json()
    assert (answer["status"], answer["database"], answer["clock"]) == ("ready", "ready", "ready")
    assert answer["partition_days_ahead"] >= 8
    assert dt.timedelta(seconds=answer["clock_skew_seconds"]) < dt.timedelta(seconds=30)


def test_ready_and_metrics_say_when_a_worker_was_last_there(http: TestClient, session: orm.Session) -> None:
    assert http.get("/readyz").json()["worker_clock_seconds_ago"] is None
    assert "cmerwatch_worker_clock_age_seconds NaN" in http.get("/metrics").text
    session.add(models.Heartbeat(name="clock", at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=90)))
    session.commit()
    ready = http.get("/readyz")
    assert ready.status_code == 200  # without a worker events wait, but they are taken
    assert 89 < ready.json()["worker_clock_seconds_ago"] < 150
    assert 89 < numbers(http.get("/metrics").text)["cmerwatch_worker_clock_age_seconds"] < 150


@pytest.mark.parametrize("path", ["/v1/cmer", "/v1/ledger", "/v1/events"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("to=9999-12-31T23:59:59Z", "to"),
        ("to=0001-01-01T00:00:00Z", "to"),
        ("from=0001-01-01T00:00:00Z", "from"),
    ],
)
def test_a_time_at_the_end_of_the_calendar_is_refused_by_name(
    http: TestClient, read: Headers, path: str, query: str, field: str
) -> None:
    answer = http.get(f"{path}?{query}", headers=read)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"] == {"field": field, "limit": [1900, 9998]}


def test_the_last_allowed_moment_is_answered(http: TestClient, read: Headers, checked: dict[str, str]) -> None:
    for path in ("/v1/cmer?bucket=5m", "/v1/cmer?bucket=1d", "/v1/ledger?", "/v1/events?"):
        assert http.get(f"{path}&to=9998-12-31T23:59:59.999Z", headers=read).status_code == 200
    for path in ("/v1/cmer?bucket=1d", "/v1/ledger?", "/v1/events?"):
        assert http.get(f"{path}&to=1900-01-01T00:00:00Z", headers=read).status_code == 200


@pytest.mark.parametrize("query", ["group_by=customer&group_by=model", "customer=a&customer=b"])
def test_a_parameter_given_twice_is_refused(http: TestClient, read: Headers, query: str) -> None:
    answer = http.get(f"/v1/cmer?{query}", headers=read)
    assert answer.status_code == 422
    assert "more than once" in answer.json()["error"]["message"]


def test_rates_are_of_the_checker_in_use_and_the_others_of_the_window_are_listed(
    http: TestClient, ingest: Headers, read: Headers, checked: dict[str, str], session: orm.Session
) -> None:
    other = checks.register(session, name="another:1", label="another", is_demo=False, reference_version="r1")
    token = uuid.uuid4()
    [waiting] = checks.claim(session, 100, 30, token)
    policy = policies.current(session, {waiting.project_id})[waiting.project_id]
    result = CheckResult(waiting, "scored", 0.3, 0.9, claims=(ClaimScore(0, 5, 0.3, 0.9),))
    rollups.add(session, checks.complete(session, token, other, [(result, policy.decide(result, True))]))
    session.commit()
    answer = http.get("/v1/cmer?bucket=1d", headers=read).json()
    assert (answer["checker"], sum(row["n"] for row in answer["rows"])) == ("another:1", 1)
    assert {one["checker"]: one["outputs"] for one in answer["checkers"]} == {CHECKER: 4, "another:1": 1}
    old = http.get(f"/v1/cmer?bucket=1d&checker={CHECKER}", headers=read).json()
    assert sum(row["n"] for row in old["rows"]) == 3
