"""What Slack, PagerDuty and webhooks are sent, against their published limits, and how their answers are read."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from cmerwatch import alert_notices, errors, notify
from cmerwatch.notify import pagerduty, slack, webhook
from cmerwatch.notify.kind import Dead, Delivered, Message, Outcome, Plainer, Retry
from cmerwatch.shapes import Notice, Part
from tests.alerting import notice

ID = "0198c0de-0000-7000-8000-000000000001"
KEY = "R0123456789012345678901234567890"
PING = "<!channel> <@U123> <https://evil.example|click> & *bold* @here"

text = st.text(max_size=400) | st.just(PING) | st.just("W" * 100_000)
share = st.none() | st.floats(0, 1)
parts = st.builds(
    Part,
    slice=st.dictionaries(st.sampled_from(["endpoint", "customer", "model_version"]), text),
    since=text,
    value=share,
    low=share,
    high=share,
    n=st.integers(0, 10**9),
    link=text | st.just("https://cmerwatch.example.com/?a=<!channel>|x&b=1" + "x" * 330),
    events_link=text,
    reason=text,
)
notices = st.builds(
    Notice,
    alert_id=text,
    rule_id=text,
    status=st.sampled_from(["firing", "repeat", "update", "resolved", "test"]),
    severity=st.sampled_from(["info", "warning", "critical"]),
    project=text,
    rule=text,
    slice=st.dictionaries(st.sampled_from(["endpoint", "customer", "model_version"]), text),
    metric=st.sampled_from(["cmer", "uer"]),
    value=share,
    low=share,
    high=share,
    n=st.integers(0, 10**9),
    baseline=share,
    coverage=share,
    condition=text,
    window_start=text,
    window_end=text,
    fired_at=text,
    resolved_at=st.none() | text,
    link=text | st.just("https://cmerwatch.example.com/?a=<!channel>|x&b=1"),
    events_link=text,
    worst=st.lists(st.tuples(text, text, st.floats(0, 1), st.integers(0, 10**6)), max_size=40).map(tuple),
    changes=st.lists(text, max_size=40).map(tuple),
    reason=text,
    group_id=text,
    parts=st.lists(parts, max_size=alert_notices.LISTED).map(tuple),
    slices=st.integers(1, 1000),
    joined=st.integers(0, 100),
    recovered=st.integers(0, 100),
)
messages = st.builds(Message, id=st.just(ID), notice=notices, is_first=st.booleans(), is_plain=st.booleans())
NOW = dt.datetime(2026, 3, 4, 10, 0, 3, tzinfo=dt.UTC)


def body(kind: str, message: Message) -> dict[str, Any]:
    config = {"url": "https://hooks.example.com/x", "routing_key": KEY, "secret": webhook.make_secret()}
    made: dict[str, Any] = json.loads(notify.KINDS[kind].request(message, config, NOW).body)
    return made


# Slack


def texts(node: Any) -> list[dict[str, Any]]:
    """Every text object of a payload."""
    if isinstance(node, list):
        return [found for one in node for found in texts(one)]
    if not isinstance(node, dict):
        return []
    inner = [found for value in node.values() for found in texts(value)]
    return [node, *inner] if node.get("type") in ("plain_text", "mrkdwn") else inner


@given(messages)
def test_a_slack_message_keeps_every_published_limit(message: Message) -> None:
    made = body("slack", message)
    blocks = made.get("blocks", [])
    assert len(blocks) <= 10
    assert len(json.dumps(blocks, ensure_ascii=False)) <= 13_000
    assert 0 < len(made["text"]) <= 40_000
    for block in blocks:
        if block["type"] == "header":
            assert len(block["text"]["text"]) <= 150
            assert block["text"]["type"] == "plain_text"
        assert len(block.get("fields", [])) <= 10
        assert all(len(field["text"]) <= 2_000 for field in block.get("fields", []))
        assert len(block.get("text", {}).get("text", "")) <= 3_000
    assert all(len(one["text"]) >= 1 for one in texts(blocks))


@given(messages)
def test_nothing_untrusted_can_ping_or_link_in_slack(message: Message) -> None:
    """Only plain_text escapes Slack's markup: everything else holds no < but that of our own links."""
    made = body("slack", message)
    marked = [one["text"] for one in texts(made) if one["type"] == "mrkdwn"] + [made["text"]]
    for said in marked:
        for start in [at for at, character in enumerate(said) if character == "<"]:
            inside, _, label = said[start + 1 : said.index(">", start)].partition("|")
            assert inside.lower().startswith(("https://", "http://"))
            assert label in ("Open the slice", "See outputs", "Open")
    assert "<!channel>" not in "".join(marked)


