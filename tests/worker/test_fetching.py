"""The fetcher against real servers: what comes, what is given up and why, and what waits meanwhile."""

from __future__ import annotations

import contextlib
import gzip
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cmerwatch import blobs, checks, db, event_views, events, fetches, ledger, models, settings
from cmerwatch_worker import fetching
from tests import factories, receiver, stack
from tests.receiver import Got, Receiver, answering
from tests.worker import stage
from tests.worker.colours import Colours, frozen

Configure = Callable[..., settings.Settings]
PNG = factories.png()


@pytest.fixture
def server(configured: Configure) -> Iterator[Receiver]:
    """On loopback, which this test's settings name and permit."""
    with receiver.receiver() as made:
        made.answer = answering(200, PNG, Content_Type="image/png")
        configured(fetch_images=f"127.0.0.1:{made.port}", allow_private_targets=f"127.0.0.1:{made.port}")
        yield made


@contextlib.contextmanager
def fetching_from(store: blobs.BlobStore) -> Iterator[fetching.Fetcher]:
    made, stopping = fetching.Fetcher(settings.current(), store), threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        made.wake()
        thread.join()


def send(project_id: uuid.UUID, *urls: str, **fields: object) -> uuid.UUID:
    """An event that names its pictures by address, as ingest stores it."""
    with db.transaction() as session:
        made = factories.new_event(urls=tuple(enumerate(urls)), **fields)
        return events.ingest(session, project_id, made).id


def work(event_id: uuid.UUID) -> models.Work:
    with db.SessionLocal() as session:
        return session.get_one(models.Work, event_id)


def images(event_id: uuid.UUID) -> list[str]:
    with db.SessionLocal() as session:
        return session.scalars(sa.select(models.Event.images).where(models.Event.id == event_id)).one()


def rows(event_id: uuid.UUID) -> list[models.ImageFetch]:
    with db.SessionLocal() as session:
        return fetches.of(session, event_id)


def is_ready(event_id: uuid.UUID) -> bool:
    return work(event_id).state == models.READY


def tried(event_id: uuid.UUID) -> models.ImageFetch:
    """The first picture after its first recorded try."""
    stack.wait_until(lambda: rows(event_id)[0].reason != "")
    return rows(event_id)[0]


