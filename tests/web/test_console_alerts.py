"""The pages of whoever is on call: what fires, the rules in plain words, silences; hostile names everywhere."""

from __future__ import annotations

import datetime as dt
import html
import re
import uuid
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, alert_rules, alert_views, alerts, blobs, cmer_series, models, silences
from cmerwatch_web import alert_charts
from cmerwatch_web.alert_charts import Reading
from cmerwatch_web.console import alerts as alert_pages
from cmerwatch_web.console import overview, views
from tests.core import watched
from tests.web import seeded

HOSTILE = '<script>alert("x")</script>\u202egnp.exe'


@pytest.fixture
def engineer(session: orm.Session, user: models.User, project: models.Project) -> None:
    """The signed-in person may change rules."""
    session.get_one(models.Membership, (project.id, user.id)).role = "engineer"
    session.commit()


def fire(session: orm.Session, project: models.Project, name: str = "too many", **rule: Any) -> models.Alert:
    now = dt.datetime.now(dt.UTC)
    watched.rule(session, project.id, name=name, **rule)
    at = alerts.last_closed(now) - watched.MINUTES_10
    watched.lay(session, project.id, at, 60, flagged=40, endpoint=HOSTILE, model_version=HOSTILE)
    watched.lay(session, project.id, at, 60, flagged=30, endpoint="/vqa", model_version="v1")
    alerts.evaluate(session, project.id, now)
    session.commit()
    return watched.episodes(session, project.id)[0]


def form(rule: models.AlertRule | None = None, **changed: str | list[str]) -> dict[str, str | list[str]]:
    """What the browser would send of the rule form."""
    known: dict[str, str | list[str]] = {
        "name": "too many",
        "kind": "threshold",
        "metric": "cmer",
        "severity": "warning",
        "threshold_percent": "15",
        "multiple": "",
        "window_minutes": "60",
        "for_minutes": "0",
        "keep_minutes": "10",
        "repeat_minutes": "240",
        "min_n": "50",
        "coverage_percent": "95",
        "scope": ["project", "endpoint"],
        "enabled": "on",
    }
    return known | changed


