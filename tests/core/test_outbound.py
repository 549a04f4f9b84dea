"""Calls to addresses that people entered: what is refused, when it is checked, and when it ends."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import addresses, errors, outbound
from cmerwatch.addresses import Address, AllowList
from tests import receiver
from tests.receiver import Got, Receiver, answering

NOBODY = AllowList()
PUBLIC = ipaddress.ip_address("93.184.216.34")


def resolving(*found: str) -> Callable[[str, int], list[Address]]:
    return lambda host, port: [ipaddress.ip_address(one) for one in found]


def unresolvable(host: str, port: int) -> list[Address]:
    raise OSError


def send(url: str, allowed: AllowList, seconds: float = 10, resolve: outbound.Resolve | None = None) -> outbound.Answer:
    return outbound.send("POST", url, {}, b"{}", allowed, time.monotonic() + seconds, resolve)


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver.receiver() as made:
        yield made


def allowing(server: Receiver, host: str = "127.0.0.1") -> AllowList:
    return addresses.parse_allow_list(f"{host}:{server.port}")


# Addresses

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.1.1",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "4000::1",
    "e000::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_an_address_that_is_no_public_host_is_not_public(text: str) -> None:
    assert not addresses.is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "93.184.216.34", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"],
)
def test_a_public_host_is_public(text: str) -> None:
    assert addresses.is_public(ipaddress.ip_address(text))


@given(st.ip_addresses())
def test_nothing_that_python_knows_to_be_private_is_public(address: Address) -> None:
    plain = addresses.unmapped(address)
    if plain.is_private or plain.is_loopback or plain.is_link_local or plain.is_multicast or plain.is_reserved:
        assert not addresses.is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_when_written_as_ipv6(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    assert addresses.is_public(mapped) == addresses.is_public(address)


# The allow-list


def test_the_allow_list_holds_networks_and_places() -> None:
    allowed = addresses.parse_allow_list(" 10.0.0.0/8, Alerts.internal:8443 ,[fd00::1]:9000,")
    assert allowed.permits("anything", 1, ipaddress.ip_address("10.9.9.9"))
    assert allowed.permits("anything", 1, ipaddress.ip_address("::ffff:10.9.9.9"))
    assert allowed.permits("alerts.internal", 8443, ipaddress.ip_address("192.168.0.1"))
    assert allowed.permits("fd00::1", 9000, ipaddress.ip_address("fd00::1"))
    assert not allowed.permits("alerts.internal", 8444, ipaddress.ip_address("192.168.0.1"))
    assert not allowed.permits("other", 8443, ipaddress.ip_address("11.0.0.1"))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0.1/8", "host", "host:", ":80", "host:0", "host:65536", "::1:80"]
)
def test_an_entry_that_means_nothing_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="neither a network"):
        addresses.parse_allow_list(f"10.0.0.0/8,{text}")


def test_a_bad_allow_list_stops_the_start(configured: Callable[..., object]) -> None:
    with pytest.raises(errors.StartRefused, match="CMERWATCH_ALLOW_PRIVATE_TARGETS"):
        configured(allow_private_targets="nonsense")


# When a channel is made

# Each is another way to write a private address, or to smuggle one past a careless reader of URLs.
PRIVATE_URLS = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://0/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:7f00:1::]/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.1.1/",
    "https://224.0.0.1/",
    "https://10.0.0.1:443/",
]


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_no_way_to_write_a_private_address_is_let_through(url: str) -> None:
    with pytest.raises(errors.Invalid, match="private or reserved network address") as refused:
        outbound.check(url, NOBODY)
    assert refused.value.details["field"] == "url"
    with pytest.raises(outbound.Failed, match="not public"):
        send(url, NOBODY)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com/x",
        "file:///etc/passwd",
        "gopher://93.184.216.34/",
        "https://",
        "https:///path",
        "https://user@93.184.216.34/",
        "https://user:secret@93.184.216.34/",
        "https://93.184.216.34@127.0.0.1/",
        "https://93.184.216.34\\@127.0.0.1/",
        "https://93.184.216.34/#fragment",
        "https://exa mple.com/",
        "https://example.com/\r\nHost: other",
        "https://example.com/ä",
        "https://ex\u3002ample.com/",
        "https://example..com/",
        "https://-example-.com/",
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://example.com:99999/",
        "https://example.com:port/",
        "https://" + "a" * 250 + ".com/",
        "https://example.com/" + "x" * 2000,
    ],
)
def test_what_is_no_plain_url_is_refused_before_any_resolver_is_asked(url: str) -> None:
    def asked(host: str, port: int) -> list[Address]:
        raise AssertionError("the resolver was asked")

    with pytest.raises(errors.Invalid, match="`url`"):
        outbound.check(url, NOBODY, resolve=asked)


def test_one_private_answer_among_public_ones_is_enough_to_refuse() -> None:
    with pytest.raises(errors.Invalid, match="private"):
        outbound.check("https://hooks.example.com/", NOBODY, resolve=resolving(str(PUBLIC), "10.0.0.1"))


def test_a_public_name_on_https_passes_and_so_does_one_that_does_not_resolve_now() -> None:
    outbound.check("https://hooks.example.com/x?y=1", NOBODY, resolve=resolving(str(PUBLIC)))
    outbound.check("https://hooks.example.com/x?y=1", NOBODY, resolve=unresolvable)


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://hooks.example.com:8443/"])
def test_only_https_on_its_own_port_is_ordinary(url: str) -> None:
    for resolve in (resolving(str(PUBLIC)), unresolvable):
        with pytest.raises(errors.Invalid, match="https on port 443"):
            outbound.check(url, NOBODY, resolve=resolve)
    listed = addresses.parse_allow_list("hooks.example.com:80,hooks.example.com:8443")
    outbound.check(url, listed, resolve=resolving("10.0.0.1"))
    outbound.check(url, listed, resolve=unresolvable)


def test_a_resolver_that_hangs_does_not_hang_whoever_asks() -> None:
    release = threading.Event()

    def hang(host: str, port: int) -> list[Address]:
        release.wait(60)
        return []

    with pytest.raises(outbound.Failed, match="could not be resolved"):
        send("https://hooks.example.com/", NOBODY, 0.05, hang)
    release.set()


# When it is called


def test_the_checked_address_is_the_one_that_is_called(server: Receiver) -> None:
    """A resolver that turns to a private address afterwards is never asked again."""
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[Address]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1" if len(asked) == 1 else "10.0.0.1")]

    answer = send(f"http://hook.test:{server.port}/x", allowing(server, "hook.test"), resolve=rebinding)
    assert (answer.status, asked) == (204, ["hook.test"])
    assert server.got[0].headers["host"] == f"hook.test:{server.port}"


def test_a_name_that_was_public_when_entered_is_checked_again_when_called(server: Receiver) -> None:
    url = "https://hooks.example.com/"
    outbound.check(url, NOBODY, resolve=resolving(str(PUBLIC)))
    with pytest.raises(outbound.Failed, match="nothing was sent"):
        send(url, NOBODY, resolve=resolving("127.0.0.1"))
    with pytest.raises(outbound.Failed, match="nothing was sent"):
        send(url, NOBODY, resolve=resolving(str(PUBLIC), "::1"))


def test_the_allow_list_is_for_the_place_it_names_only(server: Receiver) -> None:
    assert send(server.url, allowing(server)).status == 204
    with pytest.raises(outbound.Failed, match="not public"):
        send(server.url, addresses.parse_allow_list(f"127.0.0.1:{server.port + 1}"))
    assert len(server.got) == 1


def test_a_redirect_is_an_answer_and_is_not_followed(server: Receiver) -> None:
    with receiver.receiver() as inside:
        server.answer = answering(307, Location=inside.url)
        assert send(server.url, allowing(server)).status == 307
        assert inside.got == []


def test_proxies_of_the_environment_are_not_used(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver.receiver() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(server.url, allowing(server)).status == 204
        assert proxy.got == []


def test_a_stream_without_end_is_cut(server: Receiver) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler, got: Got) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while not server.closing.is_set():
            handler.wfile.write(b"x" * 65_536)
            sent += 65_536

    server.answer = endless
    answer = send(server.url, allowing(server))
    assert (answer.status, len(answer.body)) == (200, outbound.READ_CAP)
    assert sent < 64 << 20  # what fits into the sockets' buffers, not what it would have sent in ten seconds


def test_one_deadline_ends_a_server_that_hangs_before_its_answer(server: Receiver) -> None:
    server.answer = lambda handler, got: server.closing.wait(60) and None
    with pytest.raises(outbound.Failed, match="in time"):
        send(server.url, allowing(server), 0.3)


def test_one_deadline_ends_a_server_that_sends_a_byte_now_and_then(server: Receiver) -> None:
    def trickle(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not server.closing.wait(0.05):
            handler.wfile.write(b"X-Slow: 1\r\n")

    server.answer = trickle
    with pytest.raises(outbound.Failed, match="in time"):
        send(server.url, allowing(server), 0.5)


def test_an_answer_that_trickles_after_its_status_still_counts_by_its_status(server: Receiver) -> None:
    def trickle(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.send_response(503)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not server.closing.wait(0.05):
            handler.wfile.write(b"x")

    server.answer = trickle
    assert send(server.url, allowing(server), 0.5).status == 503


def test_a_deadline_that_has_passed_sends_nothing(server: Receiver) -> None:
    with pytest.raises(outbound.Failed):
        send(server.url, allowing(server), -1)
    assert server.got == []


@pytest.mark.parametrize("said", [b"\x00\xff garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000])
def test_what_is_not_http_is_a_failure_in_our_own_words(server: Receiver, said: bytes) -> None:
    def garbage(handler: BaseHTTPRequestHandler, got: Got) -> None:
        handler.wfile.write(said)
        handler.close_connection = True

    server.answer = garbage
    with pytest.raises(outbound.Failed, match="broke off"):
        send(server.url, allowing(server))


def test_a_refused_connection_says_so_without_the_address() -> None:
    port = receiver.refusing_port()
    with pytest.raises(outbound.Failed, match=r"^The connection was refused\.$"):
        send(f"http://127.0.0.1:{port}/secret", addresses.parse_allow_list(f"127.0.0.1:{port}"))


# TLS


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a certificate for `name`, which is its own authority, written to folder/ca.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(pem)
    (folder / "both.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


@pytest.fixture
def trusting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's trust is the test's own authority alone."""
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(tmp_path / "ca.pem"))
    outbound._tls.cache_clear()
    yield
    outbound._tls.cache_clear()


