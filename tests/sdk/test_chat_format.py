"""Which pictures, words and numbers of a conversation belong to its answer."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch.sdk.hooks import chat
from cmerwatch.sdk.hooks.chat import Answer

ASSISTANT = {"role": "assistant", "content": "A circle."}


def user(words: str = "", *pictures: str) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": name}} for name in pictures]
    return {"role": "user", "content": [*([{"type": "text", "text": words}] if words else []), *shown]}


def system(words: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": words}


def said(tokens: list[str], logprobs: list[float]) -> Answer:
    answer = Answer()
    answer.tokens, answer.logprobs = tokens, logprobs
    return answer


def found(messages: Any) -> tuple[list[str], str] | None:
    question = chat.question({"messages": messages})
    return question and (question[0], "\n".join(question[1]))


@pytest.mark.parametrize(
    "messages, expected",
    [
        ([user("What?", "data:a")], (["data:a"], "What?")),
        ([user("Which?", "data:a", "data:b")], (["data:a", "data:b"], "Which?")),
        ([user("", "data:a"), user("", "data:b"), user("Same?")], (["data:a", "data:b"], "Same?")),
        ([user("First?", "data:a"), ASSISTANT, user("And now?", "data:b")], (["data:b"], "And now?")),
        ([user("First?", "data:a"), ASSISTANT, user("Its colour?")], (["data:a"], "Its colour?")),
        ([user("Describe all I send.", "data:a"), ASSISTANT, user("", "data:b")], (["data:b"], "Describe all I send.")),
        ([system("Be brief."), user("What?", "data:a")], (["data:a"], "What?")),
        ([system("Describe it."), user("", "data:a")], (["data:a"], "Describe it.")),
        ([system("Describe it.", "developer"), user("", "data:a")], (["data:a"], "Describe it.")),
        ([user("", "data:a")], (["data:a"], "")),
        ([user("What?", "data:a"), {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "7"}],
         (["data:a"], "What?")),
        ([{"role": "user", "content": "Just words"}], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_question_is_the_newest_pictures_and_the_newest_words(messages: Any, expected: Any) -> None:
    assert found(messages) == expected


def test_an_address_may_stand_bare_as_some_servers_take_it() -> None:
    part = {"type": "image_url", "image_url": "https://example.org/a.jpg"}
    assert found([{"role": "user", "content": [part]}]) == (["https://example.org/a.jpg"], "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["role", "content", "type", "text", "image_url", "url", "user", "assistant"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_a_question_of_any_shape_is_read_or_left(messages: Any) -> None:
    for body in ({"messages": messages}, messages):
        question = chat.question(body)
        assert question is None or all(isinstance(url, str) for url in question[0])


tokens = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=8)


@given(thoughts=tokens, words=tokens)
def test_tokens_of_thoughts_before_the_output_are_left_out(thoughts: list[str], words: list[str]) -> None:
    output = "".join(words)
    every = [*thoughts, *words]
    measured = chat.confidence(said(every, [-float(n) for n in range(len(every))]), output)
    assert measured is not None
    kept, logprobs = measured
    assert "".join(kept).startswith(output) or kept == every
    assert logprobs == [-float(n) for n in range(len(every))][-len(kept) :]


def test_thoughts_are_cut_exactly_where_the_output_begins() -> None:
    answer = said(["Let me", " see. ", "A", " dog"], [-3.0, -2.0, -0.5, -0.25])
    assert chat.confidence(answer, "A dog") == (["A", " dog"], [-0.5, -0.25])


def test_tokens_that_do_not_spell_the_output_are_all_kept() -> None:
    answer = said(["A ", "\\xf0\\x9f", "\\x90\\xb6"], [-3.0, -2.0, -0.5])
    assert chat.confidence(answer, "A 🐶") == (answer.tokens, answer.logprobs)


@pytest.mark.parametrize(
    "given, expected",
    [
        ([-0.5, 1e-6], [-0.5, 0.0]),
        ([-0.5, -math.inf], [-0.5, -9999.0]),
        ([-0.5, math.nan], [-0.5, -9999.0]),
        ([-0.5, 0.9], None),
        ([-0.5, None], None),
        ([-0.5, "x"], None),
        ([-9999.0, -9999.0], None),
        ([-math.inf], None),
    ],
)
def test_odd_numbers_become_what_they_mean_or_nothing(given: Any, expected: Any) -> None:
    measured = chat.confidence(said(["t"] * len(given), given), "t" * len(given))
    assert (measured and measured[1]) == expected


@given(st.lists(st.floats(), min_size=1, max_size=8))
def test_what_is_kept_is_always_what_the_server_takes(given: list[float]) -> None:
    measured = chat.confidence(said(["t"] * len(given), given), "t" * len(given))
    if measured is not None:
        assert len(measured[0]) == len(measured[1]) == len(given)
        assert all(chat.LOWEST <= value <= 0 for value in measured[1])


def _chunk(entries: list[tuple[str, float]] | None, index: int = 0) -> Any:
    content = None if entries is None else [SimpleNamespace(token=one, logprob=value) for one, value in entries]
    words = "".join(one for one, _ in entries or ())
    choice = SimpleNamespace(
        index=index, delta=SimpleNamespace(content=words), logprobs=SimpleNamespace(content=content), finish_reason=None
    )
    return SimpleNamespace(choices=[choice])


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.tuples(st.text(max_size=3), st.floats(-9, 0)), max_size=3))))
def test_chunks_add_up_for_each_choice_however_they_are_cut(chunks: list[Any]) -> None:
    reply = chat.Reply({}, {})
    for index, entries in chunks:
        reply.add(_chunk(entries or None, index))
        reply.add(SimpleNamespace(choices=[], usage="the last"))
    for index, answer in reply.answers.items():
        expected = [entry for place, entries in chunks if place == index for entry in entries]
        assert list(zip(answer.tokens, answer.logprobs, strict=True)) == expected
        assert "".join(answer.text) == "".join(one for one, _ in expected)