def test_a_slack_message_says_the_numbers_and_links_to_the_slice() -> None:
    made = body("slack", Message(ID, notice()))
    said = json.dumps(made, ensure_ascii=False)
    assert made["blocks"][0]["text"]["text"] == "Firing: CMER over 1.5 times its baseline (endpoint /describe)"
    for part in ("46.3% [42.2%, 50.5%], n = 570", "8.4%", "prompt_type count: 61.0% of 118", "2026.11.2", ID):
        assert part in said
    assert "<https://cmerwatch.example.com/?window=1h&amp;endpoint=%2Fdescribe|Open the slice>" in said


def test_an_alert_that_ended_before_it_was_told_of_is_told_once_with_both() -> None:
    ended = notice(status="resolved", resolved_at="2026-03-04T11:00:00+00:00")
    assert "Fired and resolved: " in body("slack", Message(ID, ended, is_first=True))["text"]
    assert body("slack", Message(ID, ended, is_first=False))["text"].startswith("Resolved: ")


def test_nothing_is_still_firing_to_who_never_heard_of_it() -> None:
    again = notice(status="repeat")
    assert body("slack", Message(ID, again, is_first=True))["text"].startswith("Firing: ")
    assert body("slack", Message(ID, again, is_first=False))["text"].startswith("Still firing: ")


@pytest.mark.parametrize(
    "status, said, outcome",
    [
        (200, b"ok", Delivered),
        (200, b"ok\n", Delivered),
        (200, b"no_text", Retry),
        (200, b"<html>captive portal</html>", Retry),
        (200, b"", Retry),
        (200, b"invalid_blocks", Plainer),
        (400, b"invalid_blocks", Plainer),
        (400, b"invalid_payload", Plainer),
        (400, b"user_not_found", Dead),
        (404, b"channel_not_found", Dead),
        (301, b"", Retry),
        (429, b"rate_limited", Retry),
        (500, b"rollup_error", Retry),
        (503, b"", Retry),
    ],
)
def test_slacks_answers_are_read(status: int, said: bytes, outcome: type[Outcome]) -> None:
    assert isinstance(slack.classify(status, {}, said), outcome)


@pytest.mark.parametrize(
    "status, said",
    [(403, b"action_prohibited"), (403, b"invalid_token"), (400, b"invalid_token"), (404, b"no_service"),
     (404, b"no_active_hooks"), (410, b"channel_is_archived")],
)  # fmt: skip
def test_what_slack_refuses_for_good_disables_the_channel(status: int, said: bytes) -> None:
    assert slack.classify(status, {}, said) == Dead(
        f"Slack answered {status}: this webhook was removed or is not allowed to post.", disables=True
    )


# Incidents of several slices


def part(value: float, n: int, **of: str) -> Part:
    query = "&".join(f"{name}={value}" for name, value in of.items())
    link = f"https://cmerwatch.example.com/?{query}"
    return Part(of, "2026-03-04T10:00:00Z", value, value - 0.05, value + 0.05, n, link, link)


def incident(**fields: Any) -> Notice:
    """The project leads, with two versions' and endpoints' worth of slices."""
    listed = (part(0.6, 120, model_version="2"), part(0.5, 570), part(0.45, 300, endpoint="/a"))
    return notice(slice={}, group_id="g", parts=listed, slices=3, worst=(), **fields)


def test_slack_lists_every_slice_of_an_incident_with_its_numbers_beside_its_link() -> None:
    made = body("slack", Message(ID, incident()))
    assert made["text"] == "Firing: CMER over 1.5 times its baseline (project acme and 2 more slices)"
    [fields] = [
        block["fields"] for block in made["blocks"] if any(f["type"] == "mrkdwn" for f in block.get("fields", []))
    ]
    said, links = [one["text"] for one in fields[::2]], [one["text"] for one in fields[1::2]]
    assert said == [
        "model_version 2: 60.0% [55.0%, 65.0%], n = 120",
        "project acme: 50.0% [45.0%, 55.0%], n = 570",
        "endpoint /a: 45.0% [40.0%, 50.0%], n = 300",
    ]
    assert links[2] == "<https://cmerwatch.example.com/?endpoint=/a|Open>"


