"""What cannot be stored durably now is refused with 503 and a time to come back, never accepted, never half stored."""

from __future__ import annotations

import datetime as dt
import resource
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import orm

from cmerwatch import db, models, settings
from cmerwatch_web import errors
from cmerwatch_web.app import create_app
from tests.processes import free_port
from tests.web.wire import Headers, encoded, event, inline, png, sha256

Stored = Callable[[], dict[str, int]]


def must_come_back(answer: object, code: str) -> None:
    assert answer.status_code == 503  # type: ignore[attr-defined]
    assert answer.json()["error"]["code"] == code  # type: ignore[attr-defined]
    assert 1 <= int(answer.headers["Retry-After"]) <= 300  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "state, code",
    [
        ("53100", "storage_full"),  # disk_full
        ("53200", "unavailable"),  # out_of_memory
        ("53300", "unavailable"),  # too_many_connections
        ("55P03", "unavailable"),  # lock_not_available
        ("57014", "unavailable"),  # query_canceled: the statement timeout
        ("57P01", "unavailable"),  # admin_shutdown
        ("40P01", "unavailable"),  # deadlock_detected
        ("40001", "unavailable"),  # serialization_failure
        ("25006", "unavailable"),  # read_only_sql_transaction
        ("58030", "unavailable"),  # io_error
    ],
)
def test_a_database_that_cannot_store_now_is_503(
    http: TestClient, ingest: Headers, stored: Stored, session: orm.Session, state: str, code: str
) -> None:
    session.execute(
        sa.text(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"
        )
    )
    session.execute(sa.text("CREATE TRIGGER t BEFORE INSERT ON work FOR EACH ROW EXECUTE FUNCTION refuse()"))
    session.commit()
    must_come_back(http.post("/v1/events", json=event(event_id="e1"), headers=ingest), code)
    must_come_back(http.post("/v1/events", json={"events": [event(), event()]}, headers=ingest), code)
    assert set(stored().values()) == {0}
    session.execute(sa.text("DROP TRIGGER t ON work"))
    session.commit()
    answer = http.post("/v1/events", json=event(event_id="e1"), headers=ingest)
    assert answer.json()["results"][0]["status"] == "accepted"


def test_a_missing_partition_is_503_and_not_ready(
    http: TestClient, ingest: Headers, stored: Stored, session: orm.Session
) -> None:
    assert http.get("/readyz").status_code == 200
    today = dt.datetime.now(dt.UTC)
    session.execute(sa.text(f"ALTER TABLE events DETACH PARTITION events_p{today:%Y%m%d}"))
    session.commit()
    answer = http.post("/v1/events", json=event(), headers=ingest)
    must_come_back(answer, "unavailable")
    assert "partition" in answer.json()["error"]["message"]
    ready = http.get("/readyz")
    must_come_back(ready, "unavailable")
    assert ready.json()["error"]["details"]["partitions"] == "missing"
    assert stored()["blobs"] == 0


@pytest.fixture
def nowhere(configured: Callable[..., settings.Settings], engine: sa.Engine) -> Iterator[TestClient]:
    """The app, started on an address where no database answers."""
    lost = configured(database_url=f"postgresql://127.0.0.1:{free_port()}/none")
    with TestClient(create_app(lost), raise_server_exceptions=False) as client:
        yield client
    db.SessionLocal.configure(bind=engine)


def test_a_database_that_is_gone_is_503_on_every_route(nowhere: TestClient) -> None:
    key = {"Authorization": "Bearer " + valid_looking_key()}
    for method, path in (("POST", "/v1/events"), ("GET", "/v1/cmer"), ("GET", "/v1/ledger"), ("GET", "/v1/events")):
        must_come_back(nowhere.request(method, path, headers=key), "unavailable")
    for path in ("/readyz", "/metrics"):
        must_come_back(nowhere.get(path), "unavailable")
    assert nowhere.get("/healthz").status_code == 200


def valid_looking_key() -> str:
    """A key whose checksum holds, so that only the database can say that it is unknown."""
    from cmerwatch import access

    return f"cmw_abcdefgh_{'x' * 32}{access._checksum('abcdefgh' + 'x' * 32)}"


def test_a_pool_with_no_connection_left_is_503(configured: Callable[..., settings.Settings], committed: str) -> None:
    engine = sa.create_engine(committed, pool_size=1, max_overflow=0, pool_timeout=0.05)
    db.SessionLocal.configure(bind=engine)
    client = TestClient(create_app(configured()), raise_server_exceptions=False)
    try:
        with engine.connect():
            must_come_back(client.get("/readyz"), "unavailable")
        assert client.get("/readyz").status_code == 200
    finally:
        engine.dispose()


def test_a_full_disk_is_503_and_nothing_is_stored(http: TestClient, ingest: Headers, stored: Stored) -> None:
    """RLIMIT_FSIZE makes the operating system refuse the write, as a full disk does."""
    picture = encoded("PNG", (300, 300), compress_level=0)
    assert len(picture) > 200_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        lone = http.post("/v1/events", json=event(images=[inline(picture)]), headers=ingest)
        batch = {"events": [event(), event(images=[inline(picture)])]}
        whole = http.post("/v1/events", json=batch, headers=ingest)
        put = http.put(f"/v1/images/{sha256(picture)}", content=picture, headers=ingest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for answer in (lone, whole, put):
        must_come_back(answer, "storage_full")
    counts = stored()
    assert counts.pop("blobs") <= 1  # the small picture of the batch was written first; no row names it
    assert set(counts.values()) == {0}


def test_a_store_that_cannot_be_written_is_503(
    http: TestClient, ingest: Headers, project: models.Project, configured: Callable[..., settings.Settings]
) -> None:
    (configured().blob_dir / project.id.hex).write_text("a file where the folder should be")
    must_come_back(http.post("/v1/events", json=event(), headers=ingest), "unavailable")
    must_come_back(http.put(f"/v1/images/{sha256(png())}", content=png(), headers=ingest), "unavailable")


def test_a_broker_that_is_down_is_no_reason_to_refuse(
    configured: Callable[..., settings.Settings], committed: str
) -> None:
    from cmerwatch import access

    with db.transaction() as session:
        key = access.create_key(session, access.create_project(session, "acme").id, "test", ["ingest"])
    down = configured(database_url=committed, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with TestClient(create_app(down), headers={"Authorization": f"Bearer {key}"}) as client:
        for _ in range(3):
            assert client.post("/v1/events", json=event()).status_code == 202


def test_the_time_to_come_back_is_spread_and_clamped() -> None:
    def seconds(wanted: float) -> set[int]:
        return {int(errors.retry_headers(wanted)["Retry-After"]) for _ in range(200)}

    assert seconds(0) == {1}
    assert seconds(10_000) == {300}
    assert len(seconds(100)) > 10
    assert min(seconds(100)) >= 80
    assert max(seconds(100)) <= 120
