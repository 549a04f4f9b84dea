"""Which addresses of pictures are taken, what may be reached through them, and what is shown. No server is called."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import addresses, errors, fetches, image_urls, outbound
from cmerwatch.addresses import Address
from cmerwatch.image_urls import Lost, Rules
from tests.core.test_outbound import NOT_PUBLIC, resolving

PUBLIC = ipaddress.ip_address("93.184.216.34")
ANY = Rules(addresses.parse_hosts("public"))

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.none() | st.integers(1, 65_535)
paths = st.text(max_size=30).map(lambda text: "/" + text)


def rules(hosts: str, private: str = "") -> Rules:
    return Rules(addresses.parse_hosts(hosts), addresses.parse_allow_list(private))


def where(url: str) -> outbound.Place:
    return outbound.place(url, limit=image_urls.MAX_URL)


# The setting


@pytest.mark.parametrize(
    "text", ["*", "*.", "a b", "http://x", "x/y", "x:0", "x:99999", "x:", "*x.com", "a.*.com", "ä"]
)
def test_an_entry_that_means_nothing_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="neither `public` nor a host"):
        addresses.parse_hosts(f"public, {text}")


def test_a_bad_list_stops_the_start_by_name(configured: Callable[..., object]) -> None:
    with pytest.raises(errors.StartRefused, match="CMERWATCH_FETCH_IMAGES"):
        configured(fetch_images="https://cdn.example.com/")


def test_an_empty_list_lets_no_address_be_fetched() -> None:
    assert not addresses.parse_hosts(" , ")
    with pytest.raises(errors.Invalid, match="CMERWATCH_FETCH_IMAGES"):
        image_urls.taken("https://cdn.example.com/", rules(""))


@given(names, names, ports)
def test_a_name_is_taken_where_it_or_what_it_ends_with_is_listed(host: str, listed: str, port: int | None) -> None:
    entry = listed if port is None else f"{listed}:{port}"
    exact, below = rules(entry), rules(f"*.{entry}")
    for scheme, own in (("https", 443), ("http", 80)):
        place = outbound.Place(scheme, host, port or own)
        assert exact.take(place) == (host == listed)
        assert below.take(place) == host.endswith(f".{listed}")
        assert not exact.take(outbound.Place(scheme, listed, 1 if port == 2 else 2))


@given(st.sampled_from(["http", "https"]), names, st.integers(1, 65_535))
def test_public_takes_https_on_its_own_port_and_nothing_else(scheme: str, host: str, port: int) -> None:
    assert ANY.take(outbound.Place(scheme, host, port)) == (scheme == "https" and port == 443)


@given(st.sampled_from(["http", "https"]), names, st.integers(1, 65_535), st.ip_addresses())
def test_public_reaches_no_address_that_is_not_public_whatever_channels_may(
    scheme: str, host: str, port: int, address: Address
) -> None:
    everything = Rules(ANY.hosts, addresses.parse_allow_list("0.0.0.0/0, ::/0"))
    if everything.reach(outbound.Place(scheme, host, port), address):
        assert addresses.is_public(address)
        assert (scheme, port) == ("https", 443)


@given(names, st.ip_addresses())
def test_a_listed_host_reaches_private_addresses_only_where_those_are_listed_too(host: str, address: Address) -> None:
    place = outbound.Place("http", host, 80)
    assert rules(host).reach(place, address) == addresses.is_public(address)
    assert rules(host, "0.0.0.0/0, ::/0").reach(place, address)


# The address


@given(st.text(max_size=60) | st.builds("{}://{}{}".format, st.sampled_from(["https", "http", "HTTPS"]), names, paths))
def test_what_is_taken_is_plain_and_means_the_same_host_to_everyone(url: str) -> None:
    """A parser that sees another host than the one that connects is how such guards are passed by."""
    with contextlib.suppress(errors.Invalid):
        plain = image_urls.normal(url)
        assert plain.isascii()
        assert plain.isprintable()
        assert not set(plain) & set(' \\"<>^`{|}#')
        assert "@" not in urlsplit(plain).netloc
        assert where(plain).host == (urlsplit(plain).hostname or "")
        assert image_urls.normal(plain) == plain


@given(names, paths, st.text(alphabet="secret=&", min_size=1, max_size=20))
def test_what_is_shown_holds_no_query(host: str, path: str, query: str) -> None:
    with contextlib.suppress(errors.Invalid):
        plain = image_urls.normal(f"https://{host}{path.replace('?', '').replace('#', '')}?{query}")
        told = image_urls.shown(plain)
        assert "?" not in told
        assert len(told) <= image_urls.SHOWN
        assert plain.startswith(told.removesuffix("…"))


def test_escapes_that_are_there_stay_as_they_are() -> None:
    """A signature is over the exact text."""
    signed = "https://b.s3.example.com/a%20b/%C3%BC.png?X-Amz-Credential=A%2Fb%2Faws4_request&x=~._-&sig=a+b/c=="
    assert image_urls.normal(signed) == signed


@given(st.lists(st.sampled_from(["brought", "came", "lost"]), min_size=1, max_size=16))
def test_pictures_stand_in_the_order_in_which_they_were_named(kinds: list[str]) -> None:
    named = [(kind, f"{kind}-{position}") for position, kind in enumerate(kinds)]
    brought = [sha256 for kind, sha256 in named if kind == "brought"]
    came = {at: None if kind == "lost" else sha256 for at, (kind, sha256) in enumerate(named) if kind != "brought"}
    assert fetches.in_order(brought, came) == [sha256 for kind, sha256 in named if kind != "lost"]


# One download, as far as it goes without a server


@pytest.mark.parametrize("address", [*NOT_PUBLIC, "93.184.216.34, 10.0.0.1"])
def test_no_download_reaches_an_address_that_is_not_public(address: str) -> None:
    resolve = resolving(*address.split(", "))
    found = image_urls.download("https://cdn.example.com/x", ANY, 1000, time.monotonic() + 5, resolve)
    assert found == Lost("image_url_refused")


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://169.254.169.254/latest/meta-data/",
    ],
)
def test_no_way_of_writing_this_machine_is_reached(url: str) -> None:
    """With the system's own resolver, which reads more kinds of numbers than people do."""
    found = image_urls.download(image_urls.taken(url, ANY), ANY, 1000, time.monotonic() + 5)
    assert found in (Lost("image_url_refused"), image_urls.Later("image_url_unreachable"))
