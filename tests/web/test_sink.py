"""The demo's sink: answers as the real services do, keeps what it got, and is not there elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import fastapi
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, models, notify, settings, sink
from cmerwatch.notify import Message
from cmerwatch.shapes import Part
from cmerwatch_web import app as web
from tests import alerting


@pytest.fixture
def demo(configured: Callable[..., settings.Settings], session: orm.Session, user: models.User) -> TestClient:
    app: fastapi.FastAPI = web.create_app(configured(demo_sink="true"))
    cookie = access.open_console_session(session, user.id)
    session.commit()
    return TestClient(app, raise_server_exceptions=False, cookies={"cmw": cookie})


@pytest.mark.parametrize("kind, status, body", [("slack", 200, "ok"), ("pagerduty", 202, None), ("webhook", 204, "")])
def test_each_kind_is_answered_as_the_real_service_answers(
    demo: TestClient, project: models.Project, kind: str, status: int, body: str | None
) -> None:
    answer = demo.post(f"/sink/acme/{kind}", content=b"{}")
    assert answer.status_code == status
    if body is None:
        assert answer.json()["status"] == "success"
    else:
        assert answer.text == body


def test_the_page_shows_the_exact_body_as_text(demo: TestClient, project: models.Project) -> None:
    demo.post("/sink/acme/webhook", content=b'{"x":"<script>alert(1)</script>"}', headers={"webhook-id": "msg-1"})
    page = demo.get("/sink").text
    assert "{&#34;x&#34;:&#34;&lt;script&gt;alert(1)&lt;/script&gt;&#34;}" in page
    assert "msg-1" in page


def test_what_no_table_can_hold_is_replaced(demo: TestClient, session: orm.Session, project: models.Project) -> None:
    assert demo.post("/sink/acme/webhook", content=b"\xff\x00end").status_code == 204
    [kept] = sink.listed(session, project.id, "webhook")
    assert kept.body == "\ufffd\ufffdend"


def test_only_the_newest_are_kept(
    demo: TestClient, session: orm.Session, project: models.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "KEPT", 3)
    for number in range(5):
        demo.post("/sink/acme/slack", content=str(number).encode())
    assert [one.body for one in sink.listed(session, project.id, "slack")] == ["4", "3", "2"]


@pytest.mark.parametrize("path", ["/sink/acme/email", "/sink/nobody/slack"])
def test_an_unknown_kind_or_project_is_not_found(demo: TestClient, project: models.Project, path: str) -> None:
    assert demo.post(path, content=b"{}").status_code == 404


def test_a_body_over_the_limit_is_refused(demo: TestClient, project: models.Project) -> None:
    assert demo.post("/sink/acme/slack", content=b"x" * 512_001).status_code == 413


def test_another_projects_messages_are_not_shown(demo: TestClient, stranger: models.Project) -> None:
    demo.post("/sink/stranger/slack", content=b"theirs")
    assert "theirs" not in demo.get("/sink").text


def test_there_is_no_sink_outside_the_demo(http: TestClient, console: TestClient, project: models.Project) -> None:
    assert http.post("/sink/acme/slack", content=b"{}").status_code in (404, 405)
    assert console.get("/sink").status_code == 404


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"blocks": 7}', b"null", b'"x"', b"{"])
def test_a_body_that_is_no_slack_message_is_shown_as_it_is(
    demo: TestClient, project: models.Project, body: bytes
) -> None:
    assert demo.post("/sink/acme/slack", content=body).status_code == 200
    page = demo.get("/sink")
    assert page.status_code == 200
    assert "Roughly as Slack shows it" not in page.text


def test_a_slack_message_is_laid_out_from_its_plain_texts(demo: TestClient, project: models.Project) -> None:
    message = Message("message-1", alerting.notice())
    request = notify.KINDS["slack"].request(message, {"url": "https://hooks.example.com/"}, alerting.AT)
    demo.post("/sink/acme/slack", content=request.body)
    page = demo.get("/sink").text
    assert "Roughly as Slack shows it" in page
    assert "46.3% [42.2%, 50.5%], n = 570</p>" in page


def test_each_slice_of_an_incident_has_its_link_on_its_own_line(demo: TestClient, project: models.Project) -> None:
    own = demo.app.state.settings.public_url  # type: ignore[attr-defined]
    parts = [
        Part({"endpoint": name}, "", share, share, share, 90, f"{own}/?endpoint={name}", "")
        for name, share in (("a", 0.5), ("b", 0.25))
    ]
    notice = alerting.notice(parts=tuple(parts), slices=2, link=f"{own}/alerts/1", events_link=f"{own}/events")
    request = notify.KINDS["slack"].request(Message("message-1", notice), {"url": "https://x.example/"}, alerting.AT)
    demo.post("/sink/acme/slack", content=request.body)
    page = demo.get("/sink").text
    for name, said in (("a", "50.0% [50.0%, 50.0%], n = 90"), ("b", "25.0% [25.0%, 25.0%], n = 90")):
        line = f"endpoint {name}: {said}"
        link = f'<a href="{own}/?endpoint={name}" aria-label="Open: {line}">Open</a>'
        assert f'<p class="wide">{line} · {link}</p>' in page
    assert page.count(">Open</a>") == 2
    assert (
        f'<p class="wide"><a href="{own}/alerts/1">Open the slice</a> · <a href="{own}/events">See outputs</a></p>'
        in page
    )


def test_a_slack_messages_links_into_this_console_can_be_followed_and_no_others(
    demo: TestClient, project: models.Project
) -> None:
    own = demo.app.state.settings.public_url  # type: ignore[attr-defined]
    texts = [f"<{own}/?from=a&amp;endpoint=%2Fb|Open the slice>", "<https://elsewhere.example.com/|Sign in>"]
    texts += [f"<{own}.example.com/|near>", "<javascript:alert(1)|run>"]
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in texts]
    blocks.append({"type": "context", "text": {"type": "plain_text", "text": "shown"}})
    demo.post("/sink/acme/slack", json={"blocks": blocks})
    page = demo.get("/sink").text
    assert f'<a href="{own}/?from=a&amp;endpoint=%2Fb">Open the slice</a>' in page
    for other in ("elsewhere.example.com", f"{own}.example.com", "javascript:"):
        assert f'<a href="{other}' not in page
        assert f'<a href="https://{other}' not in page
