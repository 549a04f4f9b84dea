"""What a client's encoder wrote as multipart is read back, and nothing hostile gets further than a refusal."""

from __future__ import annotations

import contextlib

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import errors
from cmerwatch_web.api import multipart

BOUNDARY = b"3c5d2b1a9f"
names = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters='"\\%'), min_size=1)
data = st.one_of(
    st.binary(), st.sampled_from([b"\r\n", b"--" + BOUNDARY, b"\r\n--" + BOUNDARY[:-1], b"\r\n\r\n", b"-"])
)


def encoded(parts: list[tuple[str, bytes]]) -> bytes:
    request = httpx2.Request(
        "POST",
        "http://test",
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"},
        files=[(name, ("x", value, "image/png")) for name, value in parts],
    )
    return request.read()


@given(st.lists(st.tuples(names, data), min_size=1))
def test_what_an_encoder_wrote_is_read_back_in_order(parts: list[tuple[str, bytes]]) -> None:
    assert list(multipart.parts(encoded(parts), BOUNDARY)) == parts


@given(st.data())
def test_a_body_cut_off_or_bent_anywhere_is_read_or_refused(draw: st.DataObject) -> None:
    whole = encoded([("events", b"{}"), ("sha256:00", b"\x89PNG\r\n\x1a\n")])
    start, end = sorted(draw.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    bent = whole[:start] + draw.draw(data) + whole[end:]
    with contextlib.suppress(errors.Invalid):
        list(multipart.parts(bent, BOUNDARY))


@pytest.mark.parametrize("end", range(1, 60))
def test_a_body_that_lacks_its_end_is_refused(end: int) -> None:
    with pytest.raises(errors.Invalid, match="cut off"):
        list(multipart.parts(encoded([("events", b"{}" * 20)])[: -end - 4], BOUNDARY))


def test_headers_that_go_on_without_end_are_refused() -> None:
    endless = b"--" + BOUNDARY + b"\r\n" + b"A: b\r\n" * 10_000 + b"\r\nx\r\n--" + BOUNDARY + b"--"
    with pytest.raises(errors.Invalid):
        list(multipart.parts(endless, BOUNDARY))


@pytest.mark.parametrize(
    "header",
    [
        b'CONTENT-DISPOSITION: form-data; name="events"',
        b"content-disposition:form-data;name=events",
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; filename="a;name=b"; name="events"',
    ],
)
def test_the_name_is_found_however_its_header_is_written(header: bytes) -> None:
    body = b"--" + BOUNDARY + b"\r\n" + header + b"\r\n\r\n{}\r\n--" + BOUNDARY + b"--\r\n"
    assert list(multipart.parts(body, BOUNDARY)) == [("events", b"{}")]


def test_a_part_without_a_name_has_an_empty_one() -> None:
    body = b"--" + BOUNDARY + b"\r\nX-Name: events\r\n\r\n{}\r\n--" + BOUNDARY + b"--\r\n"
    assert list(multipart.parts(body, BOUNDARY)) == [("", b"{}")]
