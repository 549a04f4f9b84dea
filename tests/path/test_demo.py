"""`cmerwatch demo` as a person runs it: one command, a filled console, every event checked by the real worker."""

from __future__ import annotations

import base64
import collections
import datetime as dt
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import standardwebhooks

from cmerwatch import blobs, db, demo, demo_data, doctor, intervals
from tests.path.one_machine import REPOSITORY, Machine
from tests.stack import wait_until

pytestmark = pytest.mark.xdist_group("demo")  # one demo is filled, and these tests share it


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("demo") / "data", "demo")
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.end()


@pytest.fixture
def running(filled: Machine) -> Machine:
    if filled.process is None:
        filled.start()
    return filled


def recorded() -> list[demo_data.RecordedEvent]:
    return list(demo_data.recording())


def totals(running: Machine, group: str) -> dict[str, collections.Counter[str]]:
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in running.call(f"/v1/cmer?bucket=1h&group_by={group}")["rows"]:
        found[row[group]].update({name: row[name] for name in ("n", "scored", "flagged", "waiting")})
    return dict(found)


def test_the_ready_line_says_all_a_script_needs(running: Machine) -> None:
    assert set(running.ready) == {"url", "sign_in_url", "api_key", "reviewer_api_key", "webhook_secret", "pid"}
    assert running.process is not None
    assert running.ready["pid"] == running.process.pid
    assert running.ready["sign_in_url"].startswith(running.ready["url"] + "/sign-in/")


def test_every_recorded_event_is_there_once_and_has_exactly_one_check(running: Machine) -> None:
    rows = running.rows(
        "SELECT e.event_key, count(c.event_id) FROM events e LEFT JOIN checks c ON c.event_id = e.id "
        "WHERE e.event_key LIKE 'recorded-%' GROUP BY e.event_key"
    )
    assert len(rows) >= 2000
    assert {key for key, _ in rows} == {event.event_id for event in recorded()}
    assert {count for _, count in rows} == {1}
    assert running.rows("SELECT count(*) FROM work WHERE state = 9") == [(0,)]


def test_the_books_balance_over_all_eight_days(running: Machine) -> None:
    ledger = running.call("/v1/ledger")
    assert ledger["totals"]["accepted"] >= len(recorded())
    assert ledger["totals"]["waiting"] == 0
    assert all(row["difference"] == 0 for row in ledger["rows"])
    days = {row["hour"][:10] for row in ledger["rows"]}
    assert len(days) >= 8


def test_the_recording_ends_with_the_last_bucket_closed_before_the_first_start(running: Machine) -> None:
    ((made, last, recent),) = running.rows(
        "SELECT p.created_at, max(e.received_at), "
        "count(*) FILTER (WHERE e.received_at >= p.created_at - interval '35 minutes') "
        "FROM projects p JOIN events e ON e.project_id = p.id WHERE e.event_key LIKE 'recorded-%' GROUP BY 1"
    )
    assert made - dt.timedelta(minutes=10) <= last <= made
    assert recent >= 200


def test_every_dimension_of_the_console_is_filled(running: Machine) -> None:
    assert len(totals(running, "endpoint")) >= 3
    assert len(totals(running, "prompt_type")) >= 3
    assert len(totals(running, "customer")) >= 3
    assert len(totals(running, "model_version")) >= 2


def test_the_regressed_version_stands_out_with_intervals_apart(running: Machine) -> None:
    by_version = totals(running, "model_version")
    good = recorded()[0].model_version
    (regressed,) = {event.model_version for event in recorded()} - {good}
    rates = {name: counts["flagged"] / counts["n"] for name, counts in by_version.items()}
    assert rates[regressed] >= 3 * rates[good]
    _, good_high = intervals.wilson(by_version[good]["flagged"], by_version[good]["n"])
    regressed_low, _ = intervals.wilson(by_version[regressed]["flagged"], by_version[regressed]["n"])
    assert good_high < regressed_low


def test_flagged_events_and_a_random_audit_wait_for_reviewers(running: Machine) -> None:
    kinds = dict(running.rows("SELECT kind, count(*) FROM review_items GROUP BY kind"))
    flagged = running.rows("SELECT count(*) FROM decisions WHERE flagged")[0][0]
    assert kinds["flagged"] == flagged > 0
    assert kinds["audit"] > 0


def test_the_key_may_send_and_read_and_nothing_else(running: Machine) -> None:
    public = running.ready["api_key"].split("_")[1]
    assert running.rows(f"SELECT scopes FROM api_keys WHERE id = '{public}'") == [(["ingest", "read"],)]


def test_its_rules_have_fired_on_the_regressed_version_and_nobody_is_still_to_be_told(running: Machine) -> None:
    good = recorded()[0].model_version
    (regressed,) = {event.model_version for event in recorded()} - {good}
    firing = [row for row in running.call("/v1/alerts")["rows"] if row["state"] == "firing"]
    blamed = [row for row in firing if row["slice"] == {"model_version": regressed}]
    assert {row["severity"] for row in blamed} == {"warning", "critical"}
    assert not [row for row in firing if row["slice"].get("model_version") == good]
    told = [delivery for row in firing for delivery in row["deliveries"]]
    assert {delivery["state"] for delivery in told} == {"delivered"}
    assert {delivery["channel"] for delivery in told} == {name for (name,) in running.rows("SELECT name FROM channels")}