@pytest.mark.usefixtures("trusting")
def test_tls_verifies_the_name_although_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    with receiver.receiver(certificate(tmp_path, "hook.test")) as server:
        allowed = allowing(server, "hook.test")
        assert send(f"https://hook.test:{server.port}/", allowed, resolve=resolving("127.0.0.1")).status == 204


@pytest.mark.usefixtures("trusting")
def test_a_certificate_for_another_name_is_refused_and_nothing_is_sent(tmp_path: Path) -> None:
    with receiver.receiver(certificate(tmp_path, "other.test")) as server:
        with pytest.raises(outbound.Failed, match="certificate could not be verified"):
            send(f"https://hook.test:{server.port}/", allowing(server, "hook.test"), resolve=resolving("127.0.0.1"))
        assert server.got == []


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    with receiver.receiver(certificate(tmp_path, "hook.test")) as server:
        with pytest.raises(outbound.Failed, match="certificate could not be verified"):
            send(f"https://hook.test:{server.port}/", allowing(server, "hook.test"), resolve=resolving("127.0.0.1"))
        assert server.got == []


def test_a_server_that_speaks_no_tls_is_a_failure(server: Receiver) -> None:
    with pytest.raises(outbound.Failed, match=r"TLS|broke off"):
        send(f"https://127.0.0.1:{server.port}/", allowing(server))
