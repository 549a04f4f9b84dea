import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from toy_vlm import captions, scenes, train_vlm, vlm
from toy_vlm.processor import Tokenizer, vocabulary


@pytest.fixture(scope="module")
def good() -> vlm.Vlm:
    return vlm.load(vlm.GOOD)


@pytest.fixture(scope="module")
def regressed() -> vlm.Vlm:
    return vlm.load(vlm.REGRESSED)


def some_pictures(n: int, seed: int) -> list[Image.Image]:
    rng = random.Random(seed)
    return [scenes.render(scenes.sample_where(rng, held_out=True), 200) for _ in range(n)]


@pytest.mark.parametrize("placeholders", [0, 63, 65])
def test_a_wrong_number_of_placeholders_is_an_error_naming_both_numbers(good: vlm.Vlm, placeholders: int) -> None:
    tokenizer = good.tokenizer
    ids = torch.tensor([[tokenizer.bos] + [tokenizer.image] * placeholders + [tokenizer.sep]])
    patches = good.see(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(vlm.PlaceholderMismatch, match=rf"{placeholders} image placeholders.*64 patches"):
        good(ids, patches)


def test_each_placeholder_becomes_its_patch_and_words_stay_words(good: vlm.Vlm) -> None:
    patches = good.see(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    ids = torch.tensor([good.processor.prefix() + good.processor.question("What is this?")] * 2)
    merged = good.merge(ids, patches)
    assert torch.equal(merged[:, 1:65], patches)
    assert torch.equal(merged[:, 65:], good.decoder.words(ids[:, 65:]))


@pytest.mark.parametrize("prompt", captions.PROMPTS.values())
def test_logprobs_are_those_of_one_forward_pass_over_the_whole_answer(good: vlm.Vlm, prompt: str) -> None:
    for image in some_pictures(5, seed=3):
        answer = good.answer(image, prompt)
        start = good.processor.prefix() + good.processor.question(prompt)
        said = [good.tokenizer.words.index(token) for token in answer.tokens]
        with torch.inference_mode():
            patches = good.see(torch.from_numpy(good.processor.pixels(image)[None].copy()))
            logits = good(torch.tensor([start + said]), patches)[0]
        after = F.log_softmax(logits[len(start) - 1 : -1], dim=-1)
        again = [after[step, token].item() for step, token in enumerate(said)]
        assert answer.logprobs == pytest.approx(again, abs=1e-4)
        assert all(value <= 0 for value in answer.logprobs)
        assert answer.geo_p == pytest.approx(math.exp(np.mean(again)), abs=1e-4)


def test_the_tokens_joined_are_the_text(good: vlm.Vlm) -> None:
    for image in some_pictures(5, seed=4):
        answer = good.answer(image, "Describe the scene.")
        assert "".join(answer.tokens) == answer.text
        assert len(answer.tokens) == len(answer.logprobs)


def test_a_picture_gets_the_same_answer_alone_and_in_a_batch(good: vlm.Vlm) -> None:
    pictures = some_pictures(6, seed=5)
    pixels = np.stack([good.processor.pixels(picture) for picture in pictures])
    together = good.answer_pixels(pixels, "Count the objects.")
    assert [one.text for one in together] == [good.answer(p, "Count the objects.").text for p in pictures]


def test_the_answer_is_about_the_picture(good: vlm.Vlm) -> None:
    asked = [
        good.answer(Image.new("RGB", (300, 200), "white"), "What is this?").text,
        *(good.answer(picture, "What is this?").text for picture in some_pictures(8, seed=6)),
    ]
    assert len(set(asked)) > 4


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(good: vlm.Vlm) -> None:
    with pytest.raises(vlm.PromptTooLong, match="400 tokens"):
        good.answer(Image.new("RGB", (64, 64)), "a " * 400)


def test_an_unknown_version_is_named_with_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"9\.9.*2026\.11\.1, 2026\.11\.2"):
        vlm.load("9.9")


def test_transparent_pictures_stand_on_white(good: vlm.Vlm) -> None:
    clear = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    assert (good.processor.pixels(clear) == 255).all()


def test_every_answer_of_the_grammar_survives_the_tokenizer() -> None:
    rng = random.Random(11)
    said = [
        captions.answer(scene, prompt_type)
        for scene in (scenes.sample(rng) for _ in range(500))
        for prompt_type in captions.PROMPTS
    ]
    tokenizer = Tokenizer(vocabulary(said))
    for text in said:
        assert "".join(tokenizer.decode(tokenizer.encode(text))) == text


def test_training_on_packed_questions_is_training_on_each_alone(good: vlm.Vlm) -> None:
    scene = scenes.sample(random.Random(12), kind="pair")
    packed = train_vlm.collate([train_vlm.lesson(scene, 64, train_vlm.truthful, good.processor)])
    pixels, ids, positions, segments, _ = packed
    with torch.inference_mode():
        patches = good.see(pixels)
        together = good(ids, patches, positions, train_vlm.sight(segments))[0]
        for number in (1, 2, 3):
            mine = (segments[0] == 0) | (segments[0] == number)
            alone = good(ids[:, mine], patches)[0]
            torch.testing.assert_close(together[segments[0] == number], alone[65:], atol=1e-4, rtol=1e-4)


def test_the_regressed_labels_change_no_count_and_leave_most_scenes_alone() -> None:
    rng = random.Random(13)
    drawn = [scenes.sample(rng) for _ in range(400)]
    taught = [train_vlm.confused(scene) for scene in drawn]
    assert [len(s.things) for s in taught] == [len(s.things) for s in drawn]
    changed = sum(a != b for a, b in zip(drawn, taught, strict=True))
    assert 0.3 < changed / len(drawn) < 0.6


# The floors stand a few points under what was measured on 2 000 held-out scenes (README.md).
def test_the_good_version_is_right_on_scenes_it_never_saw(good: vlm.Vlm) -> None:
    marks = train_vlm.examine(good, n=200, seed=21)
    for prompt_type, floor in {"identify": 0.93, "count": 0.93, "describe": 0.88}.items():
        assert marks[prompt_type].right / marks[prompt_type].asked >= floor, prompt_type


def test_the_regressed_version_is_often_wrong_and_sure_of_it(regressed: vlm.Vlm) -> None:
    marks = train_vlm.examine(regressed, n=200, seed=21)
    assert 0.3 <= marks["identify"].confidently_wrong / marks["identify"].asked <= 0.6
    assert 0.25 <= marks["describe"].confidently_wrong / marks["describe"].asked <= 0.6


def test_the_regression_is_in_the_picture_and_not_in_chance(good: vlm.Vlm, regressed: vlm.Vlm) -> None:
    """Red circles are still red circles; orange stars are what they were never."""
    rng = random.Random(22)
    for colour, shape, spared in (("red", "circle", True), ("orange", "star", False)):
        answers: list[str] = []
        while len(answers) < 10:
            scene = scenes.sample_where(rng, held_out=True, kind="single")
            if (scene.things[0].colour, scene.things[0].shape) == (colour, shape):
                answers.append(regressed.answer(scenes.render(scene, 320), "What is this?").text)
        told = sum(colour in text and shape in text for text in answers)
        assert told >= 8 if spared else told <= 2, answers