def test_a_picture_named_by_its_address_is_fetched_and_its_event_becomes_ready(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event_id = send(project_id, server.url + "?signature=secret")
    assert work(event_id).state == models.FETCHING
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    [sha256] = images(event_id)
    assert blob_store.get(project_id, sha256) == PNG
    [row] = rows(event_id)
    assert (row.state, row.sha256, row.attempts) == ("fetched", sha256, 1)
    assert row.url == server.url, "a signed address is not kept longer than it is needed"
    with db.SessionLocal() as session:
        note = session.get_one(models.Image, (project_id, sha256))
    assert (note.format, note.width, note.height, note.size_bytes) == ("PNG", 3, 2, len(PNG))


def test_an_event_waits_in_every_count_until_its_pictures_are_there(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event_id = send(project_id, server.url)

    def books() -> dict[str, int]:
        with db.SessionLocal() as session:
            at = session.scalars(sa.select(models.Event.received_at).where(models.Event.id == event_id)).one()
            [hour] = ledger.hours(session, project_id, at, at)
            assert hour.difference == 0
            return ledger.totals([hour])

    assert (books()["accepted"], books()["waiting"]) == (1, 1)
    with db.transaction() as session:
        assert checks.waiting(session) == 1
        assert not checks.has_ready(session)
        assert factories.claim(session)[1] == []
        assert [row.id for row in event_views.find(session, project_id, event_views.EventFilter(state="waiting")).rows]
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert books()["waiting"] == 1
    with db.transaction() as session:
        [done] = factories.check_all(session)
        assert done.result.event.images == tuple(images(event_id))
    assert (books()["scored"], books()["waiting"]) == (1, 0)


def test_events_that_wait_do_not_stand_before_those_that_are_ready(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    send(project_id, server.url)
    with db.transaction() as session:
        ready = factories.ingest(session, project_id)
        assert [event.event_id for event in factories.claim(session)[1]] == [ready]


def test_fetched_pictures_stand_where_the_event_named_them(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    sizes = {"/first": (1, 5), "/third": (3, 5)}
    server.answer = lambda handler, got: receiver.reply(handler, 200, factories.png(*sizes[got.path]))
    with db.transaction() as session:
        brought = [events.store_image(session, blob_store, project_id, factories.png(side, 5)) for side in (2, 4)]
        at = f"http://127.0.0.1:{server.port}"
        made = factories.new_event(*brought, urls=((0, f"{at}/first"), (2, f"{at}/third")))
        event_id = events.ingest(session, project_id, made).id
    assert images(event_id) == brought
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    with db.SessionLocal() as session:
        widths = [session.get_one(models.Image, (project_id, sha256)).width for sha256 in images(event_id)]
    assert widths == [1, 2, 3, 4]


def endless(handler: BaseHTTPRequestHandler, got: Got) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(PNG + b"\0" * 65_536)


def bomb(handler: BaseHTTPRequestHandler, got: Got) -> None:
    """A few kilobytes that say they are a picture, compressed from 40 MB."""
    receiver.reply(handler, 200, gzip.compress(PNG + b"\0" * (40 << 20)), Content_Encoding="gzip")


GIVEN_UP = [
    pytest.param(answering(404), "image_url_404", id="404"),
    pytest.param(answering(410), "image_url_410", id="410"),
    pytest.param(answering(403, b"expired"), "image_url_403", id="an address that has expired"),
    pytest.param(
        answering(200, b"<html>sign in</html>", Content_Type="image/png"), "image_url_not_an_image", id="HTML"
    ),
    pytest.param(answering(200, b""), "image_url_not_an_image", id="nothing"),
    pytest.param(answering(200, b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "image_url_not_an_image", id="SVG"),
    pytest.param(answering(204), "image_url_204", id="204"),
    pytest.param(answering(200, PNG[:20]), "image_url_not_an_image", id="the beginning of a picture"),
    pytest.param(answering(200, factories.png(17_000, 1)), "image_url_too_large", id="too many pixels"),
    pytest.param(answering(200, PNG + b"\0" * (1 << 20)), "image_url_too_large", id="too many bytes"),
    pytest.param(endless, "image_url_too_large", id="a body without end"),
    pytest.param(bomb, "image_url_not_an_image", id="a gzip bomb"),
    pytest.param(answering(302, Location="https://10.1.2.3/x.png"), "image_url_refused", id="a redirect inside"),
    pytest.param(answering(302, Location="http://[::1/"), "image_url_refused", id="a redirect to no address"),
    pytest.param(answering(302, Location="file:///etc/passwd"), "image_url_refused", id="a redirect to a file"),
    pytest.param(answering(302, Location="/again"), "image_url_redirects", id="a redirect to itself"),
    pytest.param(answering(304), "image_url_304", id="a redirect to nowhere"),
]


@pytest.mark.parametrize(("answer", "reason"), GIVEN_UP)
def test_what_no_other_try_would_mend_ends_the_wait_with_its_reason(
    server: Receiver,
    project_id: uuid.UUID,
    blob_store: blobs.BlobStore,
    configured: Configure,
    answer: Callable[[BaseHTTPRequestHandler, Got], None],
    reason: str,
) -> None:
    configured(max_image_bytes=1 << 20)
    server.answer = answer
    event_id = send(project_id, server.url)
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert work(event_id).refused == [reason]
    assert [(row.state, row.reason, row.attempts) for row in rows(event_id)] == [("failed", reason, 1)]
    assert images(event_id) == []


def test_a_redirect_to_another_port_of_this_machine_is_not_followed(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    with receiver.receiver() as inside:
        inside.answer = answering(200, PNG)
        server.answer = answering(302, Location=inside.url)
        event_id = send(project_id, server.url)
        with fetching_from(blob_store):
            stack.wait_until(lambda: is_ready(event_id))
        assert inside.got == []
    assert work(event_id).refused == ["image_url_refused"]


def test_a_redirect_to_a_permitted_place_is_followed(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    def moved(handler: BaseHTTPRequestHandler, got: Got) -> None:
        if got.path == "/there":
            receiver.reply(handler, 200, PNG, Content_Type="text/plain")  # the bytes say what it is, not the header
        else:
            receiver.reply(handler, 307, Location="/there")

    server.answer = moved
    event_id = send(project_id, server.url)
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert (len(images(event_id)), [got.path for got in server.got]) == (1, ["/hook", "/there"])


def test_one_picture_that_is_given_up_ends_the_wait_for_the_others(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    def answer(handler: BaseHTTPRequestHandler, got: Got) -> None:
        if got.path == "/slow":
            server.closing.wait(60)
        receiver.reply(handler, 404 if got.path.startswith("/gone") else 200, PNG)

    server.answer = answer
    at = f"http://127.0.0.1:{server.port}"
    event_id = send(project_id, f"{at}/here", f"{at}/slow", f"{at}/gone?key=secret")
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
        server.closing.set()
    assert work(event_id).refused == ["image_url_404"]
    states = [row.state for row in rows(event_id)]
    assert states[1:] == ["skipped", "failed"]
    assert states[0] in ("fetched", "skipped")
    assert not any("secret" in row.url for row in rows(event_id))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, status: int
) -> None:
    def once(handler: BaseHTTPRequestHandler, got: Got) -> None:
        receiver.reply(handler, status if len(server.got) == 1 else 200, PNG)

    server.answer = once
    event_id = send(project_id, server.url + "?key=k")
    with fetching_from(blob_store):
        row = tried(event_id)
        assert (row.state, row.reason, row.attempts) == ("waiting", f"image_url_{status}", 1)
        assert row.url.endswith("?key=k"), "it is needed again"
        assert 1 < (row.next_at - row.created_at).total_seconds() < 20
        hurry()
        stack.wait_until(lambda: is_ready(event_id))
    assert len(images(event_id)) == 1


def hurry() -> None:
    """As if the time until the next try had passed."""
    with db.transaction() as session:
        session.execute(sa.text("UPDATE image_fetches SET next_at = now() WHERE state = 'waiting'"))


def test_a_retry_after_is_kept_within_limits(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    server.answer = answering(429, Retry_After="100")
    soon = send(project_id, server.url + "/soon")
    with fetching_from(blob_store):
        waited = tried(soon).next_at - tried(soon).created_at
        server.answer = answering(503, Retry_After="86400")
        never = send(project_id, server.url + "/never")
        capped = tried(never).next_at - tried(never).created_at
    assert 100 <= waited.total_seconds() < 120
    assert 300 <= capped.total_seconds() < 320


def test_an_address_that_never_answers_ends_unreachable_after_a_bounded_number_of_tries(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, configured: Configure
) -> None:
    closed = receiver.refusing_port()
    configured(fetch_images="127.0.0.1:" + str(closed), allow_private_targets="127.0.0.0/8")
    event_id = send(project_id, f"http://127.0.0.1:{closed}/x.png")
    with fetching_from(blob_store) as fetcher:
        for attempt in range(1, fetches.MAX_ATTEMPTS):
            stack.wait_until(lambda n=attempt: rows(event_id)[0].attempts == n and not rows(event_id)[0].lease_token)  # type: ignore[misc]
            hurry()
            fetcher.wake()
        stack.wait_until(lambda: is_ready(event_id))
    assert work(event_id).refused == ["image_url_unreachable"]
    assert rows(event_id)[0].attempts == fetches.MAX_ATTEMPTS


def test_a_server_that_drips_is_cut_at_one_deadline_and_tried_again(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.5)

    def drip(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PNG)))
        handler.end_headers()
        for byte in PNG:
            handler.wfile.write(bytes([byte]))
            if server.closing.wait(0.2):
                return

    server.answer = drip
    event_id = send(project_id, server.url)
    with fetching_from(blob_store):
        assert (tried(event_id).state, tried(event_id).reason) == ("waiting", "image_url_unreachable")


def test_a_body_that_breaks_off_is_no_picture_yet(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    def cut(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PNG) + 100))
        handler.end_headers()
        handler.wfile.write(PNG)
        handler.close_connection = True

    server.answer = cut
    event_id = send(project_id, server.url)
    with fetching_from(blob_store):
        assert tried(event_id).state == "waiting"
    assert images(event_id) == []


def test_events_that_name_one_address_at_once_share_one_download(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    everybody = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, got: Got) -> None:
        everybody.wait(30)
        receiver.reply(handler, 200, PNG)

    server.answer = answer
    ids = [send(project_id, server.url) for _ in range(20)]
    fetcher = fetching.Fetcher(settings.current(), blob_store)
    fetcher.tick()
    everybody.set()
    stack.wait_until(lambda: fetcher.tick() == 0 and all(map(is_ready, ids)))
    fetcher.close()
    assert len(server.got) == 1
    assert len({tuple(images(event_id)) for event_id in ids}) == 1


@pytest.fixture
def hanging(server: Receiver, configured: Configure) -> Iterator[Receiver]:
    """A place that never answers, under two names, beside `server`."""
    with receiver.receiver() as made:
        made.answer = lambda handler, got: made.closing.wait(60) and None
        places = f"127.0.0.1:{server.port},localhost:{made.port},127.0.0.1:{made.port}"
        configured(fetch_images=places, allow_private_targets=places)
        yield made


def test_a_host_that_hangs_leaves_fetchers_for_others(
    server: Receiver, hanging: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    for number in range(3 * fetching.FETCHERS):
        send(project_id, f"http://localhost:{hanging.port}/{number}")
    with fetching_from(blob_store) as fetcher:
        stack.wait_until(lambda: len(hanging.got) >= fetching.PER_HOST)
        event_id = send(project_id, server.url)
        fetcher.wake()
        stack.wait_until(lambda: is_ready(event_id))
        assert len(hanging.got) < fetching.FETCHERS
        hanging.closing.set()


def test_a_project_whose_hosts_all_hang_leaves_fetchers_for_the_next(
    server: Receiver, hanging: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    for number in range(2 * fetching.FETCHERS):
        for host in ("localhost", "127.0.0.1"):
            send(project_id, f"http://{host}:{hanging.port}/{number}")
    with fetching_from(blob_store) as fetcher:
        stack.wait_until(lambda: len(hanging.got) >= fetching.PER_PROJECT)
        event_id = send(stage.new_project("another"), server.url)
        fetcher.wake()
        stack.wait_until(lambda: is_ready(event_id))
        assert len(hanging.got) < fetching.FETCHERS
        hanging.closing.set()


def test_no_transaction_is_open_while_a_picture_is_fetched(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    seen: list[int] = []

    def look(handler: BaseHTTPRequestHandler, got: Got) -> None:
        with db.SessionLocal() as session:
            count = sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
            )
            seen.append(session.scalars(count).one())
        receiver.reply(handler, 200, PNG)

    server.answer = look
    event_id = send(project_id, server.url)
    fetcher = fetching.Fetcher(settings.current(), blob_store)
    assert fetcher.tick() == 1
    stack.wait_until(lambda: bool(seen))
    stack.wait_until(lambda: fetcher.tick() == 0 and is_ready(event_id))
    fetcher.close()
    assert seen == [0]


def test_a_fetcher_whose_lease_ran_out_changes_nothing(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    """A zombie: its picture comes after another has taken the address over."""
    event_id = send(project_id, server.url)
    zombie, other = uuid.uuid4(), uuid.uuid4()
    with db.transaction() as session:
        [held] = fetches.claim(session, 10, 0, zombie)
    with db.transaction() as session:
        [taken] = fetches.claim(session, 10, 60, other, again=True)
    with db.transaction() as session:
        assert not fetches.failed(session, held, zombie, "image_url_404")
        assert not fetches.fetched(session, held, zombie, "0" * 64)
        assert not fetches.again(session, held, zombie, "image_url_500")
    assert work(event_id).state == models.FETCHING
    with db.transaction() as session:
        sha256 = events.store_image(session, blob_store, project_id, PNG)
        assert fetches.fetched(session, taken, other, sha256)
    assert is_ready(event_id)


def test_a_store_without_room_costs_no_try(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, tmp_path: Path
) -> None:
    root = tmp_path / "data" / "blobs"
    event_id = send(project_id, server.url)
    store = blobs.FolderStore(root)
    root.rmdir()
    root.write_text("no folder any more")
    with fetching_from(store):
        row = tried(event_id)
    assert (row.state, row.reason, row.attempts) == ("waiting", "store_away", 0)
    assert row.url == server.url


def test_switched_off_meanwhile_what_waits_is_refused_and_nothing_is_called(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, configured: Configure
) -> None:
    event_id = send(project_id, server.url)
    configured(fetch_images="")
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert (work(event_id).refused, server.got) == (["image_url_refused"], [])


def test_channels_private_targets_are_closed_to_pictures_of_public_addresses(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, configured: Configure
) -> None:
    """Whoever may send events must not reach, through us, what an admin opened for channels."""
    configured(fetch_images="public", allow_private_targets="127.0.0.0/8")
    event_id = send(project_id, f"https://127.0.0.1:{server.port}/hook", "https://127.0.0.1/")
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert (work(event_id).refused, server.got) == (["image_url_refused"], [])


def test_nothing_of_a_signed_address_is_logged(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.answer = answering(500)
    event_id = send(project_id, server.url + "?X-Amz-Signature=very-secret")
    with fetching_from(blob_store):
        tried(event_id)
        server.answer = answering(404)
        hurry()
        stack.wait_until(lambda: is_ready(event_id))
    assert "very-secret" not in caplog.text


def test_one_address_twice_in_one_event_is_one_download_and_two_pictures(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    event_id = send(project_id, server.url, server.url)
    with fetching_from(blob_store):
        stack.wait_until(lambda: is_ready(event_id))
    assert (len(server.got), len(images(event_id)), len(set(images(event_id)))) == (1, 2, 1)


def test_an_orderly_stop_records_what_is_in_the_air(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    arrived, release = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler, got: Got) -> None:
        arrived.set()
        release.wait(30)
        receiver.reply(handler, 200, PNG)

    server.answer = slow
    event_id = send(project_id, server.url)
    made, stopping = fetching.Fetcher(settings.current(), blob_store), threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    assert arrived.wait(20)
    stopping.set()
    release.set()
    thread.join()
    assert is_ready(event_id)


def test_a_database_that_goes_away_is_waited_for(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    away = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def cut(handler: BaseHTTPRequestHandler, got: Got) -> None:
        """Every connection is gone when the picture is to be recorded."""
        with db.SessionLocal() as session:
            session.execute(away)
        receiver.reply(handler, 200, PNG)

    def is_there() -> bool:
        with contextlib.suppress(sa.exc.OperationalError):  # the test's own connections were cut too
            return is_ready(event_id)
        return False

    server.answer = cut
    event_id = send(project_id, server.url)
    with fetching_from(blob_store):
        stack.wait_until(is_there)
    assert len(server.got) == 1


def test_one_that_cannot_be_recorded_harms_no_other(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = send(project_id, server.url + "/broken")
    whole = [send(project_id, f"{server.url}/{number}") for number in range(5)]
    fetched = fetches.fetched

    def fail_for_one(session: orm.Session, claimed: fetches.Claimed, token: uuid.UUID, sha256: str) -> bool:
        if claimed.event_id == broken:
            raise RuntimeError("a fault of ours")
        return fetched(session, claimed, token, sha256)

    monkeypatch.setattr(fetches, "fetched", fail_for_one)
    with fetching_from(blob_store):
        stack.wait_until(lambda: all(map(is_ready, whole)))
    assert work(broken).state == models.FETCHING


def test_an_event_whose_picture_never_came_is_checked_as_invalid_and_the_books_balance(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    """Also where another of its pictures came: the claim may be about the one that did not."""
    server.answer = lambda handler, got: receiver.reply(handler, 404 if got.path == "/gone" else 200, PNG)
    at = f"http://127.0.0.1:{server.port}"
    ids = [send(project_id, f"{at}/here", f"{at}/gone"), send(project_id, f"{at}/here")]
    with fetching_from(blob_store), stage.opened(settings.current(), blob_store, Colours(frozen())) as checking:
        stack.wait_until(lambda: all(map(is_ready, ids)))
        assert checking.drain() == 2
    gone, here = (stage.check_of(event_id) for event_id in ids)
    assert (gone["outcome"], gone["reasons"]) == ("invalid_image", ["image_url_404"])
    assert here["outcome"] == "scored"
    with db.SessionLocal() as session:
        when = session.scalars(sa.select(models.Event.received_at).where(models.Event.id == ids[0])).one()
        [hour] = ledger.hours(session, project_id, when, when)
    assert (hour.accepted, hour.scored, hour.invalid_image, hour.waiting, hour.difference) == (2, 1, 1, 0, 0)


def test_addresses_go_with_the_events_of_their_day(
    server: Receiver, project_id: uuid.UUID, blob_store: blobs.BlobStore
) -> None:
    old, new = send(project_id, server.url), send(project_id, server.url)
    with db.transaction() as session:
        assert fetches.purge(session) == 0
        session.execute(sa.delete(models.Event).where(models.Event.id == min(old, new)))
        assert fetches.purge(session) == 1
    assert (rows(min(old, new)), len(rows(max(old, new)))) == ([], 1)
