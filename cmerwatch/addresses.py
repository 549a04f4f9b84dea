"""Which network addresses an outbound call may reach. Pure: nothing here asks a resolver.

Python's `is_private` and `is_global` are no guard: both let through shared address space, multicast, 6to4, NAT64 and
some clouds' metadata addresses, or call them global.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's special-purpose registry, and one address that a large cloud answers on although it looks public.
_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers' customers
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's wire server
        "169.254.0.0/16",  # link-local, where instance metadata lives
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
    )
)
_HOST = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.?")
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # Teredo, ORCHID and other protocol assignments: some carry an IPv4 address inside
        "2001:db8::/32",
        "2002::/16",  # 6to4: the IPv4 address inside may be private
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """Whether the whole internet knows this address as one host. An IPv4 address written as IPv6 is judged as IPv4."""
    plain = unmapped(address)
    if isinstance(plain, ipaddress.IPv4Address):
        return not any(plain in block for block in _NOT_PUBLIC_4)
    return plain in _PUBLIC_6 and not any(plain in block for block in _NOT_PUBLIC_6)


def unmapped(address: Address) -> Address:
    """::ffff:127.0.0.1 is 127.0.0.1 to every system that connects to it."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@dataclass(frozen=True, slots=True)
class AllowList:
    """What an operator permits beyond public https: networks on any port, and single hosts on one port each."""

    networks: tuple[Network, ...] = ()
    places: frozenset[tuple[str, int]] = frozenset()

    def permits(self, host: str, port: int, address: Address) -> bool:
        return self.names(host, port) or any(
            unmapped(address) in network for network in self.networks if network.version == unmapped(address).version
        )

    def names(self, host: str, port: int) -> bool:
        return (host.lower(), port) in self.places


def parse_allow_list(text: str) -> AllowList:
    """`10.0.0.0/8, alerts.internal:8443, [fd00::1]:9000`. Raises ValueError naming the entry."""
    networks: list[Network] = []
    places: set[tuple[str, int]] = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            if "/" in entry:
                networks.append(ipaddress.ip_network(entry))
            else:
                places.add(_place(entry))
        except ValueError:
            raise ValueError(f"{entry!r} is neither a network such as 10.0.0.0/8 nor a host:port") from None
    return AllowList(tuple(networks), frozenset(places))


def _place(entry: str) -> tuple[str, int]:
    host, colon, port = entry.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError
    if host.startswith("["):
        return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))), int(port)
    if not host or ":" in host:
        raise ValueError
    return host.lower(), int(port)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where pictures may be fetched from: any public https address, and hosts that are named, with their port or None.

    A name that begins with a dot stands for everything below it.
    """

    has_public: bool = False
    named: frozenset[tuple[str, int | None]] = frozenset()

    def __bool__(self) -> bool:
        return self.has_public or bool(self.named)

    def names(self, scheme: str, host: str, port: int) -> bool:
        """Without a port an entry means the scheme's own."""
        host = host.lower().removesuffix(".")
        labels = host.split(".")
        patterns = {host, *("." + ".".join(labels[at:]) for at in range(1, len(labels)))}
        ports = {port, None} if port == {"https": 443, "http": 80}.get(scheme) else {port}
        return any((pattern, one) in self.named for pattern in patterns for one in ports)


def parse_hosts(text: str) -> Hosts:
    """`public, cdn.example.com, *.blob.example.net, images.internal:8080`. Raises ValueError naming the entry."""
    named: set[tuple[str, int | None]] = set()
    has_public = False
    for entry in filter(None, (part.strip().lower() for part in text.split(","))):
        if entry == "public":
            has_public = True
            continue
        try:
            named.add(_host(entry))
        except ValueError:
            raise ValueError(f"{entry!r} is neither `public` nor a host, *.suffix or host:port") from None
    return Hosts(has_public, frozenset(named))


def _host(entry: str) -> tuple[str, int | None]:
    below = entry.startswith("*.")
    name = entry[1:] if below else entry
    host, port = _place(name) if ":" in name.rpartition("]")[2] else (name, None)
    if host.startswith("["):
        return str(ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))), port
    # An IPv6 address that _place has read, or the labels of a name: `*` is only for a whole beginning.
    if ":" not in host and not _HOST.fullmatch(host.removeprefix(".") if below else host):
        raise ValueError
    return host.removesuffix("."), port
