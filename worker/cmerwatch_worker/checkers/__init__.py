"""Checkers by name. Each runtime is imported only when it is asked for, so the light worker never sees torch."""

import logging
from collections.abc import Callable
from pathlib import Path

from cmerwatch import errors
from cmerwatch_worker import profiles
from cmerwatch_worker.checkers.base import Checker

log = logging.getLogger(__name__)


def load(spec: str) -> Checker:
    """Load "demo", "bundle:FOLDER", "openclip:MODEL:TAG" or "openclip-local:CONFIG.json:WEIGHTS.safetensors".

    errors.StartRefused: an unknown kind, a missing package, weights that are not there or not to be trusted.
    """
    kind, _, rest = spec.partition(":")
    if kind not in CHECKERS or (kind == "demo") != (rest == ""):
        raise errors.StartRefused(f"checker {spec!r} is none of: {', '.join(_FORMS.values())}")
    return CHECKERS[kind](rest)


def _demo(_: str) -> Checker:
    from cmerwatch_worker import bundle

    return _bundle(str(bundle.DEMO))


def _bundle(rest: str) -> Checker:
    try:
        from cmerwatch_worker.checkers import onnx
    except ImportError as error:
        raise _missing(error, "cmerwatch[worker]") from error
    checker = onnx.Onnx(Path(rest))
    _warn(checker.label, checker.licence)
    return checker


def _openclip(rest: str) -> Checker:
    model, _, tag = rest.rpartition(":")
    if not model or not tag:
        raise errors.StartRefused(f"checker 'openclip:{rest}' must be {_FORMS['openclip']}")
    try:
        from cmerwatch_worker.checkers import openclip
    except ImportError as error:
        raise _missing(error, "cmerwatch[torch]") from error
    checker = openclip.load_pretrained(model, tag)
    _warn(rest, profiles.licence_of(model, tag))
    return checker


def _openclip_local(rest: str) -> Checker:
    config, found, weights = rest.partition(".json:")
    if not found:
        raise errors.StartRefused(f"checker 'openclip-local:{rest}' must be {_FORMS['openclip-local']}")
    try:
        from cmerwatch_worker.checkers import openclip
    except ImportError as error:
        raise _missing(error, "cmerwatch[torch]") from error
    return openclip.load_local(Path(config + ".json"), Path(weights))


def _warn(what: str, licence: str | None) -> None:
    if licence and (said := profiles.warning(what, licence)):
        log.warning("%s", said)


def _missing(error: ImportError, extra: str) -> errors.StartRefused:
    return errors.StartRefused(f"this checker needs the package {error.name}; run: pip install '{extra}'")


_FORMS = {
    "demo": "demo",
    "bundle": "bundle:FOLDER",
    "openclip": "openclip:MODEL:TAG",
    "openclip-local": "openclip-local:CONFIG.json:WEIGHTS.safetensors",
}
CHECKERS: dict[str, Callable[[str], Checker]] = {
    "demo": _demo,
    "bundle": _bundle,
    "openclip": _openclip,
    "openclip-local": _openclip_local,
}
