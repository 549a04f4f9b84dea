"""A short answer and its question become one statement; what is said not to be there is its denial."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmerwatch_worker import claims, statements
from cmerwatch_worker.statements import Statement


@pytest.mark.parametrize(
    "prompt, answer, expected",
    [
        ("Is there a dog in the image?", "Yes", "There is a dog in the image."),
        ("Are there any people?", "yes.", "There are people."),
        ("Does the image contain a cat?", "Yes!", "There is a cat."),
        ("Is a cat visible in the picture?", "yes", "There is a cat."),
        ("Can you see a dog?", "Yes, there is", "There is a dog."),
        ("Is this a dog?", "yes", "This is a dog."),
        ("Is the car red?", "Yes", "The car is red."),
        ("Is the old man wearing a hat?", "Yes", "The old man is wearing a hat."),
        ("Is the car red or blue?", "blue", "The car is blue."),
        ("Is it raining?", "Yes", "It is raining."),
        ("How many dogs are there?", "3", "There are 3 dogs."),
        ("How many people are in the picture?", "one", "There is one person."),
        ("How many cups are on the table?", "2", "There are 2 cups on the table."),
        ("Please answer: how many dogs do you see?", "Two.", "There are two dogs."),
        ("Count the objects.", "3", "There are 3 objects."),
        ("What is the number of boxes in the image?", "1", "There is 1 box."),
        ("What colour is the car?", "Red.", "The car is red."),
        ("What color are the shoes of the man?", "dark blue", "The shoes of the man are dark blue."),
        ("What is the color of the sky?", "blue", "The sky is blue."),
        ("Where is the cup?", "on the table", "The cup is on the table."),
        ("Where is the cup located in the image?", "Left", "The cup is on the left."),
        ("What animal is on the table?", "a cat", "A cat is on the table."),
        ("Which animal is this?", "a cat", "The animal is a cat."),
        ("What is the man holding?", "an umbrella", "The man is holding an umbrella."),
        ("What is the man doing?", "running", "The man is running."),
        ("What is on the table?", "a cup", "There is a cup on the table."),
        ("Who is holding the umbrella?", "a woman", "A woman is holding the umbrella."),
        ("What does the sign say?", "STOP", 'The sign says "STOP".'),
        ("What does the sign say?", "No", 'The sign says "No".'),
        ("What is written on the bus?", "42", 'The bus says "42".'),
        ("Read the text.", '"EXIT"', 'The text says "EXIT".'),
        ("Is there a cat?\nAnswer the question using a single word or phrase.", "Yes", "There is a cat."),
        ("You are careful. What colour is the car? Answer briefly.", "red", "The car is red."),
    ],
)
def test_a_short_answer_is_put_together_with_its_question(prompt: str, answer: str, expected: str) -> None:
    assert statements.compose(prompt, answer) == Statement(expected)


@pytest.mark.parametrize(
    "prompt, answer, expected",
    [
        ("Is there a dog in the image?", "No.", "There is a dog in the image."),
        ("Are there any people?", "no", "There are people."),
        ("Is a cat in the picture?", "No", "There is a cat."),
        ("Is this a dog?", "no", "This is a dog."),
        ("How many red circles are there?", "0", "There are red circles."),
        ("How many dogs do you see?", "None", "There are dogs."),
    ],
)
def test_a_no_denies_the_statement(prompt: str, answer: str, expected: str) -> None:
    assert statements.compose(prompt, answer) == Statement(expected, negated=True)


@pytest.mark.parametrize(
    "prompt, answer", [("Is the car red?", "no"), ("Is the car red or blue?", "No"), ("Does he wear a hat?", "no")]
)
def test_a_denied_detail_has_no_statement_because_the_thing_itself_is_there(prompt: str, answer: str) -> None:
    with pytest.raises(statements.DeniedDetail):
        statements.compose(prompt, answer)


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("", "3"),
        ("Describe the scene.", "3"),
        ("What is this?", "A red circle."),
        ("What is in the image?", "a cup"),
        ("How many dogs are there?", "There are three dogs."),
        ("What colour is the car?", "The car is red."),
        ("What colour is the car?", "yes"),
        ("Is there a dog?", "A dog is on the sofa beside a cat, and it sleeps."),
        ("Is there a dog?", "yes\nno"),
    ],
)
def test_what_stands_alone_or_fits_no_template_is_left_as_it_is(prompt: str, answer: str) -> None:
    assert statements.compose(prompt, answer) is None


@pytest.mark.parametrize(
    "sentence, denied",
    [
        ("There is no dog.", "There is a dog."),
        ("No, there is no dog.", "There is a dog."),
        ("There are no dogs in the picture.", "There are dogs in the picture."),
        ("There isn't any snow on the road.", "There is a snow on the road."),
        ("I can't see any dogs.", "There are dogs."),
        ("No dogs here.", "There are dogs."),
        ("No cars are visible.", "There are cars."),
        ("The image does not contain a cat.", "There is a cat."),
    ],
)
def test_a_sentence_that_says_what_is_not_there_denies_it(sentence: str, denied: str) -> None:
    assert statements.denied(sentence) == Statement(denied, negated=True)


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no dog, but a cat.",
        "There is no dog on the mat that lies here.",
        "No parking sign.",
        "A sign says no parking.",
        "The car is not red.",
        "There is a dog.",
    ],
)
def test_a_sentence_that_says_more_is_taken_as_it_stands(sentence: str) -> None:
    assert statements.denied(sentence) is None


@pytest.mark.parametrize(
    "prompt, taken",
    [
        ("What colour is the car?", "the car"),
        ("Where is the cup located in the image?", "the cup"),
        ("What does the sign say?", "the sign"),
        ("Describe the red car in detail.", "the red car in detail"),
        ("Which animal is on the table?", "which animal is on the table"),
        ("What is this?", None),
        ("Describe this image in detail.", None),
        ("Is there a dog?", None),
        ("How many dogs are there?", None),
        ("Count the objects.", None),
        ("这是什么颜色？", None),
        ("", None),
    ],
)
def test_a_prompt_may_take_something_for_granted(prompt: str, taken: str | None) -> None:
    assert statements.presupposed(prompt) == taken


texts = st.text(st.one_of(st.sampled_from(list(" .,!?:'\"\n")), st.characters(exclude_categories=("Cs",))), max_size=80)
questions = st.builds(
    lambda start, rest: f"{start} {rest}?",
    st.sampled_from(["Is there", "How many", "What colour is", "Where is", "Which", "Is the", "What does", "Does", ""]),
    texts,
)


@given(st.one_of(questions, texts), st.one_of(st.sampled_from(["yes", "no", "3", "0", "red", "on it"]), texts))
def test_any_prompt_and_answer_give_a_sentence_or_nothing(prompt: str, answer: str) -> None:
    try:
        made = statements.compose(prompt, answer)
    except statements.DeniedDetail:
        return
    assert made is None or (made.text.endswith(".") and len(made.text) > 3)
    statements.denied(answer)
    statements.presupposed(prompt)


def words(text: str) -> int:
    return len(text.split()) + 2


def test_a_composed_answer_keeps_its_own_place_in_the_output() -> None:
    [claim] = claims.split("  **3**\n", 77, words, prompt="How many dogs are there?").claims
    assert (claim.start, claim.end, claim.text) == (4, 5, "3")
    assert (claim.said, claim.negated) == ("There are 3 dogs.", False)


def test_an_answer_to_a_question_longer_than_the_context_stays_without_statement() -> None:
    asked = "How many dogs are on the table beside the old house?"
    assert claims.split("3", 5, words, prompt=asked).reason == claims.BARE_ANSWER


def test_a_denied_detail_is_its_own_reason() -> None:
    assert claims.split("No.", 77, words, prompt="Is the car red?") == claims.Split((), claims.DENIED_DETAIL)


def test_a_denial_is_checked_as_what_it_denies() -> None:
    first, second = claims.split("A cat sleeps. There is no dog.", 77, words).claims
    assert (first.said, first.negated) == ("A cat sleeps.", False)
    assert (second.text, second.said, second.negated) == ("There is no dog.", "There is a dog.", True)
