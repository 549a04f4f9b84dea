"""The quarantine page, and what a browser is told at an address that nobody answers."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable

import fastapi
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import access, blobs, checks, models
from tests.web import seeded
from tests.web.test_console_settings import words

EVIL = "</p><script>x</script> {{7*7}} \u202e"


@pytest.fixture
def operator(app: fastapi.FastAPI, session: orm.Session, project: models.Project) -> TestClient:
    made = access.create_user(session, project.id, "eng", "Eng", "engineer")
    cookie = access.open_console_session(session, made.id)
    session.commit()
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, cookies={"cmw": cookie})


@pytest.fixture
def quarantine(session: orm.Session, blob_store: blobs.BlobStore, project: models.Project) -> Callable[..., list[str]]:
    """Lay events that no worker survived, as the last failed attempt leaves them."""

    def make(n: int, error: str = "OSError: the picture kills the decoder", of: models.Project = project) -> list[str]:
        made = [seeded.event(session, blob_store, of.id, output=EVIL, display=None) for _ in range(n)]
        values = {"state": models.QUARANTINED, "attempts": checks.MAX_ATTEMPTS, "last_error": error}
        session.execute(sa.update(models.Work).where(models.Work.event_id.in_(made)).values(**values))
        session.commit()
        return [str(one) for one in made]

    return make


def states(session: orm.Session) -> list[int]:
    return sorted(session.execute(sa.text("SELECT state FROM work")).scalars())


def test_each_quarantined_event_is_shown_with_why_and_how_often_it_was_tried(
    operator: TestClient, quarantine: Callable[..., list[str]]
) -> None:
    [event] = quarantine(1)
    page = operator.get("/quarantine")
    assert "1 event no worker survived" in words(page.text)
    assert "4 attempts OSError: the picture kills the decoder" in words(page.text)
    assert f"/events/{event}" in page.text
    assert "<script>x" not in page.text
    assert "49" not in words(page.text).split()
    assert "U+202E" in page.text
    assert "Quarantine: 1" in words(operator.get("/ledger").text)


def test_one_is_replayed_and_the_page_says_that_it_waits(
    operator: TestClient, session: orm.Session, quarantine: Callable[..., list[str]]
) -> None:
    event, _ = quarantine(2)
    answer = operator.post("/quarantine/replay", data={"event": event})
    assert (answer.status_code, answer.headers["location"]) == (303, "/quarantine?replayed=1")
    assert states(session) == [0, models.QUARANTINED]
    page = words(operator.get(answer.headers["location"]).text)
    assert "1 event got a fresh start. 1 waits for a worker now" in page
    seeded.check(session, seeded.scored(0.3, 0.5))
    session.commit()
    page = words(operator.get(answer.headers["location"]).text)
    assert "None waits any more. In quarantine: 1." in page
    assert operator.post("/quarantine/replay", data={"event": event}).status_code == 404, "it is there no more"


def test_all_are_replayed_at_once_and_it_is_written_down(
    operator: TestClient, session: orm.Session, quarantine: Callable[..., list[str]], stranger: models.Project
) -> None:
    quarantine(3)
    quarantine(1, of=stranger)
    assert operator.post("/quarantine/replay").headers["location"] == "/quarantine?replayed=3"
    assert states(session) == [0, 0, 0, models.QUARANTINED], "another project's stays where it is"
    [entry] = session.scalars(sa.select(models.AuditEntry).where(models.AuditEntry.action == "events.replay"))
    assert (entry.actor, entry.details) == ("user:eng", {"count": 3})


def test_another_projects_event_is_neither_shown_nor_replayed(
    operator: TestClient, session: orm.Session, quarantine: Callable[..., list[str]], stranger: models.Project
) -> None:
    [theirs] = quarantine(1, of=stranger)
    assert theirs not in operator.get("/quarantine").text
    for event in (theirs, str(uuid.uuid4()), "x", "\x00"):
        assert operator.post("/quarantine/replay", data={"event": event}).status_code == 404
    assert states(session) == [models.QUARANTINED]


def test_a_viewer_sees_the_quarantine_and_cannot_replay(
    console: TestClient, session: orm.Session, quarantine: Callable[..., list[str]]
) -> None:
    quarantine(1)
    page = console.get("/quarantine").text
    assert "<button" not in page.split("<main")[1]
    assert "needs the role engineer or admin" in page
    assert console.post("/quarantine/replay").status_code == 403
    assert states(session) == [models.QUARANTINED]


def test_an_empty_quarantine_says_what_it_is_for(operator: TestClient) -> None:
    assert "Nothing is quarantined" in operator.get("/quarantine").text


# Addresses that nobody answers

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/nothing", "/settings/nothing", "/events/1/2/3"])
def test_a_browser_gets_a_page_where_nothing_is(http: TestClient, path: str) -> None:
    answer = http.get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing at this address." in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_browser_that_opens_the_address_of_a_form_gets_a_page(http: TestClient) -> None:
    answer = http.get("/sign-out", headers=BROWSER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("path", "headers"), [("/nothing", {}), ("/v1/nothing", BROWSER), ("/v1", BROWSER), ("/nothing", {"accept": "*/*"})]
)
def test_a_client_of_the_api_gets_json_where_nothing_is(http: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = http.get(path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_an_address_typed_with_markup_is_not_repeated(http: TestClient) -> None:
    page = http.get("/<script>x</script>", headers=BROWSER).text
    assert "<script>x" not in html.unescape(re.sub(r"%3C", "<", page))
