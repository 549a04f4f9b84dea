"""Secrets at rest: AES-256-GCM under a key derived from the installation's secret key.

A sealed value is one byte of version, four that name the key, a nonce of twelve, and the ciphertext with its tag. The
name lets a new secret key be put in force while values sealed under the one before it can still be opened.
"""

from __future__ import annotations

import functools
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cmerwatch import errors, settings

_VERSION = b"\x01"
_ID_BYTES, _NONCE_BYTES = 4, 12
_HEAD = len(_VERSION) + _ID_BYTES
_PURPOSE = b"cmerwatch sealing v1"  # the same secret peppers API keys: derived keys keep the two uses apart


class Unreadable(errors.CmerwatchError):
    """A sealed value cannot be opened with the secret key in force."""

    code = "unreadable"


def seal(plain: bytes, context: str) -> bytes:
    """`context` says whose value this is; a value copied to another owner's row does not open there."""
    key = _key(settings.current().secret_key.get_secret_value())
    nonce = os.urandom(_NONCE_BYTES)
    return _VERSION + _name(key) + nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def unseal(sealed: bytes, context: str) -> bytes:
    """Raises Unreadable: another secret key, another owner, or damage."""
    current = settings.current()
    for secret in (current.secret_key, current.secret_key_previous):
        if not secret.get_secret_value():
            continue
        key = _key(secret.get_secret_value())
        if sealed[:_HEAD] == _VERSION + _name(key):
            return _decrypt(key, sealed[_HEAD:], context)
    raise Unreadable(
        "This was sealed under another CMERWATCH_SECRET_KEY. Set that one as CMERWATCH_SECRET_KEY_PREVIOUS, "
        "or enter the configuration again."
    )


def _decrypt(key: bytes, rest: bytes, context: str) -> bytes:
    try:
        return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError):
        raise Unreadable("A sealed value is damaged or belongs elsewhere; enter the configuration again.") from None


@functools.lru_cache(maxsize=4)
def _key(secret: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret.encode())


def _name(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_ID_BYTES]
