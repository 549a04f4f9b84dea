"""The output cut into stretches and leaves: whatever the claims and tokens are, the text stays whole and in place."""

from __future__ import annotations

import math

import hypothesis.strategies as st
from hypothesis import given

from cmerwatch_web.console import review_form, review_text
from cmerwatch_web.console.review_form import Draft, Span
from cmerwatch_web.console.review_text import Leaf

texts = st.text(alphabet=st.sampled_from("ab .\n\u200b\u202e\u200d😀é"), max_size=60)


def leaves(stretches: list[review_text.Stretch]) -> list[Leaf]:
    return [leaf for stretch in stretches for leaf in stretch.leaves]


@st.composite
def outputs(draw: st.DrawFn) -> tuple[str, list[dict[str, float]], list[str], list[float]]:
    output = draw(texts)
    spans = draw(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=6))
    claims = [{"start": a, "end": b, "similarity": 0.2, "percentile": 0.01} for a, b in spans]
    cuts = sorted(draw(st.lists(st.integers(0, len(output)), max_size=8)))
    tokens = [output[a:b] for a, b in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    return output, claims, tokens, draw(st.lists(st.floats(-5, 0), min_size=len(tokens), max_size=len(tokens)))


@given(outputs())
def test_no_character_is_lost_doubled_or_misplaced(
    made: tuple[str, list[dict[str, float]], list[str], list[float]],
) -> None:
    output, claims, tokens, logprobs = made
    unsure = review_text.unsure(output, tokens, logprobs)
    assert unsure is not None or not output
    at = 0
    for leaf in leaves(review_text.weave(output, claims, unsure or ())):
        assert leaf.at == at
        assert leaf.length > 0
        if not leaf.is_hidden:
            assert leaf.shown == output[leaf.at : leaf.at + leaf.length]
        at += leaf.length
    assert at == len(output)


@given(outputs())
def test_a_character_is_underlined_exactly_when_its_token_was_unlikely(
    made: tuple[str, list[dict[str, float]], list[str], list[float]],
) -> None:
    output, claims, tokens, logprobs = made
    expected = [logprob for token, logprob in zip(tokens, logprobs, strict=True) for _ in token]
    woven = leaves(review_text.weave(output, claims, review_text.unsure(output, tokens, logprobs) or ()))
    kinds = [leaf.unsure for leaf in woven for _ in range(leaf.length)]
    assert kinds == ["p0" if math.exp(p) < 0.1 else "p1" if math.exp(p) < 0.5 else "" for p in expected]


def test_tokens_and_output_may_differ_by_what_a_server_trims() -> None:
    trimmed = review_text.unsure("red cat", [" red", " cat", "\n"], [-3.0, -3.0, -3.0])
    assert trimmed is not None
    assert [(one.start, one.end) for one in trimmed] == [(0, 3), (3, 7)]
    padded = review_text.unsure("<b>red cat", ["red", " cat"], [-3.0, 0.0])
    assert padded is not None
    assert [(one.start, one.end) for one in padded] == [(3, 6)]


def test_tokens_that_do_not_spell_the_output_are_not_placed_in_it() -> None:
    assert review_text.unsure("red cat", ["red", " dog"], [-3.0, -3.0]) is None
    assert review_text.unsure("red cat", None, None) is None


def test_underlines_end_at_their_limit_so_that_a_browser_keeps_up() -> None:
    tokens = ["a "] * 5000
    found = review_text.unsure("a " * 5000, tokens, [-3.0] * 5000)
    assert found is not None
    assert len(found) == review_text.UNDERLINED


drafts = st.builds(
    Draft,
    verdict=st.sampled_from(["", *review_form.VERDICTS]),
    error_types=st.sampled_from([(), ("object",), ("object", "text")]),
    correction=st.none() | texts.filter(bool),
    note=texts,
    spans=st.lists(
        st.builds(Span, st.integers(0, 9), st.integers(0, 9), st.sampled_from(["", "text"])), max_size=3
    ).map(tuple),
    choice=st.sampled_from(["", *review_form.SKIP_REASONS]),
    reason=texts,
)


@given(drafts)
def test_a_draft_comes_back_from_the_sign_in_page_as_it_went(draft: Draft) -> None:
    assert review_form.draft(review_form.packed(draft)) == draft
