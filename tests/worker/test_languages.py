"""A text the checker cannot read is named as such: it has a cosine like any other, and that would say nothing."""

from __future__ import annotations

import functools

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch_worker import checkers, claims, languages
from cmerwatch_worker.checkers.tokenizers import Bpe, Tokenizer

GERMAN = "Das Bild zeigt einen roten Kreis auf weißem Grund. Links daneben steht ein kleines blaues Quadrat."
SPANISH = "La imagen muestra un círculo rojo sobre fondo blanco. A la izquierda hay un cuadrado azul pequeño."
FRENCH = "Un chat noir dort sur le canape. Il y a deux chiens dehors."
JAPANESE = "白い背景に赤い丸が描かれています。左側に小さな青い四角があります。"


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    if name == "clip":
        return Bpe(list(open_clip.SimpleTokenizer().bpe_ranks), 77)
    return checkers.load("demo")._tokenizer  # type: ignore[attr-defined,no-any-return]


def split(name: str, output: str, prompt: str = "") -> claims.Split:
    reads = tokenizer(name)
    return claims.split(
        output, reads.context_length, lambda text: len(reads.encode(text)), reads.can_read, prompt=prompt
    )


BOTH = pytest.mark.parametrize("name", ["demo", "clip"])


@BOTH
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (GERMAN, "foreign_language"),
        (SPANISH, "foreign_language"),
        (FRENCH, "foreign_language"),
        ("Zdjęcie jest ciemne i nie widać psa.", "foreign_language"),
        (JAPANESE, "unreadable_script"),
        ("На картинке красный круг.", "unreadable_script"),
        ("دائرة حمراء على خلفية بيضاء.", "unreadable_script"),
        ("一个红色的圆圈。", "unreadable_script"),
    ],
)
def test_a_long_answer_in_another_language_is_not_scorable_and_says_why(name: str, output: str, reason: str) -> None:
    assert split(name, output) == claims.Split((), reason)


@BOTH
@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        ("Welche Farbe hat der Kreis?", "Rot.", "foreign_language"),
        ("Was ist das?", "Ein Hund", "foreign_language"),
        ("Ist da ein Hund?", "Nein.", "answer_without_statement"),
        ("Wie viele Kreise gibt es?", "3", "answer_without_statement"),
        ("¿De qué color es el círculo?", "Rojo", "foreign_language"),
        ("¿Hay un perro?", "Sí.", "answer_without_statement"),
        ("何色ですか?", "赤", "unreadable_script"),
        ("犬はいますか?", "はい", "answer_without_statement"),
        ("いくつありますか?", "3つ", "unreadable_script"),
    ],
)
def test_a_short_answer_to_a_question_in_another_language_has_a_named_reason(
    name: str, prompt: str, output: str, reason: str
) -> None:
    assert split(name, output, prompt) == claims.Split((), reason)


@BOTH
@pytest.mark.parametrize(
    ("prompt", "output"),
    [
        ("What colour is the circle?", "Red"),
        ("", "A red circle."),
        ("", "Red circle"),
        ("Describe the scene.", "A blue square, two red circles."),
        ("Was ist das?", "A red circle on the left."),
        ("", 'The sign reads "Das Haus ist nicht zu verkaufen".'),
        ("", "A poster of Rio de Janeiro and Los Angeles."),
        ("", "A café with a naïve façade."),
    ],
)
def test_english_is_read_whatever_it_names_or_quotes(name: str, prompt: str, output: str) -> None:
    found = split(name, output, prompt)
    assert found.reason is None
    assert found.left_out == 0


@BOTH
def test_of_a_text_in_two_languages_the_english_part_is_checked_and_the_rest_is_counted(name: str) -> None:
    found = split(name, "A red circle. " + GERMAN)
    assert [claim.text for claim in found.claims] == ["A red circle."]
    assert found.left_out == 2


@pytest.mark.parametrize("text", ["Rio de Janeiro", "Los Angeles", "La La Land", "Stop", "Oslo", "", "7", "🙂"])
def test_in_doubt_it_is_not_foreign(text: str) -> None:
    assert not languages.is_foreign(text)


@given(st.text(max_size=300))
def test_any_text_is_told_apart_without_an_error(text: str) -> None:
    assert not (languages.is_foreign(text) and languages.is_surely_english(text))
    languages.is_latin(text)


ENGLISH = ("a", "red", "circle", "is", "on", "the", "left", "of", "two", "blue", "and", "it", "was", "not", "there")


@given(st.lists(st.sampled_from(ENGLISH)))
def test_english_words_in_any_order_are_never_foreign(words: list[str]) -> None:
    assert not languages.is_foreign(" ".join(words))
