"""What `init` was told: argument before environment before default, and nothing here raises."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from cmerwatch.sdk.counts import log
from cmerwatch.sdk.events import Event
from cmerwatch.sdk.transport import Transport

DEFAULT_SERVER_URL = "http://127.0.0.1:8383"
OFF = frozenset({"0", "false", "no", "off"})
ON = frozenset({"1", "true", "yes", "on"})

SampleRate = float | Callable[[Mapping[str, Any]], float]


class Options(TypedDict, total=False):
    """Sizes in bytes, times in seconds."""

    environment: str | None
    enabled: bool | None
    sample_rate: SampleRate | None
    before_send: Callable[[Event], Event | None] | None
    queue_max_bytes: int
    queue_max_events: int
    flush_interval: float
    connect_timeout: float
    timeout: float
    shutdown_timeout: float
    transport: Transport | None
    debug: bool | None


NAMES = frozenset(Options.__annotations__)


@dataclass(frozen=True)
class Config:
    transport: Transport | None  # None: nothing is recorded
    environment: str | None
    sample_rate: SampleRate
    before_send: Callable[[Event], Event | None] | None
    queue_max_bytes: int
    queue_max_events: int
    flush_interval: float
    shutdown_timeout: float
    debug: bool


def resolve(api_key: str | None, server_url: str | None, options: Options) -> Config:
    for name in sorted(options.keys() - NAMES):
        log.warning("cmerwatch: init() has no option named %s; it is ignored", name)
    carrier = _transport(api_key, server_url, options)
    return Config(
        transport=carrier,
        environment=options.get("environment") or os.environ.get("CMERWATCH_ENVIRONMENT") or None,
        sample_rate=_sample_rate(options.get("sample_rate")),
        before_send=options.get("before_send"),
        queue_max_bytes=int(_positive(options, "queue_max_bytes", 64 << 20)),
        queue_max_events=int(_positive(options, "queue_max_events", 2000)),
        flush_interval=_positive(options, "flush_interval", 0.25),
        shutdown_timeout=_positive(options, "shutdown_timeout", 2.0),
        debug=_flag(options.get("debug"), "CMERWATCH_DEBUG", bool(getattr(carrier, "reraise", False))),
    )


def _transport(api_key: str | None, server_url: str | None, options: Options) -> Transport | None:
    """None when switched off, or with the one warning that says why nothing will be sent."""
    if not _flag(options.get("enabled"), "CMERWATCH_ENABLED", True):
        return None
    given = options.get("transport")
    if given is not None:
        return given
    key = api_key or os.environ.get("CMERWATCH_API_KEY")
    if not key:
        log.warning("cmerwatch: no api key (init(api_key=...) or CMERWATCH_API_KEY); nothing is recorded")
        return None
    # ssl and http.client take 20 ms to load: paid by init(), not by the import. Nor later by the sending thread: a
    # fork in the middle of a thread's import leaves the child a module lock that nobody will ever release.
    from cmerwatch.sdk import http

    url = server_url or os.environ.get("CMERWATCH_SERVER_URL") or DEFAULT_SERVER_URL
    try:
        return http.HttpTransport(
            url, key, _positive(options, "connect_timeout", 1.0), _positive(options, "timeout", 3.0)
        )
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        log.warning("cmerwatch: %s; nothing is recorded", reason)
        return None


def _sample_rate(given: SampleRate | None) -> SampleRate:
    if callable(given):
        return given
    value: object = given if given is not None else os.environ.get("CMERWATCH_SAMPLE_RATE") or 1.0
    try:
        rate = float(value)  # type: ignore[arg-type]
        if 0.0 <= rate <= 1.0:
            return rate
    except (TypeError, ValueError):
        pass
    log.warning("cmerwatch: sample_rate (CMERWATCH_SAMPLE_RATE) must be a number in [0, 1]; using 1.0")
    return 1.0


def _positive(options: Options, name: str, default: float) -> float:
    value: Any = options.get(name, default)
    if isinstance(value, (int, float)) and value > 0:
        return value
    log.warning("cmerwatch: %s must be a number above 0; using %s", name, default)
    return default


def _flag(given: bool | None, variable: str, default: bool) -> bool:
    if given is not None:
        return bool(given)
    text = os.environ.get(variable, "").strip().lower()
    if text in OFF | ON:
        return text in ON
    if text:
        log.warning("cmerwatch: %s must be true or false; using %s", variable, default)
    return default
