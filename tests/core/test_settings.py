"""Settings: a bad value stops the start by its name, a secret's file must be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cmerwatch import errors, settings

Change = Callable[..., settings.Settings]


def test_the_environment_sets_what_it_names(configured: Change) -> None:
    assert configured(lease_seconds=7, audit_rate="0.5").lease_seconds == 7
    assert settings.current().audit_rate == 0.5
    assert settings.current() is settings.current()


@pytest.mark.parametrize(
    "name, value",
    [
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "soon"),
        ("AUDIT_RATE", "1.5"),
        ("AUDIT_RATE", "nan"),
        ("POLL_SECONDS", "0"),
        ("BATCH_SIZE", "100000"),
        ("MAX_BODY_BYTES", "10"),
        ("SECRET_KEY", "too short"),
        ("DATABASE_URL", "mysql://x"),
    ],
)
def test_a_bad_value_stops_the_start_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CMERWATCH_{name}", value)
    with pytest.raises(errors.StartRefused, match=f"CMERWATCH_{name}: "):
        settings.read()


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMERWATCH_AUDIT_RATE", "2")
    monkeypatch.setenv("CMERWATCH_BATCH_SIZE", "0")
    with pytest.raises(errors.StartRefused, match=r"(?s)CMERWATCH_BATCH_SIZE: .*CMERWATCH_AUDIT_RATE: "):
        settings.read()


def test_a_refusal_does_not_print_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMERWATCH_SECRET_KEY", "hunter2")
    with pytest.raises(errors.StartRefused) as caught:
        settings.read()
    assert "hunter2" not in str(caught.value)


def test_settings_never_show_their_secret(configured: Change) -> None:
    current = configured()
    assert current.secret_key.get_secret_value() not in repr(current)
    assert current.secret_key.get_secret_value() not in str(current.model_dump())


def test_a_secret_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s" * 40 + "\n")
    monkeypatch.setenv("CMERWATCH_SECRET_KEY_FILE", str(file))
    assert settings.read().secret_key.get_secret_value() == "s" * 40


@pytest.mark.parametrize("content", [None, b"\xff\xfe not text"], ids=["missing", "not text"])
def test_a_file_that_cannot_be_read_is_an_error_and_not_an_empty_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("CMERWATCH_SECRET_KEY_FILE", str(file))
    with pytest.raises(errors.StartRefused, match=r"CMERWATCH_SECRET_KEY_FILE names .*cannot be read"):
        settings.read()


def test_without_a_secret_nothing_that_needs_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMERWATCH_SECRET_KEY")
    with pytest.raises(errors.StartRefused, match="CMERWATCH_SECRET_KEY is empty"):
        settings.read().require_secret()


def test_every_setting_says_what_it_is_for() -> None:
    for name, field in settings.Settings.model_fields.items():
        assert (field.description or "").endswith("."), name