def test_what_fires_is_shown_with_its_numbers_and_the_count_stands_beside_alerts(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    alert = fire(session, project)
    page = console.get("/alerts").text
    assert "58.3%" in page
    assert "n 120" in page
    assert f"/alerts/{alert.id}" in page
    assert re.search(r'Alerts <span class="count hot">1<', console.get("/ledger").text)


def test_hostile_names_are_text_on_every_page(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    watched.channel(session, project.id, name=HOSTILE)
    alert = fire(session, project, name=HOSTILE, scopes=("endpoint", "model_version"))
    silences.create(
        session,
        project.id,
        created_by="user:ada",
        reason=HOSTILE,
        ends_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1),
        match={"endpoint": HOSTILE},
    )
    session.commit()
    rule = alert_rules.find(session, project.id)[0]
    for path in (
        "/alerts",
        f"/alerts/{alert.id}",
        "/alerts/rules",
        f"/alerts/rules/{rule.id}",
        "/alerts/silences",
        "/alerts/ended",
    ):
        answer = console.get(path)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text
        if path not in ("/alerts/ended", f"/alerts/rules/{rule.id}"):
            assert "&lt;script&gt;" in answer.text
            assert "\u202e" not in re.sub(r'value="[^"]*"', "", answer.text), path


def test_the_links_of_a_message_open_exactly_its_slice_and_window(
    console: TestClient, session: orm.Session, project: models.Project, blob_store: blobs.BlobStore
) -> None:
    """The addresses are made in the core, which knows nothing of the pages: here they meet."""
    fire(session, project, scopes=("endpoint",))
    rows = alert_views.find(session, project.id).rows
    row = next(row for row in rows if row.slice == {"endpoint": HOSTILE})
    notice = row.notice("acme")
    assert notice is not None
    link, events_link = urlsplit(notice.link), urlsplit(notice.events_link)
    answer = console.get(f"{link.path}?{link.query}")
    assert answer.status_code == 200
    view = overview.aligned(views.read(dict(parse_qsl(link.query, keep_blank_values=True))))
    assert view.chosen == {"endpoint": HOSTILE}
    assert view.start.isoformat() == row.evidence["window_start"]
    assert view.end.isoformat() == row.evidence["window_end"]
    [total] = cmer_series.query(session, project.id, view.start, view.end, "all", (), view.chosen)
    assert (total.n, total.flagged) == (row.evidence["n"], row.evidence["hits"])
    seeded.event(session, blob_store, project.id, endpoint=HOSTILE, output="of the window", at=view.start)
    seeded.event(session, blob_store, project.id, endpoint=HOSTILE, output="too early", at=view.start - watched.HOUR)
    seeded.event(session, blob_store, project.id, endpoint="/vqa", output="elsewhere", at=view.start)
    seeded.check(session, seeded.scored(0.1, 0.001))
    session.commit()
    listed = console.get(f"{events_link.path}?{events_link.query}").text
    assert ("of the window" in listed, "too early" in listed, "elsewhere" in listed) == (True, False, False)


def test_an_episode_shows_its_timeline_and_every_message_with_its_error(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    watched.channel(session, project.id, name="on-call")
    alert = fire(session, project)
    [message] = watched.messages(session, project.id)
    message.attempts, message.last_error = 3, "404 no_service <b>gone</b>"
    session.commit()
    page = console.get(f"/alerts/{alert.id}").text
    assert re.search(r"ok</span>\s*→", page)
    assert "404 no_service &lt;b&gt;gone&lt;/b&gt;" in page
    assert "on-call" in page
    assert "retrying" in page


def test_another_projects_alert_rule_and_silence_are_not_found(
    console: TestClient, session: orm.Session, stranger: models.Project, engineer: None
) -> None:
    alert = fire(session, stranger)
    [rule] = alert_rules.find(session, stranger.id)
    assert console.get(f"/alerts/{alert.id}").status_code == 404
    assert console.get(f"/alerts/rules/{rule.id}").status_code == 404
    assert console.post(f"/alerts/rules/{rule.id}", data=form()).status_code == 404
    assert console.post(f"/alerts/rules/{rule.id}/delete").status_code == 404
    assert console.post(f"/alerts/rules/{rule.id}/switch", data={"turn": "off"}).status_code == 404
    assert console.post(f"/alerts/{alert.id}/silence", data={"duration": "1h"}).status_code == 404
    assert "too many" not in console.get("/alerts").text


@pytest.mark.parametrize("role", ["viewer", "reviewer", "lead"])
def test_rules_are_changed_by_engineers_only(
    console: TestClient, session: orm.Session, project: models.Project, user: models.User, role: str
) -> None:
    session.get_one(models.Membership, (project.id, user.id)).role = role
    rule = watched.rule(session, project.id)
    session.commit()
    assert "/alerts/rules/new" not in console.get("/alerts/rules").text
    assert console.get("/alerts/rules/new").status_code == 403
    assert console.post("/alerts/rules", data=form()).status_code == 403
    assert console.post(f"/alerts/rules/{rule.id}", data=form()).status_code == 403
    assert console.post(f"/alerts/rules/{rule.id}/delete").status_code == 403
    assert len(alert_rules.find(session, project.id)) == 1


@pytest.mark.parametrize("role, may", [("viewer", False), ("reviewer", False), ("lead", True), ("engineer", True)])
def test_who_may_ask_for_quiet(
    console: TestClient, session: orm.Session, project: models.Project, user: models.User, role: str, may: bool
) -> None:
    session.get_one(models.Membership, (project.id, user.id)).role = role
    alert = fire(session, project)
    assert (f"/alerts/{alert.id}/silence" in console.get("/alerts").text) == may
    answer = console.post(f"/alerts/{alert.id}/silence", data={"duration": "4h"})
    assert answer.status_code == (303 if may else 403)
    assert len(silences.find(session, project.id)) == may


def test_a_silence_from_an_alert_covers_its_rule_and_slice_and_can_be_ended(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    alert = fire(session, project, scopes=("endpoint",))
    before = dt.datetime.now(dt.UTC)
    answer = console.post(f"/alerts/{alert.id}/silence", data={"duration": "4h", "back": "list"})
    assert answer.headers["location"] == "/alerts?done=silenced"
    [silence] = silences.find(session, project.id)
    assert (silence.rule_id, silence.match) == (alert.rule_id, alert.slice)
    assert abs((silence.ends_at - before).total_seconds() - 4 * 3600) < 60
    assert "Silenced until" in console.get("/alerts").text
    console.post(f"/alerts/silences/{silence.id}/end")
    session.expire_all()
    assert silences.lasting(session, project.id, dt.datetime.now(dt.UTC)) == []
    noted = session.scalars(sa.select(models.AuditEntry.action)).all()
    assert {"silence.create", "silence.end"} <= set(noted)


def test_an_alert_of_a_deleted_rule_silences_nothing(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    """Without a rule, a silence for the whole project would hush every other rule too."""
    alert = fire(session, project)
    console.post(f"/alerts/rules/{alert.rule_id}/delete")
    answer = console.post(f"/alerts/{alert.id}/silence", data={"duration": "4h"})
    assert answer.status_code == 409
    assert silences.find(session, project.id) == []


def test_a_time_with_its_zone_is_taken_as_that_zones(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)).replace(microsecond=0)
    typed = until.astimezone(dt.timezone(dt.timedelta(hours=2))).isoformat()
    console.post("/alerts/silences", data={"until": typed, "reason": "test"})
    [silence] = silences.find(session, project.id)
    assert silence.ends_at == until


def test_a_silence_form_refused_keeps_what_was_typed(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    typed = {"dimension": "endpoint", "value": HOSTILE, "duration": "1d", "reason": "", "until": ""}
    answer = console.post("/alerts/silences", data=typed)
    assert answer.status_code == 422
    assert html.escape(HOSTILE, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in answer.text
    assert 'value="1d" selected' in answer.text
    assert "reason" in answer.text
    assert silences.find(session, project.id) == []
    assert console.post("/alerts/silences", data=typed | {"reason": "x"}).status_code == 303
    [made] = silences.find(session, project.id)
    assert made.match == {"endpoint": HOSTILE}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"until": "tomorrow"}, "“or until (UTC)” must be a time"),
        ({"until": "2020-01-01T00:00"}, "A silence ends in the future"),
        ({"until": "2999-01-01T00:00"}, "at most 90 days from now"),
        ({"until": "9999-12-31T23:59:59-14:00"}, ""),
        ({"duration": "for ever"}, "Choose how long from the list"),
        ({"rule": "x"}, ""),
        ({"dimension": "colour", "value": "red"}, ""),
        ({"dimension": "", "value": "/checkout"}, ""),
        ({"dimension": "endpoint", "value": " "}, ""),
        ({"reason": "x" * 10_001}, "“Why” says why nobody is to be told"),
    ],
)
def test_a_wrong_silence_is_refused_on_the_page(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None, wrong: dict[str, str], said: str
) -> None:
    answer = console.post("/alerts/silences", data={"duration": "1h", "reason": "x"} | wrong)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert said in answer.text
    assert silences.find(session, project.id) == []


# Rules


def test_a_rule_is_made_in_minutes_and_percent(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    hook = watched.channel(session, project.id)
    session.commit()
    sent = form(threshold_percent="12,5", match_customer="acme", channel=str(hook.id), window_minutes="30")
    answer = console.post("/alerts/rules", data=sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "/alerts/rules?done=created")
    [rule] = alert_rules.find(session, project.id)
    assert (rule.threshold, rule.window_seconds, rule.min_coverage) == (0.125, 1800, 0.95)
    assert (rule.scopes, rule.match, rule.channel_ids) == (["project", "endpoint"], {"customer": "acme"}, [hook.id])
    page = console.get("/alerts/rules").text
    assert "CMER over 12.5%, in 30 min" in page


def test_a_second_rule_of_the_same_name_is_told_that_the_name_is_taken(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    console.post("/alerts/rules", data=form(name="Checkout"))
    answer = console.post("/alerts/rules", data=form(name="Checkout"))
    assert (answer.status_code, "called “Checkout” already" in html.unescape(answer.text)) == (409, True)
    assert len(alert_rules.find(session, project.id)) == 1


def test_a_rule_saved_from_its_own_form_is_unchanged(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    """Every field finds its way into the form and back, or an edit of the name would change the rule."""
    alert_rules.ensure_default(session, project.id)
    watched.rule(session, project.id, match={"customer": "", "endpoint": "/a"}, is_enabled=False, threshold=0.07)
    session.commit()
    for rule in alert_rules.find(session, project.id):
        page = console.get(f"/alerts/rules/{rule.id}").text
        before = alert_rules.read(rule)
        assert console.post(f"/alerts/rules/{rule.id}", data=fields_of(page)).status_code == 303
        session.expire_all()
        assert alert_rules.read(session.get_one(models.AlertRule, rule.id)) == before
        assert session.get_one(models.AlertRule, rule.id).version == 1


def fields_of(page: str) -> dict[str, str | list[str]]:
    """What a browser would send of the form as it stands."""
    body = page[page.index('class="rule-form"') :]
    found: dict[str, str | list[str]] = {}
    for tag in re.findall(r"<input[^>]*>", body):
        name = re.search(r'name="([^"]*)"', tag)
        value = re.search(r'value="([^"]*)"', tag)
        if name is None or ('type="checkbox"' in tag and " checked" not in tag):
            continue
        text = html.unescape(value.group(1)) if value else "on"
        already = found.get(name.group(1), [])
        found[name.group(1)] = [*already, text] if 'type="checkbox"' in tag and isinstance(already, list) else text
    for name_, options in re.findall(r'<select name="([^"]*)"[^>]*>(.*?)</select>', body, re.S):
        found[name_] = re.findall(r'value="([^"]*)" selected', options)[0]
    return found


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"threshold_percent": "0"}, "over 0 and up to 100 percent"),
        ({"threshold_percent": "many"}, "over 0 and up to 100 percent"),
        ({"threshold_percent": ""}, "The line"),
        ({"threshold_percent": "1e400"}, "over 0 and up to 100 percent"),
        ({"window_minutes": "7"}, "multiple of 5 minutes"),
        ({"window_minutes": "5.01"}, "multiple of 5 minutes"),
        ({"for_minutes": "-5"}, "0 to 1440 minutes"),
        ({"min_n": "0"}, "whole number from 1"),
        ({"coverage_percent": "101"}, "coverage"),
        ({"name": " "}, "The name needs"),
        ({"scope": "colour"}, "Choose at least one"),
        ({"kind": "magic"}, "kind"),
        ({"kind": "baseline", "multiple": "1"}, "over 1 and up to 100"),
        ({"match_endpoint": "x" * 301}, "300"),
        ({"channel": str(uuid.uuid4())}, "channel"),
        ({"channel": "x"}, "Choose the channels"),
    ],
)
def test_a_rule_refused_says_why_in_the_forms_own_units_and_keeps_what_was_typed(
    console: TestClient,
    session: orm.Session,
    project: models.Project,
    engineer: None,
    wrong: dict[str, str],
    says: str,
) -> None:
    answer = console.post("/alerts/rules", data=form(name="mine <b>", repeat_minutes="777") | wrong)
    assert answer.status_code == 422
    problem = re.search(r'<p class="problem"[^>]*>(.*?)</p>', answer.text)
    assert problem is not None
    assert says in html.unescape(problem.group(1))
    assert "777" in answer.text
    if "name" not in wrong:
        assert 'value="mine &lt;b&gt;"' in answer.text
    assert alert_rules.find(session, project.id) == []