def test_the_planted_regression_pages_each_channel_once_and_names_every_slice_of_it(running: Machine) -> None:
    """It reaches the project, its version and endpoints; as long as it lasts, nothing else is a page."""
    firing = running.rows("SELECT channel_id, notice FROM deliveries WHERE kind = 'firing'")
    assert len(firing) == len({channel for channel, _ in firing}) == 3
    good = recorded()[0].model_version
    (regressed,) = {event.model_version for event in recorded()} - {good}
    for _, notice in firing:
        assert (notice["severity"], notice["slice"]) == ("critical", {})
        named = [part["slice"] for part in notice["parts"]]
        assert {"model_version": regressed} in named
        assert notice["slices"] == len(named) >= 3
    rows = [row for row in running.call("/v1/alerts")["rows"] if row["severity"] == "critical"]
    assert len({row["group"] for row in rows}) == 1
    assert all(row["deliveries"] for row in rows), "whoever asks for one slice sees that it was told"


def test_the_sink_shows_the_exact_bodies_that_slack_pagerduty_and_a_webhook_were_sent(running: Machine) -> None:
    sent = running.rows("SELECT kind, body FROM sink_messages")
    assert {kind for kind, _ in sent} == {"slack", "pagerduty", "webhook"}
    delivered = running.rows("SELECT count(*) FROM deliveries WHERE state = 'delivered'")[0][0]
    assert len(sent) == delivered > 0
    assert all(json.loads(body) for _, body in sent)


def test_the_webhook_secret_it_prints_verifies_what_the_sink_was_sent(running: Machine) -> None:
    verifier = standardwebhooks.Webhook(running.ready["webhook_secret"])
    for headers, body in running.rows("SELECT headers, body FROM sink_messages WHERE kind = 'webhook'"):
        assert verifier.verify(body, {name.lower(): value for name, value in headers.items()})


def test_its_reviewer_key_works_the_queue_and_nothing_else(running: Machine) -> None:
    key = running.ready["reviewer_api_key"]
    taken = running.call("/v1/reviews/next", {}, key=key)
    item, token = taken["item"]["id"], taken["lease"]["token"]
    running.call(f"/v1/reviews/{item}/skip", {"lease_token": token, "reason": "tried by a test"}, key=key)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        running.call("/v1/cmer", key=key)


def test_the_sign_in_link_works_once(running: Machine) -> None:
    with urllib.request.urlopen(running.ready["sign_in_url"], timeout=10) as page:
        assert page.status == 200


def test_an_event_sent_to_the_running_demo_is_checked(running: Machine) -> None:
    event = {
        "endpoint": "/mine",
        "output": "A red circle.",
        "confidence": 0.95,
        "images": [{"data": base64.b64encode(doctor.red_circle()).decode()}],
    }
    event_id = running.call("/v1/events", event)["results"][0]["id"]
    wait_until(lambda: running.call(f"/v1/events/{event_id}")["state"] == "checked")
    assert running.call(f"/v1/events/{event_id}")["check"]["outcome"] == "scored"


def test_the_doctor_finds_the_demo_well_and_names_what_a_wrong_key_breaks(running: Machine) -> None:
    url, key = running.ready["url"], running.ready["api_key"]
    assert [step.said for step in doctor.examine(url, key) if not step.is_ok] == []
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    last = list(doctor.examine(url, mistyped))[-1]
    assert (last.name, last.is_ok) == ("send a test event", False)


def test_someone_elses_folder_is_refused_while_this_one_runs(running: Machine) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "cmerwatch.cli", "demo", "--port", "0", "--data-dir", str(running.folder)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert second.stdout == ""
    assert f"in use by the running process {running.ready['pid']}" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_every_child_with_status_0_and_the_next_start_keeps_the_data(
    running: Machine, number: signal.Signals
) -> None:
    counts = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM checks), (SELECT sum(scored) FROM rollups_5m)"
    before, key, children = running.rows(counts), running.ready["api_key"], running.pids()
    assert len(children) >= 4
    code, rest = running.end(number)
    assert (code, rest) == (0, "")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    running.start()
    assert running.rows(counts) == before
    assert running.ready["api_key"] == key, "no key piles up: the first one is printed again"
    assert running.call("/v1/ledger", key=key)["totals"]["waiting"] == 0


def test_a_start_after_a_kill_recovers(running: Machine) -> None:
    before = running.rows("SELECT count(*) FROM checks")
    code, _ = running.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    running.start()
    assert running.rows("SELECT count(*) FROM checks") == before


def test_a_seeding_cut_short_goes_on_where_it_was(
    committed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a database of its own: the first chunks only, then the rest of it, with nothing twice."""
    some = recorded()[:300]
    monkeypatch.setattr(demo_data, "recording", lambda: iter(some))

    class Cut(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done >= 2 * demo.CHUNK:
            raise Cut

    engine, store = db.SessionLocal.kw["bind"], blobs.FolderStore(tmp_path / "blobs")
    with pytest.raises(Cut):
        demo.seed(engine, store, cut)
    assert demo.seed(engine, store, lambda done, total: None) == len(some) - 2 * demo.CHUNK
    assert demo.seed(engine, store, lambda done, total: None) == 0
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*), count(DISTINCT event_key) FROM events")).one() == (
            len(some),
            len(some),
        )
    assert demo.waiting() == len(some)
