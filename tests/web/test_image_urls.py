"""Events that name their pictures by address: what is taken, what is refused, and what is told while they wait."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import events, fetches, models, settings
from tests import factories

Configure = Callable[..., settings.Settings]
URL = "https://cdn.example.com/a/b.png?X-Amz-Signature=very-secret"


@pytest.fixture(autouse=True)
def permitted(configured: Configure) -> None:
    """Before the app of the test reads its settings."""
    configured(fetch_images="public, images.internal:8080, *.example.net")


def event(*urls: str, **fields: Any) -> dict[str, Any]:
    said = {"endpoint": "/describe", "output": "A red circle.", "images": [{"url": url} for url in urls]}
    return said | fields


def post(http: TestClient, ingest: dict[str, str], body: dict[str, Any]) -> Any:
    return http.post("/v1/events", json=body, headers=ingest)


def the_row(session: orm.Session) -> models.ImageFetch:
    session.expire_all()
    return session.scalars(sa.select(models.ImageFetch)).one()


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "HTTPS://CDN.example.com/",
        "https://cdn.example.com:443/x.png",
        "https://93.184.216.34/x.png",
        "https://cdn.example.com/" + "x" * 7000,
        "https://cdn.example.com/a b/ü.png?q=ä|b#part",
        "http://a.example.net/x.png",
        "https://a.b.example.net/x.png",
        "http://images.internal:8080/x.png",
    ],
)
def test_an_event_with_a_permitted_address_is_accepted_and_waits(
    http: TestClient, ingest: dict[str, str], read: dict[str, str], session: orm.Session, url: str
) -> None:
    answer = post(http, ingest, event(url))
    assert answer.status_code == 202, answer.text
    [result] = answer.json()["results"]
    assert result["status"] == "accepted"
    row = the_row(session)
    assert (str(row.event_id), row.position, row.state) == (result["id"], 0, "waiting")
    assert row.url.isascii()
    assert "#" not in row.url
    told = http.get(f"/v1/events/{result['id']}", headers=read).json()
    assert (told["state"], told["waiting_for"], told["images"]) == ("waiting", "images", [])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://cdn.example.com/x.png", "CMERWATCH_FETCH_IMAGES"),
        ("https://cdn.example.com:8443/x.png", "CMERWATCH_FETCH_IMAGES"),
        ("http://images.internal/x.png", "CMERWATCH_FETCH_IMAGES"),
        ("http://example.net/x.png", "CMERWATCH_FETCH_IMAGES"),
        ("http://evil-example.net/x.png", "CMERWATCH_FETCH_IMAGES"),
        ("https://user:password@cdn.example.com/x.png", "user name"),
        ("https://cdn.example.com\\@127.0.0.1/x.png", "plain characters"),
        ("https://büro.example.com/x.png", "xn--"),
        ("https://ex\u3002ample.com/x.png", "xn--"),
        ("ftp://cdn.example.com/x.png", "https://"),
        ("file:///etc/passwd", "https://"),
        ("data:image/png;base64,AAAA", "https://"),
        ("//cdn.example.com/x.png", "https://"),
        ("", "https://"),
        ("https://cdn.example.com/" + "x" * 9000, "8000 characters"),
        ("https://cdn.example.com/" + "ü" * 3000, "8000 plain characters"),
        ("https://cdn.example.com/\r\nHost: other", "control character"),
        ("https://cdn.example.com:99999/", "not a URL"),
        ("https://[fe80::1%25eth0]/x.png", "no domain name"),
    ],
)
def test_an_address_that_will_never_be_asked_is_refused_with_what_to_do(
    http: TestClient, ingest: dict[str, str], stored: Callable[[], dict[str, int]], url: str, said: str
) -> None:
    before = stored()
    answer = post(http, ingest, event(url))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["details"]["field"] == "images[0].url"
    assert said in error["message"]
    assert stored() == before


def test_off_is_the_default_and_the_refusal_names_the_setting(
    http: TestClient, ingest: dict[str, str], app: Any, configured: Configure
) -> None:
    app.state.settings = configured(fetch_images="")
    error = post(http, ingest, event(URL)).json()["error"]
    assert "CMERWATCH_FETCH_IMAGES" in error["message"]
    assert "very-secret" not in json.dumps(error)


def test_a_bad_event_never_rejects_its_batch(http: TestClient, ingest: dict[str, str]) -> None:
    body = {"events": [event(URL), event("http://cdn.example.com/"), event(URL)]}
    results = post(http, ingest, body).json()["results"]
    assert [result["status"] for result in results] == ["accepted", "rejected", "accepted"]


def test_the_same_event_again_is_a_duplicate_and_another_address_a_conflict(
    http: TestClient, ingest: dict[str, str], session: orm.Session
) -> None:
    first = post(http, ingest, event(URL, event_id="one")).json()["results"][0]
    again = post(http, ingest, event(URL, event_id="one")).json()["results"][0]
    assert (again["id"], again["status"]) == (first["id"], "duplicate")
    assert the_row(session)
    other = post(http, ingest, event(URL + "x", event_id="one"))
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


def test_the_same_event_is_a_duplicate_also_after_its_picture_came(
    http: TestClient, ingest: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    first = post(http, ingest, event(URL, event_id="one")).json()["results"][0]
    come(session, project.id)
    again = post(http, ingest, event(URL, event_id="one")).json()["results"][0]
    assert (again["id"], again["status"]) == (first["id"], "duplicate")


def test_one_picture_has_one_source(http: TestClient, ingest: dict[str, str]) -> None:
    body = event() | {"images": [{"url": URL, "sha256": "0" * 64}]}
    error = post(http, ingest, body).json()["error"]
    assert (error["details"]["field"], "exactly one" in error["message"]) == ("images[0]", True)


def test_pictures_by_address_and_by_bytes_stand_in_one_event(
    http: TestClient, ingest: dict[str, str], read: dict[str, str], session: orm.Session, project: models.Project
) -> None:
    body = event() | {"images": [{"data": base64.b64encode(factories.png(2, 5)).decode()}, {"url": URL}]}
    [result] = post(http, ingest, body).json()["results"]
    assert the_row(session).position == 1
    sha256 = come(session, project.id)
    told = http.get(f"/v1/events/{result['id']}", headers=read).json()
    assert [image["sha256"] for image in told["images"]][1:] == [sha256]
    assert (len(told["images"]), told["waiting_for"]) == (2, "check")


def come(session: orm.Session, project_id: uuid.UUID) -> str:
    """As when the fetcher brings the one picture that is waited for."""
    token = uuid.uuid4()
    [claimed] = fetches.claim(session, 9, 60, token)
    sha256 = factories.image(session, project_id, "fetched")
    assert fetches.fetched(session, claimed, token, sha256)
    session.commit()
    return sha256


def test_the_api_tells_of_each_address_without_its_key(
    http: TestClient, ingest: dict[str, str], read: dict[str, str], session: orm.Session
) -> None:
    [result] = post(http, ingest, event(URL, "https://cdn.example.com/" + "x" * 5000)).json()["results"]
    token = uuid.uuid4()
    [claimed, _] = sorted(fetches.claim(session, 9, 60, token), key=lambda one: one.position)
    fetches.again(session, claimed, token, "image_url_503")
    session.commit()
    answer = http.get(f"/v1/events/{result['id']}", headers=read)
    first, second = answer.json()["image_fetches"]
    assert (first["url"], first["state"]) == ("https://cdn.example.com/a/b.png", "waiting")
    assert (first["reason"], first["attempts"]) == ("image_url_503", 1)
    assert len(second["url"]) < 200
    assert "very-secret" not in answer.text


def test_an_event_whose_picture_never_came_ends_invalid_with_the_reason(
    http: TestClient,
    ingest: dict[str, str],
    read: dict[str, str],
    console: TestClient,
    session: orm.Session,
) -> None:
    [result] = post(http, ingest, event(URL)).json()["results"]
    page = console.get(f"/events/{result['id']}").text
    assert "Its picture is being fetched" in page
    assert "very-secret" not in page
    token = uuid.uuid4()
    [claimed] = fetches.claim(session, 9, 60, token)
    fetches.failed(session, claimed, token, "image_url_404")
    factories.check_all(session, outcome="invalid_image", reasons=("image_url_404",))
    session.commit()
    told = http.get(f"/v1/events/{result['id']}", headers=read).json()
    assert (told["state"], told["waiting_for"]) == ("checked", None)
    assert (told["check"]["outcome"], told["check"]["reasons"]) == ("invalid_image", ["image_url_404"])
    assert told["image_fetches"][0]["state"] == "failed"
    page = console.get(f"/events/{result['id']}").text
    assert "Picture not fetched" in page
    assert "the address of the picture answered 404" in page
    assert "https://cdn.example.com/a/b.png" in page
    assert "very-secret" not in page


def test_an_address_is_text_on_the_page_and_no_link(
    http: TestClient, ingest: dict[str, str], console: TestClient
) -> None:
    [result] = post(http, ingest, event("https://cdn.example.com/<script>alert('x')</script>\"&'")).json()["results"]
    page = console.get(f"/events/{result['id']}").text
    assert "<script>alert" not in page
    assert 'href="https://cdn' not in page
    assert 'src="https://cdn' not in page


def test_metrics_count_what_waits_and_what_was_given_up(
    http: TestClient, ingest: dict[str, str], session: orm.Session
) -> None:
    post(http, ingest, event(URL))
    post(http, ingest, event(URL + "&second"))
    token = uuid.uuid4()
    claimed = fetches.claim(session, 1, 60, token)[0]
    fetches.failed(session, claimed, token, "image_url_404")
    session.execute(sa.text("UPDATE image_fetches SET next_at = now() - interval '2 minutes'"))
    session.commit()
    text = http.get("/metrics").text
    assert "cmerwatch_image_fetches_waiting 1\n" in text
    assert "cmerwatch_image_fetches_overdue 1\n" in text
    assert "cmerwatch_image_fetches_failed 1\n" in text


def test_an_event_without_addresses_makes_no_fetch(session: orm.Session, project: models.Project) -> None:
    factories.ingest(session, project.id)
    assert session.scalars(sa.select(models.ImageFetch)).all() == []


def test_an_event_without_addresses_has_the_hash_it_always_had() -> None:
    """Or the retries of what the release before accepted would be conflicts."""
    said = events.body_hash(factories.new_event("0" * 64, event_id="e"))
    assert said == events.body_hash(factories.new_event("0" * 64, event_id="e", urls=None))
    assert said != events.body_hash(factories.new_event("0" * 64, event_id="e", urls=((1, URL),)))
    assert said.hex() == "37818861e8419e4b60bfcb4d354f9df0d7da6a6fd7fff32728158d80acc8fbcd"