def test_an_incident_that_spreads_is_told_shortly_in_slack() -> None:
    made = body("slack", Message(ID, incident(status="update", joined=2), is_first=False))
    assert made["text"].startswith("Now also on 2 more slices: CMER over 1.5 times its baseline (project acme")
    assert "model_version 2: 60.0%" in json.dumps(made)
    assert "Condition" not in json.dumps(made)
    whole = body("slack", Message(ID, incident(status="update", joined=2), is_first=True))
    assert whole["text"].startswith("Firing: ")
    assert "Condition" in json.dumps(whole)


def test_an_incident_that_recovers_in_part_says_what_still_fires() -> None:
    made = body("pagerduty", Message(ID, incident(status="update", recovered=1), is_first=False))
    assert made["payload"]["summary"].startswith("1 slice recovered, 3 still firing: ")


def test_an_update_is_a_trigger_with_the_incidents_key_so_that_nobody_is_paged_again() -> None:
    first = body("pagerduty", Message(ID, incident()))
    update = body("pagerduty", Message(ID, incident(status="update", joined=1), is_first=False))
    assert (update["event_action"], update["dedup_key"]) == ("trigger", first["dedup_key"])
    assert update["payload"]["custom_details"]["firing"][2] == "endpoint /a: 45.0% [40.0%, 50.0%], n = 300"
    assert {
        "href": "https://cmerwatch.example.com/?endpoint=/a",
        "text": "endpoint /a: 45.0% [40.0%, 50.0%], n = 300",
    } in (update["links"])


def test_a_webhook_knows_an_update_by_its_type_and_reads_every_slice() -> None:
    made = body("webhook", Message(ID, incident(status="update", joined=1), is_first=False))
    assert made["type"] == "alert.update"
    assert [one["slice"] for one in made["data"]["parts"]] == [{"model_version": "2"}, {}, {"endpoint": "/a"}]
    assert made["data"]["group_id"] == "g"


