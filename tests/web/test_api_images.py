"""Hash first: what is missing is told, what is sent is held to its hash and its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cmerwatch import models, settings
from tests.web.wire import Headers, bomb, encoded, event, named, png, sha256

Stored = Callable[[], dict[str, int]]


def test_an_uploaded_picture_is_no_longer_missing_and_may_be_named(
    http: TestClient, ingest: Headers, stored: Stored
) -> None:
    here, elsewhere = png(1), png(2)
    asked = {"sha256": [sha256(elsewhere), sha256(here), sha256(elsewhere)]}
    assert http.post("/v1/images/missing", json=asked, headers=ingest).json() == {
        "missing": [sha256(elsewhere), sha256(here)]
    }
    for _ in range(2):  # again is harmless
        answer = http.put(f"/v1/images/{sha256(here)}", content=here, headers=ingest)
        assert (answer.status_code, answer.json()) == (
            200,
            {"sha256": sha256(here), "format": "PNG", "width": 8, "height": 8},
        )
    assert http.post("/v1/images/missing", json=asked, headers=ingest).json() == {"missing": [sha256(elsewhere)]}
    assert http.post("/v1/events", json=event(images=[named(here)]), headers=ingest).status_code == 202
    assert (stored()["images"], stored()["blobs"]) == (1, 1)


def test_a_picture_whose_bytes_were_lost_is_missing_again_and_can_be_sent_again(
    http: TestClient, ingest: Headers, tmp_path: Path, stored: Stored
) -> None:
    """As after a disk restored from an older backup than the database."""
    picture = png()
    http.put(f"/v1/images/{sha256(picture)}", content=picture, headers=ingest)
    [file] = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
    file.unlink()
    asked = {"sha256": [sha256(picture)]}
    assert http.post("/v1/images/missing", json=asked, headers=ingest).json() == {"missing": asked["sha256"]}
    assert http.put(f"/v1/images/{sha256(picture)}", content=picture, headers=ingest).status_code == 200
    assert http.post("/v1/images/missing", json=asked, headers=ingest).json() == {"missing": []}
    assert (stored()["images"], stored()["blobs"]) == (1, 1)


def test_the_stored_bytes_are_the_bytes_sent(
    http: TestClient, ingest: Headers, project: models.Project, tmp_path: Path
) -> None:
    picture = png()
    http.put(f"/v1/images/{sha256(picture)}", content=picture, headers=ingest)
    [file] = [path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]
    assert file.read_bytes() == picture
    assert project.id.hex in file.parts


@pytest.mark.parametrize(
    "data, name, says",
    [
        pytest.param(png(1), sha256(png(2)), sha256(png(1)), id="another hash"),
        pytest.param(b"hello", None, "not an image", id="not an image"),
        pytest.param(b"", None, "empty", id="nothing"),
        pytest.param(b"<svg xmlns='x'/>", None, "SVG", id="SVG"),
        pytest.param(encoded("BMP"), None, "BMP", id="BMP"),
        pytest.param(encoded("JPEG")[:80], None, "breaks before its size", id="JPEG cut in its header"),
        pytest.param(bomb(5001, 5000), None, "25000000", id="25+ megapixels"),
    ],
)
def test_a_bad_picture_is_refused_and_leaves_nothing(
    http: TestClient, ingest: Headers, stored: Stored, data: bytes, name: str | None, says: str
) -> None:
    answer = http.put(f"/v1/images/{name or sha256(data)}", content=data, headers=ingest)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "image_refused"
    assert answer.json()["error"]["details"]["field"] == "body"
    assert says in answer.json()["error"]["message"]
    assert set(stored().values()) == {0}


@pytest.mark.parametrize("name", ["abc", "A" * 64, "0" * 65, "..%2F..%2Fetc%2Fpasswd"])
def test_a_name_that_is_no_hash_reaches_no_file(http: TestClient, ingest: Headers, stored: Stored, name: str) -> None:
    assert http.put(f"/v1/images/{name}", content=png(), headers=ingest).status_code in (404, 422)
    assert set(stored().values()) == {0}


def test_a_picture_over_the_limit_is_refused_however_it_is_sent(
    configured: Callable[..., settings.Settings], http: TestClient, ingest: Headers, app: Any, stored: Stored
) -> None:
    app.state.settings = configured(max_image_bytes=2000)
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(5):
            sent += 1000
            yield b"x" * 1000

    for content in (b"x" * 2001, chunks()):
        answer = http.put(f"/v1/images/{'0' * 64}", content=content, headers=ingest)
        assert answer.status_code == 413
        assert answer.json()["error"]["details"] == {"field": "body", "limit": 2000}
    assert set(stored().values()) == {0}


@pytest.mark.parametrize(
    "asked, field",
    [
        ([], "sha256"),
        ({}, "sha256"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"sha256": ["0" * 64], "more": 1}, "sha256"),
        ({"sha256": ["0" * 64] * 1025}, "sha256"),
        ({"sha256": ["0" * 64, "0" * 63]}, "sha256[1]"),
        ({"sha256": [7]}, "sha256[0]"),
    ],
)
def test_asking_with_anything_but_hashes_is_refused(http: TestClient, ingest: Headers, asked: Any, field: str) -> None:
    answer = http.post("/v1/images/missing", json=asked, headers=ingest)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field
