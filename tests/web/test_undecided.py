"""A policy that cannot decide what the checker in use scores: named wherever somebody would look for the rate."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import blobs, models, policies, redecide, withheld
from tests.core import watched
from tests.web import seeded
from tests.web.test_console_settings import words

WHY = "policy 2 is a fixed cosine and checker siglip:drawn has a logit bias"
Headers = dict[str, str]


@pytest.fixture
def event(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> uuid.UUID:
    """Scored by a checker with a logit bias, under a fixed cosine."""
    policies.create(session, project.id, [{"measure": "cosine", "sim_threshold": 0.25}], "user:ada")
    made = seeded.event(session, blob_store, project.id)
    siglip = seeded.checker(session, name="siglip:drawn", logit_scale=100.0, logit_bias=-10.0)
    seeded.check(session, seeded.scored(0.08, 0.01), checker_id=siglip)
    session.commit()
    return made


def test_the_overview_says_why_instead_of_a_rate_and_leads_to_the_policy(console: TestClient, event: uuid.UUID) -> None:
    page = words(console.get("/").text)
    assert "CMER Undecided 1 scored, none decided yet" in page
    assert f"1 output is scored but not decided: {WHY}" in page
    assert "Calibrating" not in page


def test_the_policies_page_says_it_with_how_many_wait(console: TestClient, event: uuid.UUID) -> None:
    page = words(console.get("/settings/policies").text)
    assert f"Outputs stay undecided: {WHY}" in page
    assert "1 scored so far waits for a version that fits" in page


def test_the_event_is_shown_as_undecided_in_the_list_and_on_its_page(console: TestClient, event: uuid.UUID) -> None:
    assert "Undecided" in words(console.get("/events").text)
    page = words(console.get(f"/events/{event}").text)
    assert "Undecided Scored, but not decided: the policy in force then is a fixed cosine" in page


def test_the_api_gives_the_reason_beside_the_missing_decision(
    http: TestClient, read: Headers, event: uuid.UUID
) -> None:
    answer = http.get(f"/v1/events/{event}", headers=read).json()
    assert answer["decision"] is None
    assert answer["undecided"].startswith(WHY)
    assert answer["check"]["score"] == pytest.approx(0.01)


def test_once_a_policy_fits_nothing_is_said_any_more(
    console: TestClient,
    http: TestClient,
    read: Headers,
    event: uuid.UUID,
    session: orm.Session,
    project: models.Project,
) -> None:
    policies.create(session, project.id, [{"sim_threshold": "auto"}], "user:ada")
    session.commit()
    page = words(console.get("/settings/policies").text)
    assert "1 output that an earlier version could not decide is being decided now" in page
    withheld.step(session, 10)
    session.commit()
    assert "CMER 100%" in words(console.get("/").text)
    assert "ndecided" not in words(console.get("/").text) + words(console.get("/settings/policies").text)
    answer = http.get(f"/v1/events/{event}", headers=read).json()
    assert (answer["decision"]["policy_version"], answer["undecided"]) == (3, None)


def test_a_calibrating_checker_is_another_reason(
    http: TestClient, read: Headers, session: orm.Session, blob_store: blobs.BlobStore, project: models.Project
) -> None:
    made = seeded.event(session, blob_store, project.id)
    seeded.check(session, seeded.scored(0.3, None), is_calibrated=False)
    session.commit()
    assert "calibrating" in http.get(f"/v1/events/{made}", headers=read).json()["undecided"]


def test_the_alert_page_says_which_baselines_a_policy_change_took_and_leads_to_the_button(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    rule = watched.rule(session, project.id, "baseline")
    watched.lay_week(session, project.id)
    policies.create(session, project.id, [{"sim_threshold": 0.6}], "user:ada")
    watched.lay(session, project.id, watched.END - watched.MINUTES_5, 100, policy_version=2)
    session.commit()
    assert "without its usual rate" not in words(console.get("/alerts").text)
    watched.tick(session, project.id)
    session.commit()
    assert watched.state(session, rule).state == "insufficient"
    page = console.get("/alerts").text
    assert (
        "1 slice is judged without its usual rate, by fixed lines only where the rule has one. The 7 days "
        "before are decided under policy 1, the window under 2; decide history again to compare: policies, History"
        in words(page)
    )
    assert 'href="/settings/policies#history"' in page
    assert 'id="history"' in console.get("/settings/policies").text


def test_once_history_is_decided_again_the_alert_page_asks_for_it_no_more_and_says_when_rules_read_it(
    console: TestClient, session: orm.Session, project: models.Project
) -> None:
    watched.rule(session, project.id, "baseline")
    watched.lay_week(session, project.id)
    policies.create(session, project.id, [{"sim_threshold": 0.6}], "user:ada")
    watched.lay(session, project.id, watched.END - watched.MINUTES_5, 100, policy_version=2)
    watched.tick(session, project.id)
    redecide.start(session, project.id, 2, "user:ada")
    session.execute(sa.update(models.Redecision).values(finished_at=sa.func.now()))
    session.commit()
    page = words(console.get("/alerts").text)
    assert "History is decided again by now: rules compare with it within six minutes." in page
    assert "policies, History" not in page
