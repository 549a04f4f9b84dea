"""Pictures by their address: which addresses are taken, and one download through all its redirects.

An address comes from whoever may send events, so each hop is held to the operator's list and its name's addresses are
checked when they are called. Signed addresses carry keys in their query: it is neither shown nor logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from cmerwatch import errors, notify, outbound
from cmerwatch.addresses import Address, AllowList, Hosts, is_public

MAX_URL = 8000  # an address signed with temporary credentials takes some 2 500
MOST_REDIRECTS = 5
SHOWN = 160
LONGEST_WAIT = 300.0  # of a Retry-After: signed addresses do not live long

OFF = (
    "is not allowed: fetching URLs is off. Send the bytes as `data`, or upload them and send `sha256`; whoever runs "
    "this installation can switch it on with CMERWATCH_FETCH_IMAGES"
)

# Kept as they are, beside letters and digits: what RFC 3986 allows in a path or query, and escapes that are there.
_PLAIN = "!$%&'()*+,-./:;=?@_~[]"

REFUSED = "image_url_refused"
TOO_LARGE = "image_url_too_large"
NOT_AN_IMAGE = "image_url_not_an_image"
REDIRECTS = "image_url_redirects"
UNREACHABLE = "image_url_unreachable"

_REDIRECTING = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class Rules:
    """`hosts`: what may be fetched. `allowed`: private addresses that may be called, of a host named in `hosts`."""

    hosts: Hosts
    allowed: AllowList = field(default_factory=AllowList)

    def take(self, where: outbound.Place) -> bool:
        """As far as the address itself tells."""
        return self._names(where) or (self.hosts.has_public and where.is_ordinary)

    def reach(self, where: outbound.Place, address: Address) -> bool:
        """The list of private targets is meant for channels, which admins enter: `public` alone opens none of it."""
        if is_public(address):
            return self.take(where)
        return self._names(where) and self.allowed.permits(where.host, where.port, address)

    def _names(self, where: outbound.Place) -> bool:
        return self.hosts.names(where.scheme, where.host, where.port)


@dataclass(frozen=True, slots=True)
class Got:
    data: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """No other try would end better."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """Another try may end better, after `seconds` where the server named a time."""

    reason: str
    seconds: float | None = None


Outcome = Got | Lost | Later


def taken(url: str, rules: Rules, field: str = "url") -> str:
    """The address as it will be requested. Raises Invalid in a sentence that names `field` and what would be taken."""
    if not rules.hosts:
        raise errors.Invalid(f"`{field}` {OFF}.", field=field)
    plain = normal(url, field)
    if not rules.take(outbound.place(plain, field, MAX_URL)):
        raise errors.Invalid(
            f"`{field}` is not at a host that CMERWATCH_FETCH_IMAGES names, nor a public https address on port 443 "
            "where that setting says `public`. Send the bytes as `data` instead.",
            field=field,
        )
    return plain


def normal(url: str, field: str = "url") -> str:
    """Without its fragment, and with what is not plain ASCII in path and query percent-encoded. Raises Invalid."""
    if len(url) > MAX_URL or not url.isprintable():
        raise _invalid(field, f"must be a URL of at most {MAX_URL} characters, none of them a control character")
    try:
        split = urlsplit(url)
    except ValueError:
        raise _invalid(field, "is not a URL such as https://example.com/picture.png") from None
    if not split.netloc.isascii():
        raise _invalid(field, "names a host outside ASCII; write it as DNS does, beginning with xn--")
    path, query = quote(split.path, safe=_PLAIN), quote(split.query, safe=_PLAIN)
    plain = urlunsplit((split.scheme, split.netloc, path or "/", query, ""))
    outbound.place(plain, field, MAX_URL)
    return plain


def shown(url: str) -> str:
    """What people may see of it: no query, no user, and not all of a long path."""
    split = urlsplit(url)
    told = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
    return told if len(told) <= SHOWN else told[: SHOWN - 1] + "…"


def download(url: str, rules: Rules, cap: int, deadline: float, resolve: outbound.Resolve | None = None) -> Outcome:
    """At most `cap` bytes before `deadline` (of time.monotonic()), however many hops that takes."""
    headers = {
        "Accept": "image/png, image/jpeg, image/webp, image/gif",
        "Accept-Encoding": "identity",
        "User-Agent": "cmerwatch",
    }
    try:
        for _ in range(MOST_REDIRECTS + 1):
            if not rules.take(outbound.place(url, limit=MAX_URL)):
                return Lost(REFUSED)
            answer = outbound.fetch(url, headers, cap, rules.reach, deadline, resolve, MAX_URL)
            if answer.status not in _REDIRECTING or "location" not in answer.headers:
                return _outcome(answer)
            url = normal(urljoin(url, answer.headers["location"]))
    except (outbound.Refused, errors.Invalid):
        return Lost(REFUSED)
    except outbound.TooLong:
        return Lost(TOO_LARGE)
    except outbound.Failed:
        return Later(UNREACHABLE)
    except ValueError:  # a Location that cannot be joined
        return Lost(REFUSED)
    return Lost(REDIRECTS)


def _outcome(answer: outbound.Answer) -> Outcome:
    if answer.status == 200:
        return Got(answer.body)
    reason = f"image_url_{answer.status}"
    if answer.status >= 500 or answer.status in _MAY_PASS:
        said = notify.retry_after(answer.headers)
        return Later(reason, None if said is None else min(said, LONGEST_WAIT))
    return Lost(reason)


def _invalid(field: str, what: str) -> errors.Invalid:
    return errors.Invalid(f"`{field}` {what}.", field=field)
