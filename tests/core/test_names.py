"""What people type to name things: any script, nothing invisible, nothing endless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch import errors, names


@pytest.mark.parametrize("name", ["Ada", "محمد", "می\u200cخواهم", "👩\u200d🚀 crew", "O'Neill & <b>", "  spaced  "])
def test_names_in_any_script_are_kept_as_typed(name: str) -> None:
    assert names.label(name) == name.strip()


@pytest.mark.parametrize(
    "name", ["", "   ", "x" * 201, "a\nb", "a\x00b", "a\u202eb", "a\u2028b", "a\ud800b", "a\ufeffb"]
)
def test_what_is_empty_endless_or_unseen_is_refused_by_field(name: str) -> None:
    with pytest.raises(errors.Invalid) as refused:
        names.label(name, "title")
    assert refused.value.details["field"] == "title"


@pytest.mark.parametrize("login", ["two words", "a\u200db", "tab\there", "", "x" * 121])
def test_a_login_stands_in_a_command_as_it_is(login: str) -> None:
    with pytest.raises(errors.Invalid, match="login"):
        names.login(login)


@given(st.text(max_size=300))
def test_whatever_is_accepted_can_be_stored_and_fits(text: str) -> None:
    try:
        kept = names.label(text)
    except errors.Invalid:
        return
    assert 1 <= len(kept) <= names.MAX_NAME
    assert "\0" not in kept
    kept.encode()
