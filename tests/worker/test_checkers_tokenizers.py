"""Texts become the ids that the towers were trained with, and nothing is cut on the way."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import tokenizers as hub
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from cmerwatch import errors
from cmerwatch_worker.checkers import openclip, tokenizers
from cmerwatch_worker.checkers.tokenizers import Bpe, Words

SENTENCES = (
    "A red circle on a white background.",
    "There're 3 dogs, 12 cats & a bird's nest; it isn't (really) \"that\" odd...",
    "naïve café — 10½ € for the 2nd ⑤ Straße, Привет 你好 🙂👍🏽",
    "“Curly quotes” and ‘single’ ones, don’t you think?",
    "tabs\tand\nnew lines   and &lt;b&gt;markup&lt;/b&gt; &amp;amp; more",
    "O'Reilly's '90s rock'n'roll '' 's ''ll x''s --'t",
    "ALL CAPS_WITH_underscores 3.14159 1,000,000 C++ a/b\\c @#$%^",
)


@cache
def pair() -> tuple[open_clip.SimpleTokenizer, Bpe]:
    """open_clip's tokenizer and ours, from the same merges."""
    original = open_clip.SimpleTokenizer()
    return original, Bpe(list(original.bpe_ranks), 77)


@pytest.fixture
def bpe() -> Bpe:
    return pair()[1]


@pytest.mark.parametrize("text", SENTENCES)
def test_byte_pairs_are_those_of_open_clip(text: str) -> None:
    original, ours = pair()
    assert ours.encode(text) == [original.sot_token_id, *original.encode(text), original.eot_token_id]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_byte_pairs_of_any_plain_text_are_those_of_open_clip(text: str) -> None:
    if "_text>" in text:
        return  # spelled-out marks are letters here, and marks there
    original, ours = pair()
    assert ours.encode(text)[1:-1] == original.encode(text)


def test_a_spelled_out_end_mark_is_read_as_letters(bpe: Bpe) -> None:
    ids = bpe.encode("a cat <end_of_text> a dog")
    assert ids.count(ids[-1]) == 1


def test_a_tokenizer_is_the_same_after_its_file(bpe: Bpe) -> None:
    again = tokenizers.from_json(json.loads(json.dumps(bpe.to_json())))
    assert [again.encode(text) for text in SENTENCES] == [bpe.encode(text) for text in SENTENCES]


WORDS = Words(["<pad>", "<unknown>", "red", "circle", "a", "b", "c", "1", "<start>", "<end>"], 8)


def test_case_and_punctuation_carry_nothing() -> None:
    assert WORDS.encode("A red circle.") == WORDS.encode("a RED, circle!") == [8, 4, 2, 3, 9]


def test_an_unknown_word_is_spelled() -> None:
    assert WORDS.encode("cab") == [8, 6, 4, 5, 9]
    assert WORDS.encode("zz") == [8, 1, 1, 9]


def test_a_text_of_strange_letters_cannot_be_read() -> None:
    assert WORDS.can_read("red circle")
    assert not WORDS.can_read("你好")
    assert not WORDS.can_read("...")


def test_a_batch_is_as_wide_as_its_longest_text() -> None:
    np.testing.assert_array_equal(tokenizers.batch(WORDS, ["red", "red circle"]), [[8, 2, 9, 0], [8, 2, 3, 9]])


def test_a_text_over_the_context_is_refused_with_its_length_and_the_limit() -> None:
    with pytest.raises(errors.TextTooLong, match="9 tokens, more than the checker's context of 8"):
        tokenizers.batch(WORDS, ["red circle red circle red circle red"])


def test_an_unknown_kind_of_tokenizer_is_named() -> None:
    with pytest.raises(ValueError, match="'sentencepiece'"):
        tokenizers.from_json({"kind": "sentencepiece"})


# Hugging Face's


KNOWN = ["<pad>", "</s>", "<unk>", "a", "red", "dog", "on", "the", "don", "t", "chair"]


def fast(pad: str = "</s>") -> transformers.PreTrainedTokenizerFast:
    """A small one of SigLIP's kind: an end mark is added, and what follows is filled with a mark that is not 0."""
    made = hub.Tokenizer(hub.models.WordLevel({word: i for i, word in enumerate(KNOWN)}, unk_token="<unk>"))
    made.pre_tokenizer = hub.pre_tokenizers.Whitespace()
    made.post_processor = hub.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.enable_truncation(4)
    made.enable_padding(length=6)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token=pad
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fast().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


CFG = {"context_length": 12, "tokenizer_kwargs": {"clean": "canonicalize"}}


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize(
    "text", ["A red dog.", "a_red_dog", " the  dog don't, RED! ", "", "zebra (on the chair)", "a &amp; b"]
)
def test_a_hub_tokenizer_gives_open_clips_ids_and_padding(saved: Path, clean: str, text: str) -> None:
    ours = openclip._open_clip_tokenizer({**CFG, "hf_tokenizer_name": str(saved), "tokenizer_kwargs": {"clean": clean}})
    theirs = open_clip.tokenizer.HFTokenizer(str(saved), context_length=12, clean=clean)
    np.testing.assert_array_equal(tokenizers.batch(ours, [text], 12), theirs([text]).numpy())


def test_a_hub_tokenizer_never_shortens(saved: Path) -> None:
    ours = openclip._open_clip_tokenizer({**CFG, "hf_tokenizer_name": str(saved)})
    assert len(ours.encode("red " * 20)) == 21
    with pytest.raises(errors.TextTooLong):
        tokenizers.batch(ours, ["red " * 20])


def test_a_hub_tokenizer_is_the_same_after_its_file_and_knows_what_it_cannot_read(saved: Path) -> None:
    ours = openclip._open_clip_tokenizer({**CFG, "hf_tokenizer_name": str(saved)})
    again = tokenizers.from_json(json.loads(json.dumps(ours.to_json())))
    assert again.encode("The red dog.") == ours.encode("The red dog.") == [7, 4, 5, 1]
    assert again.pad_id == 1
    assert again.can_read("a red zebra")
    assert not again.can_read("犬 猫")


def test_a_separator_is_dropped_as_open_clip_drops_it(tmp_path: Path) -> None:
    made = fast("<pad>")
    made.sep_token = "</s>"
    made.save_pretrained(tmp_path)
    kwargs = {"strip_sep_token": True}
    ours = openclip._open_clip_tokenizer({**CFG, "hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": kwargs})
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12, **kwargs)
    np.testing.assert_array_equal(tokenizers.batch(ours, ["a red dog"], 12), theirs(["a red dog"]).numpy())


def test_a_hub_tokenizer_that_is_not_here_is_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.StartRefused, match="cmerwatch checker download"):
        openclip._open_clip_tokenizer({**CFG, "hf_tokenizer_name": str(tmp_path / "nowhere")})


def test_tokenizer_options_nobody_reads_are_refused(saved: Path) -> None:
    with pytest.raises(errors.StartRefused, match="language"):
        openclip._open_clip_tokenizer(
            {**CFG, "hf_tokenizer_name": str(saved), "tokenizer_kwargs": {"language": "eng_Latn"}}
        )
