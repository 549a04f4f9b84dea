"""The policies page: what is in force, what changed, and what a change would have flagged, before it is saved."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, models, policies, redecide
from tests.web import seeded
from tests.web.test_console_settings import words

DIMENSIONS = ("endpoint", "prompt_type", "customer", "model", "model_version", "environment")


@pytest.fixture
def editor(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> TestClient:
    made = access.create_user(session, project.id, "eng", "Eng", "engineer")
    cookie = access.open_console_session(session, made.id)
    session.commit()
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})


@pytest.fixture
def lay(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Callable[..., None]:
    """`lay(5, 0.07)`: five checked outputs of that score."""

    def make(n: int, score: float, **details: Any) -> None:
        for _ in range(n):
            seeded.event(session, blob_store, project.id, **details)
        seeded.check(session, seeded.scored(0.3, score))
        session.commit()

    return make


def form(*rules: dict[str, str], do: str = "save", based_on: int = 1) -> dict[str, str]:
    """What a browser sends: every field of every rule."""
    fields = {"do": do, "based_on": str(based_on)}
    for number, rule in enumerate(rules):
        full = dict.fromkeys(DIMENSIONS, "") | {"conf": "0.8", "sim": "auto"} | rule
        fields |= {f"rule-{number}-{name}": value for name, value in full.items()}
    return fields


def typed(page: str) -> dict[str, str]:
    """The form a page shows, as a browser would send it."""
    found = re.findall(r'<input name="(rule-[^"]+)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in found}


def test_the_rules_in_force_are_shown_and_who_may_change_them_finds_how(
    editor: TestClient, console: TestClient
) -> None:
    page = words(editor.get("/settings/policies").text)
    assert "In force: version 1" in page
    assert "everything else 0.8 score auto" in page
    assert "Change the rules" in page
    assert "Change the rules" not in words(console.get("/settings/policies").text), "a viewer"
    assert console.get("/settings/policies/edit").status_code == 403
    assert console.post("/settings/policies/edit", data=form({})).status_code == 403


def test_saving_makes_the_next_version_and_the_history_says_what_changed(
    editor: TestClient, session: orm.Session, project: models.Project
) -> None:
    answer = editor.post(
        "/settings/policies/edit", data=form({"endpoint": "/scan", "conf": "0,7", "sim": "0.1"}, {"sim": "0.04"})
    )
    assert answer.headers["location"] == "/settings/policies?done=saved"
    current = policies.current(session, [project.id])[project.id]
    assert (current.version, len(current.rules)) == (2, 2)
    assert (current.rules[0].match, current.rules[0].conf_threshold) == ((("endpoint", "/scan"),), 0.7)
    page = words(editor.get(answer.headers["location"]).text)
    assert "The new version is in force" in page
    assert "Version 2" in page
    assert "by user:eng" in page
    assert "endpoint /scan : new confidence over 0.7 and score below 0.1" in page
    assert "confidence over 0.8 and score below auto → confidence over 0.8 and score below 0.04" in page
    [entry] = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "policy.create"))
    assert entry.target == "version 2"


def test_a_preview_says_exactly_what_a_new_score_threshold_would_have_flagged(
    editor: TestClient, lay: Callable[..., None], session: orm.Session, project: models.Project
) -> None:
    lay(6, 0.5)
    lay(3, 0.07)
    lay(1, 0.01)
    page = words(editor.post("/settings/policies/edit", data=form({"sim": "0.1"}, do="preview")).text)
    assert "Of 10 outputs with a known confidence, 1 were flagged (10.0%)" in page
    assert "would have flagged 4 (40.0%)" in page
    assert policies.current(session, [project.id])[project.id].version == 1, "nothing was saved"


def test_a_preview_says_a_range_where_the_counters_cannot_tell(editor: TestClient, lay: Callable[..., None]) -> None:
    lay(5, 0.01)
    lay(5, 0.01, confidence=0.5)
    page = words(editor.post("/settings/policies/edit", data=form({"conf": "0.4"}, do="preview")).text)
    assert "would have flagged 5 to 10 (50.0% to 100%)" in page
    assert "only bounds are known" in page
    page = words(editor.post("/settings/policies/edit", data=form({"conf": "0.97"}, do="preview")).text)
    assert "would have flagged 0 to 5" in page


def test_a_preview_of_nothing_says_so(editor: TestClient) -> None:
    page = words(editor.post("/settings/policies/edit", data=form({}, do="preview")).text)
    assert "nothing can be said of it" in page


def test_a_new_rule_stands_above_the_one_for_everything_else_beside_the_buttons_and_is_typed_into_next(
    editor: TestClient,
) -> None:
    page = editor.post("/settings/policies/edit", data=form({"endpoint": "/a"}, {"sim": "0.04"}, do="add:")).text
    fields = typed(page)
    assert [fields[f"rule-{n}-sim"] for n in range(3)] == ["auto", "auto", "0.04"]
    assert (fields["rule-0-endpoint"], fields["rule-1-endpoint"]) == ("/a", "")
    assert re.findall(r'name="([^"]+)"[^>]* autofocus', page) == ["rule-1-endpoint"]
    assert re.findall(r"<legend>(Rule [^<]+)", page) == [
        "Rule 1",
        "Rule 2: name what it is for",
        "Rule 3: everything else",
    ]


def test_what_auto_means_is_said_only_where_a_rule_uses_it(editor: TestClient) -> None:
    assert "auto is a score of 0.05" in words(editor.get("/settings/policies").text)
    editor.post("/settings/policies/edit", data=form({"sim": "0.04"}))
    assert "auto is a score of 0.05" not in words(editor.get("/settings/policies").text)


def test_rules_are_added_from_a_preset_and_removed_without_losing_what_was_typed(editor: TestClient) -> None:
    page = editor.post("/settings/policies/edit", data=form({"sim": "0.04"}, do="add:sensitive")).text
    fields = typed(page)
    assert (fields["rule-0-conf"], fields["rule-0-sim"], fields["rule-1-sim"]) == ("0.7", "0.1", "0.04")
    fields |= {"rule-0-prompt_type": "medical", "based_on": "1", "do": "remove:1"}
    fields = typed(editor.post("/settings/policies/edit", data=fields).text)
    assert fields["rule-0-prompt_type"] == "medical"
    assert "rule-1-sim" not in fields


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"conf": "high"}], "Rule 1: “Confidence over” must be a number from 0 to 1"),
        ([{"conf": "1.5"}], "Rule 1: “Confidence over” must be a number from 0 to 1"),
        ([{"sim": "nan"}], "Rule 1: “Score below” must be a number from 0 to 1"),
        ([{"sim": "-1"}], "Rule 1: “Score below” must be a number from 0 to 1"),
        ([{"endpoint": "/a"}], "for everything no other rule matches"),
        ([{}, {}], "Rule 1 and Rule 2 are both for everything else"),
        ([{"endpoint": "/a"}, {}, {"endpoint": "/a"}], "Rule 1 and Rule 3 are both for endpoint '/a'"),
        ([{"endpoint": "x" * 201}, {}], "more than 200 characters"),
        ([{"endpoint": "a\x00b"}, {}], "cannot be stored"),
        ([{"measure": "cosine", "sim": "0.25"}], "needs a checker that has noted its kind"),
        ([{"measure": "cosine"}], "Rule 1: “Below” must be a number where measure is cosine"),
        ([{"measure": "vibes"}], "must be one of score, cosine"),
        ([], "for everything no other rule matches"),
        ([{}], "Nothing is different"),
    ],
)
def test_what_cannot_be_saved_says_why_and_changes_nothing(
    editor: TestClient, session: orm.Session, project: models.Project, rules: list[dict[str, str]], said: str
) -> None:
    answer = editor.post("/settings/policies/edit", data=form(*rules))
    assert answer.status_code == 422
    assert said in html.unescape(answer.text)
    assert policies.current(session, [project.id])[project.id].version == 1


def test_of_two_people_who_save_at_once_the_second_is_told(
    editor: TestClient, session: orm.Session, project: models.Project
) -> None:
    policies.create(session, project.id, [{"sim_threshold": 0.2}], "user:ada")
    session.commit()
    answer = editor.post("/settings/policies/edit", data=form({"sim": "0.3"}, based_on=1))
    assert (answer.status_code, "version 2 was saved by someone else" in answer.text) == (409, True)
    assert typed(answer.text)["rule-0-sim"] == "0.3", "what was typed is still there"


def test_a_form_that_another_version_has_overtaken_is_never_called_no_different_from_it(
    editor: TestClient, session: orm.Session, project: models.Project
) -> None:
    policies.create(session, project.id, [{"sim_threshold": 0.2}], "user:ada")
    session.commit()
    answer = editor.post("/settings/policies/edit", data=form({}, based_on=1))
    assert (answer.status_code, "version 2 was saved by someone else" in answer.text) == (409, True)
    assert "Nothing is different" not in answer.text


def test_the_legacy_cosine_is_offered_where_it_means_something_and_decides_by_similarity(
    editor: TestClient, session: orm.Session, project: models.Project, lay: Callable[..., None]
) -> None:
    lay(1, 0.5)
    assert "cosine (legacy)" not in editor.get("/settings/policies/edit").text, "its kind is not noted"
    session.execute(sa.update(models.Checker).values(logit_scale=100.0))
    session.commit()
    assert "cosine (legacy)" in editor.get("/settings/policies/edit").text
    answer = editor.post("/settings/policies/edit", data=form({"measure": "cosine", "sim": "0.35"}))
    assert answer.status_code == 303
    lay(1, 0.9)
    flagged = session.scalars(sa.select(models.DecisionRow.flagged).order_by(models.DecisionRow.policy_version)).all()
    assert flagged == [False, True], "similarity 0.3 is below 0.35, whatever the score"
    event_id = session.scalars(sa.select(models.DecisionRow.event_id).where(models.DecisionRow.flagged)).one()
    page = words(editor.get(f"/events/{event_id}").text)
    assert "less than the fixed cosine of this policy asks (similarity 0.30 is below 0.35)" in page
    assert "Similarity 0.30" in page


def test_the_legacy_cosine_is_refused_for_a_checker_with_a_logit_bias(
    editor: TestClient, session: orm.Session, lay: Callable[..., None]
) -> None:
    lay(1, 0.5)
    session.execute(sa.update(models.Checker).values(logit_scale=100.0, logit_bias=-12.0))
    session.commit()
    answer = editor.post("/settings/policies/edit", data=form({"measure": "cosine", "sim": "0.25"}))
    assert answer.status_code == 422
    assert "of the SigLIP kind, whose logit has a bias" in html.unescape(answer.text)
    page = words(editor.get("/settings/policies/edit").text)
    assert "cosine (legacy)" not in page
    assert "is not offered: the logit of" in page


def test_outputs_without_a_dimension_can_be_named_and_stay_so(
    editor: TestClient, session: orm.Session, project: models.Project
) -> None:
    editor.post("/settings/policies/edit", data=form({"customer": "(none)", "sim": "0.1"}, {}))
    assert policies.current(session, [project.id])[project.id].rules[0].match == (("customer", ""),)
    assert typed(editor.get("/settings/policies/edit").text)["rule-0-customer"] == "(none)"


def test_hostile_values_are_text(editor: TestClient) -> None:
    evil = "\"><script>x</script>'{{7*7}}"
    editor.post("/settings/policies/edit", data=form({"customer": evil, "sim": "0.1"}, {}))
    for path in ("/settings/policies", "/settings/policies/edit"):
        page = editor.get(path).text
        assert "<script>x" not in page
        assert evil in html.unescape(page)


def test_history_can_be_decided_again_on_saving_or_later_and_shows_how_far_it_is(
    editor: TestClient, session: orm.Session, lay: Callable[..., None]
) -> None:
    lay(4, 0.08)
    lay(6, 0.5)
    answer = editor.post("/settings/policies/edit", data=form({"sim": "0.1"}) | {"history": "again"})
    assert answer.headers["location"] == "/settings/policies?done=again"
    page = words(editor.get("/settings/policies").text)
    assert "History is being decided again: 0 of about 10" in page
    assert "Each output counts as it was decided when it was checked" in words(editor.get("/").text)
    settled = sa.func.now() - 2 * redecide.SETTLED
    session.execute(sa.update(models.PolicyVersion).values(created_at=settled))
    while redecide.step(session):
        session.commit()
    assert "All of history was decided again under this version (10 outputs" in words(
        editor.get("/settings/policies").text
    )
    assert "CMER 40.0%" in words(editor.get("/").text)
    assert "All of history was decided again under it" in words(editor.get("/").text)
    assert editor.post("/settings/policies/redecide").status_code == 409
    editor.post("/settings/policies/edit", data=form({"sim": "0.6"}, based_on=2))
    assert "Decide history again" in words(editor.get("/settings/policies").text)
    assert editor.post("/settings/policies/redecide").status_code == 303
    [first, second] = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "policy.redecide"))
    assert {first.target, second.target} == {"version 2", "version 3"}


def test_deciding_again_is_stopped_from_the_page_that_shows_how_far_it_is_and_goes_on_when_asked_again(
    editor: TestClient, console: TestClient, session: orm.Session, lay: Callable[..., None]
) -> None:
    lay(4, 0.08)
    editor.post("/settings/policies/edit", data=form({"sim": "0.1"}) | {"history": "again"})
    session.execute(sa.update(models.PolicyVersion).values(created_at=sa.func.now() - 2 * redecide.SETTLED))
    redecide.step(session, 1)
    session.commit()
    page = editor.get("/settings/policies").text
    assert '<progress max="100" value="25">' in page
    assert "Stop it" in words(page)
    assert "Decide history again" not in words(page)
    assert "Stop it" not in words(console.get("/settings/policies").text), "a viewer"
    assert console.post("/settings/policies/redecide/cancel").status_code == 403
    refused = editor.post("/settings/policies/edit", data=form({"sim": "0.2"}, based_on=2) | {"history": "again"})
    assert refused.status_code == 409
    assert "History is being decided again under version 2 already (25% so far)" in words(refused.text)
    answer = editor.post("/settings/policies/redecide/cancel")
    assert answer.headers["location"] == "/settings/policies?done=cancelled"
    page = words(editor.get(answer.headers["location"]).text)
    assert "Deciding history again was stopped after 1 of about 4 outputs" in page
    assert "Flagged 0 " in words(editor.get("/").text)
    assert editor.post("/settings/policies/redecide/cancel").status_code == 409
    assert editor.post("/settings/policies/redecide").status_code == 303
    while redecide.step(session, 1):
        pass
    session.commit()
    assert "CMER 100%" in words(editor.get("/").text)
    actions = session.scalars(sa.select(models.AuditEntry.action).where(models.AuditEntry.target == "version 2")).all()
    assert actions.count("policy.redecide_cancel") == 1
