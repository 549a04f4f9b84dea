"""The drawn world: facts decide what is true, and the pixels show the facts."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toy_vlm import captions, foreign, scenes, training_data
from toy_vlm.captions import CLAIMED_EDITS, PROMPTS
from toy_vlm.grammar import Claim, Group, parse

seeds = st.integers(0, 2**32)
kinds = st.sampled_from(scenes.KINDS)


@settings(max_examples=200, deadline=None)
@given(seeds, kinds)
def test_every_caption_is_true_and_every_edit_is_false(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scene = scenes.sample(rng, kind)
    said = captions.captions(scene, rng)
    assert said
    assert all(captions.is_true(scene, text) for text in said)
    edits = captions.edits(scene, rng)
    assert set(CLAIMED_EDITS) & {name for name, _ in edits} or (scene.word or "").isdigit()
    assert not any(captions.is_true(scene, text) for _, text in edits)


@settings(max_examples=200, deadline=None)
@given(seeds, kinds)
def test_every_sentence_reads_back_as_its_claim(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    for claim in captions.claims(scenes.sample(rng, kind), rng):
        assert parse(captions.say(claim, rng)) == [claim]


@settings(max_examples=100, deadline=None)
@given(seeds, kinds)
def test_the_right_answer_to_every_prompt_is_true_and_always_the_same(seed: int, kind: str) -> None:
    scene = scenes.sample(random.Random(seed), kind)
    for prompt_type in PROMPTS:
        answer = captions.answer(scene, prompt_type)
        assert captions.is_true(scene, answer)
        assert answer == captions.answer(scene, prompt_type)


@settings(max_examples=100, deadline=None)
@given(seeds, kinds)
def test_truth_by_table_is_truth_by_facts(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scene, other = scenes.sample(rng, kind), scenes.sample(rng)
    said = captions.claims(scene, rng) + captions.claims(other, rng)
    codes = np.stack([training_data.claim_code(claim) for claim in said])
    holds, unsure = training_data.truth(training_data.scene_code(scene)[None], codes)
    for claim, held, open_question in zip(said, holds[0], unsure[0], strict=True):
        assert open_question or held == captions.is_true(scene, claim)


def test_a_scene_is_drawn_the_same_every_time_and_at_any_size() -> None:
    scene = scenes.sample(random.Random(4))
    assert scenes.render(scene).size == scene.canvas
    assert scenes.render(scene).tobytes() == scenes.render(scene).tobytes()
    assert max(scenes.render(scene, 320).size) == 320


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_single_thing_shows_its_colour_at_its_place(seed: int) -> None:
    scene = scenes.sample(random.Random(seed), "single")
    (thing,) = scene.things
    image = np.asarray(scenes.render(scene, 256), np.float64)
    height, width = image.shape[:2]
    half = thing.size * min(width, height) / 2
    box = image[
        max(0, int(thing.y * height - half - 3)) : int(thing.y * height + half + 3),
        max(0, int(thing.x * width - half - 3)) : int(thing.x * width + half + 3),
    ]
    # Noise, blur and compression move single pixels; a tenth of the thing's box keeps its colour through all of them.
    near = np.linalg.norm(box - thing.rgb, axis=2) < 60
    assert near.mean() > 0.05


def test_things_of_one_picture_never_touch_and_stay_inside() -> None:
    rng = random.Random(8)
    for _ in range(300):
        things = scenes.sample(rng, rng.choice(("pair", "count"))).things
        for i, a in enumerate(things):
            assert all(a.size / 2 <= c <= 1 - a.size / 2 for c in (a.x, a.y))
            for b in things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2


def test_a_tenth_of_all_scenes_is_held_out_and_sampling_keeps_to_its_side() -> None:
    rng = random.Random(2)
    share = np.mean([scenes.sample(rng).held_out for _ in range(3000)])
    assert share == pytest.approx(0.1, abs=0.02)
    assert all(scenes.sample_where(rng, held_out=True).held_out for _ in range(20))
    assert not any(scenes.sample_where(rng, held_out=False).held_out for _ in range(20))


def test_every_colour_and_shape_is_drawn_on_both_sides_of_the_split() -> None:
    rng = random.Random(3)
    for held_out in (True, False):
        drawn = Counter(
            (thing.colour, thing.shape)
            for _ in range(700)
            for thing in scenes.sample_where(rng, held_out=held_out, kind="single").things
        )
        assert len(drawn) == len(scenes.COLOURS) * len(scenes.SHAPES)


@pytest.mark.parametrize(
    "text, claim",
    [
        ("THREE BLUE SQUARES", Claim((Group(3, "blue", "square"),))),
        ("There is 1 sign.", Claim(sign="")),
        ('a sign that says "42"', Claim(sign="42")),
        ("The red bar is the tallest.", Claim(tallest="red")),
        ("Two objects.", Claim((Group(2),))),
        (
            "A star to the left of an orange cross.",
            Claim((Group(None, None, "star"), Group(None, "orange", "cross")), "left of"),
        ),
    ],
)
def test_sentences_are_read_by_their_words(text: str, claim: Claim) -> None:
    assert parse(text) == [claim]


def test_a_sentence_of_another_world_is_refused() -> None:
    with pytest.raises(ValueError, match="not a sentence about drawn scenes"):
        parse("A dog sleeps on the sofa.")


def test_a_text_is_true_only_if_all_its_sentences_are() -> None:
    scene = scenes.sample(random.Random(0), "bars")
    tallest, number = captions.extreme(scene, "tallest"), len(scene.bars)
    assert captions.is_true(scene, f"A chart of {number} bars. The tallest bar is {tallest}.")
    assert not captions.is_true(scene, f"A chart of {number + 1} bars. The tallest bar is {tallest}.")


def test_the_vocabulary_knows_every_word_of_every_answer() -> None:
    tokenizer = training_data.build_tokenizer()
    rng = random.Random(6)
    for _ in range(300):
        scene = scenes.sample(rng)
        for prompt_type in PROMPTS:
            answer = captions.answer(scene, prompt_type)
            assert tokenizer.can_read(answer)
            words = [word for word in answer.replace(".", " ").split() if not word.isdigit()]
            assert len(tokenizer.encode(" ".join(words))) == len(words) + 2
            assert len(tokenizer.encode(answer)) <= training_data.CONTEXT


def test_plain_shapes_of_another_program_come_with_one_true_and_one_false_sentence() -> None:
    rng = random.Random(1)
    for _ in range(60):
        image, true, false = foreign.pair(rng)
        assert min(image.size) >= 32
        assert max(image.size) <= 1024
        assert len(parse(true)) == len(parse(false)) == 1
        assert parse(true) != parse(false)