@pytest.mark.parametrize("kind", ["slack", "pagerduty"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_slices_over_what_fits_are_counted(kind: str, is_plain: bool) -> None:
    many = replace(incident(), slices=40)
    assert "And 37 more slices." in json.dumps(body(kind, Message(ID, many, is_plain=is_plain)))


def test_an_alert_of_one_slice_is_no_list() -> None:
    alone = notice(parts=(part(0.46, 570, endpoint="/describe"),))
    made = json.dumps(body("slack", Message(ID, alone)))
    assert made.count("46.") == 1
    assert "prompt_type count: 61.0% of 118" in made


def test_silence_is_told_in_words_where_there_is_no_rate() -> None:
    silent = replace(part(0.5, 0, endpoint="/a"), value=None, low=None, high=None, n=0, reason="nothing arrived")
    said = json.dumps(body("slack", Message(ID, replace(incident(), parts=(silent,)))))
    assert "endpoint /a: nothing arrived" in said


# PagerDuty


@given(messages)
def test_a_pagerduty_event_keeps_every_published_limit(message: Message) -> None:
    config = {"url": pagerduty.EVENTS_URL, "routing_key": KEY}
    request = pagerduty.request(message, config, NOW)
    assert len(request.body) <= 512_000
    made = json.loads(request.body)
    assert len(made["dedup_key"]) <= 255
    assert (made["event_action"] == "resolve") == (message.notice.status == "resolved")
    if made["event_action"] == "trigger":
        assert 1 <= len(made["payload"]["summary"]) <= 1_024
        assert made["payload"]["severity"] in ("critical", "error", "warning", "info")
        assert made["payload"]["source"]
        assert all(link["href"].startswith(("https://", "http://")) for link in made["links"])


def test_all_messages_of_a_group_have_one_key_and_other_groups_have_others() -> None:
    first = pagerduty.dedup_key(notice(group_id="g"))
    later = notice(group_id="g", status="update", slice={}, alert_id="another", value=0.1)
    assert first == pagerduty.dedup_key(later)
    others = [notice(group_id="h"), notice(group_id="g", project="other"), notice()]
    assert len({first, *map(pagerduty.dedup_key, others)}) == 4


def test_an_alert_of_the_release_before_is_resolved_under_the_key_it_was_triggered_with() -> None:
    """Every episode of a rule and slice had one key; a resolve under another would leave its incident open."""
    first = pagerduty.dedup_key(notice())
    identity = "acme|00000000-0000-0000-0000-000000000008|" + json.dumps({"endpoint": "/describe"})
    assert first == "cmerwatch:" + hashlib.sha256(identity.encode()).hexdigest()
    assert first == pagerduty.dedup_key(notice(alert_id="another", status="resolved", value=0.1))
    others = [notice(rule_id="other"), notice(slice={}), notice(slice={"endpoint": "/x"}), notice(project="other")]
    assert len({first, *map(pagerduty.dedup_key, others)}) == 5
    assert first.startswith("cmerwatch:")
    assert len(first) == len("cmerwatch:") + 64


def test_the_slices_order_of_writing_makes_no_other_key() -> None:
    one = notice(slice={"endpoint": "/a", "model": "m"})
    other = notice(slice={"model": "m", "endpoint": "/a"})
    assert pagerduty.dedup_key(one) == pagerduty.dedup_key(other)


def test_details_over_the_limit_are_left_out_and_the_rest_is_sent() -> None:
    huge = notice(changes=tuple("ä" * 100_000 for _ in range(10)))
    made = body("pagerduty", Message(ID, huge))
    assert "left_out" in made["payload"]["custom_details"]
    assert "CMER over" in made["payload"]["summary"]


@pytest.mark.parametrize(
    "status, said, outcome",
    [
        (202, b'{"status":"success"}', Delivered()),
        (400, b'{"status":"invalid event"}', Dead("PagerDuty answered 400 and will not take this event.")),
        (429, b"", Retry("The service answered 429: too many messages.", 7.0, holds=True)),
        (500, b"", Retry("The service answered 500.", 7.0)),
    ],
)
def test_pagerdutys_answers_are_read(status: int, said: bytes, outcome: Outcome) -> None:
    assert pagerduty.classify(status, {"retry-after": "7"}, said) == outcome


def test_an_unknown_routing_key_disables_the_channel() -> None:
    outcome = pagerduty.classify(400, {}, b'{"errors":["Invalid Routing Key"]}')
    assert isinstance(outcome, Dead)
    assert outcome.disables


# Webhooks


@given(messages)
def test_the_official_verifier_takes_every_message(message: Message) -> None:
    config = {"url": "https://hooks.example.com/x", "secret": webhook.make_secret()}
    request = webhook.request(message, config, dt.datetime.now(dt.UTC))
    told = Webhook(config["secret"]).verify(request.body, request.headers)
    assert told["type"] == f"alert.{message.notice.status}"


def test_the_official_verifier_refuses_a_changed_body_another_secret_and_an_old_try() -> None:
    config = {"url": "https://hooks.example.com/x", "secret": webhook.make_secret()}
    now = dt.datetime.now(dt.UTC)
    request = webhook.request(Message(ID, notice()), config, now)
    with pytest.raises(WebhookVerificationError):
        Webhook(config["secret"]).verify(request.body + b" ", request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(webhook.make_secret()).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(config["secret"]).verify(request.body, request.headers | {"webhook-id": "another"})
    late = webhook.request(Message(ID, notice()), config, now - dt.timedelta(minutes=6))
    with pytest.raises(WebhookVerificationError):
        Webhook(config["secret"]).verify(late.body, late.headers)


def test_each_try_has_the_same_id_and_bytes_and_its_own_time() -> None:
    config = {"url": "https://hooks.example.com/x", "secret": webhook.make_secret()}
    zone = dt.timezone(dt.timedelta(hours=5))
    one = webhook.request(Message(ID, notice()), config, NOW)
    two = webhook.request(Message(ID, notice()), config, (NOW + dt.timedelta(seconds=90)).astimezone(zone))
    assert (one.body, one.headers["webhook-id"]) == (two.body, two.headers["webhook-id"])
    assert one.headers["webhook-id"] == ID
    assert int(two.headers["webhook-timestamp"]) == int(NOW.timestamp()) + 90
    assert one.headers["webhook-signature"] != two.headers["webhook-signature"]


def test_after_a_rotation_both_secrets_verify_for_a_day() -> None:
    now = dt.datetime.now(dt.UTC)
    old = {"url": "https://hooks.example.com/x", "secret": webhook.make_secret()}
    new = webhook.rotated(old, now)
    request = webhook.request(Message(ID, notice()), new, now)
    for secret in (old["secret"], new["secret"]):
        Webhook(secret).verify(request.body, request.headers)
    later = webhook.request(Message(ID, notice()), new, now + dt.timedelta(hours=25))
    assert len(later.headers["webhook-signature"].split()) == 1


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_" + "A" * 100, "whsec_not base64!" + "A" * 30]
)
def test_a_secret_out_of_the_standards_bounds_is_refused(secret: str) -> None:
    if secret:
        with pytest.raises(errors.Invalid, match="24 to 64 random bytes"):
            webhook.configure({"url": "https://hooks.example.com/x", "secret": secret})
    else:
        assert webhook.configure({"url": "https://hooks.example.com/x"})["secret"].startswith("whsec_")


@pytest.mark.parametrize(
    "status, outcome",
    [(200, Delivered), (204, Delivered), (299, Delivered), (301, Retry), (307, Retry), (400, Retry), (404, Retry),
     (410, Dead), (429, Retry), (500, Retry)],
)  # fmt: skip
def test_webhooks_answers_are_read(status: int, outcome: type[Outcome]) -> None:
    assert isinstance(webhook.classify(status, {}, b""), outcome)


def test_only_gone_disables_a_webhook() -> None:
    outcome = webhook.classify(410, {}, b"")
    assert isinstance(outcome, Dead)
    assert outcome.disables


# All of them


@given(messages, st.sampled_from(sorted(notify.KINDS)))
def test_any_notice_makes_a_request(message: Message, kind: str) -> None:
    made = body(kind, message)
    assert json.dumps(made)


@given(st.integers(100, 599), st.dictionaries(st.just("retry-after"), st.text(max_size=30)), st.binary(max_size=300))
def test_any_answer_is_read_without_repeating_it(status: int, headers: dict[str, str], said: bytes) -> None:
    for kind in notify.KINDS.values():
        outcome = kind.classify(status, headers, said)
        if not isinstance(outcome, Delivered):
            assert len(outcome.reason) < 150
            assert outcome.reason.isprintable()


def test_half_a_surrogate_pair_is_sent_as_a_question_mark() -> None:
    for kind in notify.KINDS:
        assert body(kind, Message(ID, replace(notice(), rule="broken \ud800 text")))


@pytest.mark.parametrize(
    "value, seconds",
    [("7", 7.0), ("0", 0.0), ("Wed, 04 Mar 2026 10:00:33 GMT", 30.0), ("Wed, 04 Mar 2020 10:00:33 GMT", 0.0),
     ("", None), ("soon", None), ("-5", None), ("99999999999999", None), ("٣", None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    assert notify.retry_after({"retry-after": value}, NOW) == seconds


@given(st.integers(1, 200), st.none() | st.floats(0, 10**9), st.floats(-1, 1))
def test_each_wait_is_at_least_its_schedule_and_at_most_what_was_asked(
    attempts: int, after: float | None, spread: float
) -> None:
    for kind in notify.KINDS.values():
        wait = notify.delay(kind.schedule, attempts, after, spread)
        if attempts > len(kind.schedule):
            assert wait is None
        else:
            base = kind.schedule[attempts - 1]
            assert wait is not None
            assert 0.8 * base <= wait <= max(1.2 * base, 3600)
            assert after is None or wait >= min(after, 3600)


def test_webhooks_are_retried_for_a_day_and_pages_too() -> None:
    assert webhook.schedule == (5, 300, 1800, 7200, 18000, 36000, 36000)
    for kind in (slack, pagerduty):
        assert kind.schedule[:6] == (5, 30, 60, 120, 300, 600)
        assert 23.5 * 3600 < sum(kind.schedule) <= 24.5 * 3600