def test_a_preview_says_how_often_it_would_have_fired_and_saves_nothing(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    at = alerts.last_closed(dt.datetime.now(dt.UTC)) - watched.DAY
    watched.lay(session, project.id, at, 60, flagged=40, endpoint=HOSTILE)
    session.commit()
    answer = console.post("/alerts/rules", data=form(do="preview", repeat_minutes="777"))
    assert answer.status_code == 200
    assert "it would have fired 2 times" in answer.text
    assert "&lt;script&gt;alert" in answer.text
    assert "777" in answer.text
    assert alert_rules.find(session, project.id) == []
    assert "The line must be" in console.post("/alerts/rules", data=form(do="preview", threshold_percent="0")).text


def test_a_rule_is_switched_off_and_on_and_deleted(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    alert = fire(session, project)
    path = f"/alerts/rules/{alert.rule_id}"
    assert console.post(path + "/switch", data={"turn": "off"}).status_code == 303
    session.expire_all()
    assert session.get_one(models.Alert, alert.id).resolved_at is not None
    assert console.post(path + "/switch", data={"turn": "off"}).status_code == 303
    assert session.get_one(models.AlertRule, alert.rule_id).version == 2
    console.post(path + "/switch", data={"turn": "on"})
    assert console.post(path + "/delete").status_code == 303
    assert alert_rules.find(session, project.id) == []
    assert "too many" in console.get("/alerts/ended").text


def test_a_dead_evaluator_is_loud(console: TestClient, session: orm.Session, project: models.Project) -> None:
    assert "Alerts are not being watched" in console.get("/alerts").text
    session.add(models.Heartbeat(name="alerts", at=sa.func.clock_timestamp()))
    session.commit()
    assert "Alerts are not being watched" not in console.get("/alerts").text
    old = sa.func.clock_timestamp() - dt.timedelta(minutes=3)
    session.execute(sa.update(models.Heartbeat).values(at=old))
    session.commit()
    assert "No worker has evaluated the rules since" in console.get("/alerts").text


def test_a_critical_alert_and_the_warning_of_its_slice_share_a_card(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    watched.rule(session, project.id, name="the warning", severity="warning", threshold=0.1)
    fire(session, project, name="the page", severity="critical")
    page = console.get("/alerts").text
    assert page.count('<article class="card alert') == 1
    assert page.index("the page") < page.index("Also over its line here") < page.index("the warning")
    assert re.search(r'Alerts <span class="count hot">1<', page)  # what the page shows can be counted


def test_an_incident_is_one_row_that_opens_to_its_slices(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    fire(session, project, scopes=("project", "endpoint", "model_version"))
    page = console.get("/alerts").text
    assert page.count('<article class="card alert') == 1
    assert "and 4 more slices" in page
    for alert in watched.episodes(session, project.id):
        assert f'href="/alerts/{alert.id}"' in page
    assert re.search(r'Alerts <span class="count hot">1<', page)


def test_an_alert_page_links_every_slice_of_its_incident_and_shows_its_messages(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    watched.channel(session, project.id, name="on-call")
    fire(session, project, scopes=("project", "endpoint"))
    leader, *others = watched.episodes(session, project.id)
    page = console.get(f"/alerts/{others[0].id}").text
    assert "The same incident" in page
    assert all(f'href="/alerts/{one.id}"' in page for one in (leader, *others[1:]))
    assert "on-call" in page[page.index("Messages of the incident") :]


def test_an_alert_alone_shows_no_incident(console: TestClient, session: orm.Session, project: models.Project) -> None:
    alert = fire(session, project)
    assert "The same incident" not in console.get(f"/alerts/{alert.id}").text


def test_a_warning_elsewhere_has_a_card_of_its_own(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    watched.rule(session, project.id, name="the warning", severity="warning", threshold=0.1, scopes=("endpoint",))
    fire(session, project, name="the page", severity="critical", threshold=0.5, scopes=("endpoint",))
    page = console.get("/alerts").text
    assert page.count('<article class="card alert') == 2
    assert page.count("Also over its line here") == 1
    assert re.search(r'Alerts <span class="count hot">2<', page)


def test_of_many_that_fire_at_once_the_first_have_charts_and_all_are_listed(
    console: TestClient, session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_pages, "CHARTED", 2)
    now = dt.datetime.now(dt.UTC)
    for number in range(4):
        watched.lay(session, project.id, now - dt.timedelta(minutes=20), 100, flagged=60, endpoint=f"/{number}")
    watched.rule(session, project.id, scopes=("endpoint",))
    alerts.evaluate(session, project.id)
    session.commit()
    page = console.get("/alerts").text
    assert page.count('<article class="card alert') == 4
    assert page.count('class="alert-chart"') == 2


def test_without_channels_or_rules_the_page_says_that_nobody_is_told(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    page = console.get("/alerts").text
    assert "No rule is on" in page
    assert "No channel is on" in page


def test_forms_of_other_sites_are_ignored(
    console: TestClient, session: orm.Session, project: models.Project, engineer: None
) -> None:
    answer = console.post("/alerts/rules", data=form(), headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert alert_rules.find(session, project.id) == []


# The chart

T0 = dt.datetime(2026, 3, 18, 12, 0, tzinfo=dt.UTC)
STEP = dt.timedelta(minutes=5)


def test_the_chart_is_of_the_windows_that_the_rule_saw() -> None:
    counts = [(T0 + i * STEP, i, 10) for i in range(6)]
    found = alert_charts.sliding(counts, T0 + 3 * STEP, T0 + 6 * STEP, 2 * STEP)
    assert found == [
        (T0 + 3 * STEP, 1 + 2, 20),
        (T0 + 4 * STEP, 2 + 3, 20),
        (T0 + 5 * STEP, 3 + 4, 20),
        (T0 + 6 * STEP, 4 + 5, 20),
    ]


def test_the_chart_draws_the_line_and_breaks_where_nothing_is_known() -> None:
    some = [Reading(T0 + i * STEP, 100, 0.2, 0.1, 0.3) for i in range(5)]
    gap = Reading(T0 + 2 * STEP, 0, None, 0.0, 1.0)
    drawn = str(alert_charts.draw([*some[:2], gap, *some[3:]], 0.15, 50, [T0 + STEP], 'a "summary"'))
    assert drawn.count('class="band"') == 2
    assert drawn.count('class="alert-line"') == 1
    assert drawn.count('class="marker"') == 1
    assert "a &quot;summary&quot;" in drawn


def test_an_empty_chart_is_drawn(session: orm.Session) -> None:
    assert "<svg" in alert_charts.draw([], None, 50, [T0], "nothing")


def test_a_viewer_of_two_projects_counts_the_one_looked_at(
    console: TestClient, session: orm.Session, project: models.Project, stranger: models.Project, user: models.User
) -> None:
    fire(session, stranger)
    session.add(models.Membership(project_id=stranger.id, user_id=user.id, role="viewer"))
    session.commit()
    assert 'class="count hot"' not in console.get("/alerts").text


def test_a_person_without_a_session_is_sent_to_sign_in(http: TestClient) -> None:
    for path in ("/alerts", "/alerts/rules", "/alerts/silences", f"/alerts/{uuid.uuid4()}"):
        answer = http.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"].startswith("/sign-in?next=")) == (303, True)


def test_the_roles_are_those_of_the_one_authorize() -> None:
    """What the pages above rely on, in one line each."""
    assert "alerts" not in access.ROLE_ACTIONS["lead"]
    assert "silence" in access.ROLE_ACTIONS["lead"]
    assert {"alerts", "silence"} <= access.ROLE_ACTIONS["engineer"]


def test_metrics_say_how_long_ago_rules_were_evaluated(http: TestClient, session: orm.Session) -> None:
    assert "cmerwatch_alert_rules_age_seconds NaN" in http.get("/metrics").text
    session.add(models.Heartbeat(name="alerts", at=sa.func.clock_timestamp() - dt.timedelta(seconds=90)))
    session.commit()
    [age] = re.findall(r"^cmerwatch_alert_rules_age_seconds (\S+)$", http.get("/metrics").text, re.MULTILINE)
    assert 89 < float(age) < 150
