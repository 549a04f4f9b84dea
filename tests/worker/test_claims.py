"""Outputs become claims: nothing visual is lost, nothing is over the context, every span is exact."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch_worker import claims

LIMIT = 8


def words(text: str) -> int:
    """A tokenizer of a kind: words, long ones by four letters, and two marks."""
    return 2 + sum(-(-len(word) // 4) for word in re.findall(r"\w+|[^\w\s]", text))


def said(output: str, limit: int = 77) -> list[str]:
    return [claim.text for claim in claims.split(output, limit, words).claims]


def reason(output: str) -> str | None:
    return claims.split(output, 77, words).reason


@pytest.mark.parametrize(
    "output, expected",
    [
        ("A red circle. A blue square!", ["A red circle.", "A blue square!"]),
        ("Is it red? It is.", ["Is it red?", "It is."]),
        ("One line\nAnother line", ["One line", "Another line"]),
        ("- a cat\n* a dog\n1. a bird\n2) a fish\n• a cow", ["a cat", "a dog", "a bird", "a fish", "a cow"]),
        ("Seen: • a cat • a dog", ["Seen:", "a cat", "a dog"]),
        ("The tower is 3.5 m high. It leans.", ["The tower is 3.5 m high.", "It leans."]),
        ("Animals, e.g. a red dog. Dr. Lee and Mrs. Roe.", ["Animals, e.g. a red dog.", "Dr. Lee and Mrs. Roe."]),
        (
            "It opens at 5 p.m. every day. Cars, bikes, etc. are there.",
            ["It opens at 5 p.m. every day.", "Cars, bikes, etc. are there."],
        ),
        ("Cars, bikes, etc. The road is wet.", ["Cars, bikes, etc.", "The road is wet."]),
        ("A red… and blue circle. Wait... There is more.", ["A red… and blue circle.", "Wait...", "There is more."]),
        ("红色的圆。蓝色的方块！是吗？", ["红色的圆。", "蓝色的方块！", "是吗？"]),
        ("赤い円｡青い四角", ["赤い円｡", "青い四角"]),
        ("लाल वृत्त। नीला वर्ग॥", ["लाल वृत्त।", "नीला वर्ग॥"]),
        ("هل هي حمراء؟ نعم هي حمراء.", ["هل هي حمراء؟", "نعم هي حمراء."]),
        ('He said "red." Then he left.', ['He said "red."', "Then he left."]),
        ("## Scene\n**A red circle**\n> a quote", ["Scene", "A red circle", "a quote"]),
        ("photo.png shows example.com signs.", ["photo.png shows example.com signs."]),
        ("🐱 and a dog", ["🐱 and a dog"]),
    ],
)
def test_an_output_is_cut_at_its_sentences_and_bullets(output: str, expected: list[str]) -> None:
    assert said(output) == expected


@pytest.mark.parametrize("output", ["3", " 3. ", "1,024", "42 %", "-7", "１２", "٣", "Yes", "yes.", "**No**", '"No!"'])
def test_digits_yes_or_no_alone_are_no_statement(output: str) -> None:
    assert claims.split(output, 77, words) == claims.Split((), "answer_without_statement")


@pytest.mark.parametrize(
    "output",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry.",
        "I cannot see the image.",
        "As an AI language model, I cannot identify people.",
        "Unfortunately, I am unable to describe this picture. Let me know if you need anything else!",
        "I can't assist with that request.",
        "No image was provided.",
    ],
)
def test_a_refusal_is_its_own_class(output: str) -> None:
    assert claims.split(output, 77, words) == claims.Split((), "refusal")


@pytest.mark.parametrize(
    "output", ["Sure!", "Of course. Here is a description of the image:", "...", "- \n* ", "Maybe."]
)
def test_talk_about_the_talk_has_nothing_to_check(output: str) -> None:
    assert reason(output) == "nothing_visual"


@pytest.mark.parametrize(
    "output, kept",
    [
        ("Sure! A red circle.", ["A red circle."]),
        ("Yes. There is a dog.", ["There is a dog."]),
        ("Yes, a dog.", ["Yes, a dog."]),
        ("Sorry, the circle is red.", ["Sorry, the circle is red."]),
        ("I can't name people, but the man wears a red hat.", ["I can't name people, but the man wears a red hat."]),
        ("I can't see any dogs.", ["I can't see any dogs."]),
        ("Here is a red circle.", ["Here is a red circle."]),
        ("3 dogs", ["3 dogs"]),
        ("No dogs here.", ["No dogs here."]),
    ],
)
def test_what_can_be_checked_is_kept_beside_talk(output: str, kept: list[str]) -> None:
    assert said(output) == kept


def test_a_script_the_tokenizer_does_not_know_is_unreadable() -> None:
    def is_ascii(text: str) -> bool:
        return text.isascii()

    assert claims.split("红色的圆。", 77, words, is_ascii).reason == "unreadable_script"
    assert [c.text for c in claims.split("红色的圆。 A circle.", 77, words, is_ascii).claims] == ["A circle."]


def test_an_overlong_sentence_is_cut_at_commas_first() -> None:
    assert said("a red circle on top, a blue square below, and far left one star", 10) == [
        "a red circle on top,",
        "a blue square below,",
        "and far left one star",
    ]


def test_an_overlong_clause_is_cut_at_words_and_an_overlong_word_at_letters() -> None:
    assert said("one two six ten red dog cat", LIMIT) == ["one two six ten red dog", "cat"]
    assert "".join(said("x" * 100, LIMIT)) == "x" * 100


texts = st.text(
    st.one_of(
        st.sampled_from(list(" .,!?;:…。！？।\n-*•\"'()[]0123456789")), st.characters(exclude_categories=("Cs",))
    ),
    max_size=300,
)
sentences = st.lists(
    st.sampled_from(
        [
            "A red circle.",
            "- a blue square\n",
            "Sure!",
            "Yes.",
            "3.5 m high,",
            "e.g. a dog",
            "红色的圆。",
            "x" * 50,
            "1. ",
        ]
    ),
    max_size=12,
).map(" ".join)


@pytest.mark.parametrize("answer", ["是", "はい。", "いいえ", "Oui.", "nein", "да", "نعم", "नहीं", "아니요", "ไม่"])
def test_yes_or_no_in_other_languages_is_no_statement_either(answer: str) -> None:
    assert claims.split(answer, 77, words) == claims.Split((), "answer_without_statement")


@pytest.mark.parametrize(
    "output",
    [
        "x, " * 66_666,
        "A red circle. " * 14_000,
        "word " * 40_000,
        "红" * 200_000,
        "A red circle is here and goes on, " * 5_800,
        "1. a\n" * 40_000,
        "*" * 200_000,
        "no " * 66_666,
        "sorry, but " * 18_000,
    ],
    ids=range(9),
)
def test_two_hundred_thousand_characters_come_to_few_claims_and_the_rest_is_counted(output: str) -> None:
    found = claims.split(output, 77, words)
    assert len(found.claims) <= claims.MAX_CLAIMS
    assert found.reason is not None or found.left_out > 0 or len(output) < claims.LONG * claims.MAX_CLAIMS
    assert all(words(claim.text) <= 77 and output[claim.start : claim.end] == claim.text for claim in found.claims)


def test_of_too_many_claims_the_first_the_last_and_an_even_share_are_checked() -> None:
    output = " ".join(f"Circle {i}." for i in range(1000))
    found = claims.split(output, 77, words)
    assert (found.claims[0].text, found.claims[-1].text) == ("Circle 0.", "Circle 999.")
    assert len(found.claims) + found.left_out == 1000
    gaps = [int(b.text[7:-1]) - int(a.text[7:-1]) for a, b in zip(found.claims, found.claims[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1


@given(st.one_of(texts, sentences), st.integers(4, 20))
def test_spans_reproduce_the_text_in_order_without_overlap(output: str, limit: int) -> None:
    end = 0
    for claim in claims.split(output, limit, words).claims:
        assert output[claim.start : claim.end] == claim.text
        assert claim.start >= end
        end = claim.end


@given(st.one_of(texts, sentences), st.integers(4, 20))
def test_no_claim_is_over_the_context(output: str, limit: int) -> None:
    assert all(words(claim.text) <= limit for claim in claims.split(output, limit, words).claims)


@given(st.one_of(texts, sentences))
def test_there_are_claims_or_a_reason_never_both(output: str) -> None:
    found = claims.split(output, 77, words)
    assert bool(found.claims) == (found.reason is None)


@given(
    st.lists(st.sampled_from(["circle", "square", "star", "dog", "cat", "sign"]), min_size=1, max_size=40), st.data()
)
def test_no_visual_word_is_lost_however_the_output_is_written(nouns: list[str], data: st.DataObject) -> None:
    joints = st.sampled_from([". A ", ", a ", "\n- a ", "! ", "; ", " and a ", "… ", ".\n1. A ", " (a ", '." "'])
    output = "Sure! Here is the list: A " + nouns[0]
    for noun in nouns[1:]:
        output += data.draw(joints) + noun
    kept = " ".join(claim.text for claim in claims.split(output, LIMIT, words).claims)
    assert re.findall("circle|square|star|dog|cat|sign", kept) == nouns


@given(st.text(st.characters(categories=("Ll", "Lu", "Lo", "Nd")), min_size=1, max_size=60))
def test_every_letter_of_an_unknown_text_is_kept(word: str) -> None:
    found = claims.split(f"{word} q", LIMIT, words)
    assert "".join(c.text for c in found.claims).replace(" ", "") == f"{word}q".replace(" ", "")


@pytest.mark.parametrize(
    "sentence", ["สวัสดีวงกลมสีแดงอยู่บนพื้นสีขาว" * 4, "लालवृत्तसफ़ेदपृष्ठभूमिपरहै" * 4, "👩‍👩‍👧‍👦" * 20, "e\u0301" * 60],
    ids=["thai", "devanagari", "emoji", "combining"],
)  # fmt: skip
def test_a_script_that_does_not_space_its_words_is_cut_between_letters_only(sentence: str) -> None:
    found = claims.split(sentence, 10, lambda text: len(text) + 2).claims
    assert "".join(claim.text for claim in found) == sentence
    assert len(found) > 5
    for claim in found[1:]:
        first = sentence[claim.start]
        assert unicodedata.category(first)[0] != "M"
        assert "\u200d" not in sentence[claim.start - 1 : claim.start + 1]


@pytest.mark.parametrize(
    "output, count",
    [
        ("红色的圆在左边，蓝色的方块在右边。上面有一颗星！", 2),
        ("دائرة حمراء على اليسار. مربع أزرق على اليمين؟ نجمة في الأعلى۔", 3),
        ("बाईं ओर लाल वृत्त है। दाईं ओर नीला वर्ग है॥ ऊपर तारा है", 3),
        ("赤い円です。青い四角です。", 2),
        ("왼쪽에 빨간 원이 있다. 오른쪽에 파란 사각형이 있다.", 2),
        ("Красный круг слева. Синий квадрат справа!", 2),
        ("Κόκκινος κύκλος. Μπλε τετράγωνο.", 2),
        ("עיגול אדום משמאל. ריבוע כחול מימין.", 2),
        ("ลูกบอลสีแดงอยู่ทางซ้าย", 1),
    ],
)
def test_sentences_of_any_script_have_their_exact_places(output: str, count: int) -> None:
    found = claims.split(output, 77, words).claims
    assert len(found) == count
    assert [output[claim.start : claim.end] for claim in found] == [claim.text for claim in found]
