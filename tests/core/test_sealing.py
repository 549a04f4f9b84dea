"""Secrets at rest: what opens, with which key, and in whose row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cmerwatch import sealing

OLD, NEW = "the old secret key of this installation", "the new secret key of this installation"
Configure = Callable[..., object]


@given(plain=st.binary(max_size=500), context=st.text(max_size=50))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_was_sealed_opens_again_and_shows_nothing(plain: bytes, context: str) -> None:
    sealed = sealing.seal(plain, context)
    assert sealing.unseal(sealed, context) == plain
    assert len(plain) < 4 or plain not in sealed


def test_the_same_value_never_looks_the_same_twice() -> None:
    assert sealing.seal(b"secret", "a") != sealing.seal(b"secret", "a")


def test_a_value_copied_into_another_row_does_not_open_there() -> None:
    with pytest.raises(sealing.Unreadable, match="belongs elsewhere"):
        sealing.unseal(sealing.seal(b"secret", "channel:1"), "channel:2")


@pytest.mark.parametrize("at", [0, 1, 5, 17, -1])
def test_a_changed_byte_does_not_open(at: int) -> None:
    sealed = bytearray(sealing.seal(b"secret", "a"))
    sealed[at] ^= 1
    with pytest.raises(sealing.Unreadable):
        sealing.unseal(bytes(sealed), "a")


@pytest.mark.parametrize("length", [0, 4, 5, 12, 17, 20])
def test_what_was_cut_off_does_not_open(length: int) -> None:
    with pytest.raises(sealing.Unreadable):
        sealing.unseal(sealing.seal(b"secret", "a")[:length], "a")


def test_the_key_before_opens_what_it_sealed_until_it_is_forgotten(configured: Configure) -> None:
    configured(secret_key=OLD)
    sealed = sealing.seal(b"secret", "a")
    configured(secret_key=NEW, secret_key_previous=OLD)
    assert sealing.unseal(sealed, "a") == b"secret"
    fresh = sealing.seal(b"secret", "a")
    configured(secret_key=NEW, secret_key_previous="")
    assert sealing.unseal(fresh, "a") == b"secret"
    with pytest.raises(sealing.Unreadable, match="CMERWATCH_SECRET_KEY_PREVIOUS"):
        sealing.unseal(sealed, "a")
