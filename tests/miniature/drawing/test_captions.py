"""The miniature world's language: captions say what is drawn, and its tokenizer has one token for every word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.miniature.drawing.captions import TEMPLATES, caption, check_prompt, parse, unknown_words, vocabulary
from likeness.miniature.drawing.shots import Clothing, Colour, Description, Expression, Scene, Style
from likeness.miniature.models.build_tokenizer import FOLDER, tokenizer_files

DESCRIPTIONS = st.builds(
    Description,
    style=st.sampled_from(Style),
    scene=st.sampled_from(Scene),
    expression=st.sampled_from(Expression),
    clothing=st.sampled_from(Clothing),
    clothing_colour=st.sampled_from(Colour),
    glasses=st.booleans(),
    beard=st.booleans(),
    hat=st.none() | st.sampled_from(Colour),
)


@given(DESCRIPTIONS, st.integers(0, len(TEMPLATES) - 1))
def test_a_caption_read_back_says_all_that_was_drawn(description, template):
    wish = parse(caption(description, template))
    assert vars(wish) == vars(description)


@given(DESCRIPTIONS, st.integers(0, len(TEMPLATES) - 1))
def test_captions_use_the_world_s_words_only(description, template):
    assert unknown_words(caption(description, template)) == []


def test_an_unknown_word_is_named_with_those_that_are_known():
    check_prompt("a photo of sks person", placeholders=["sks"])
    with pytest.raises(LikenessError, match=r"does not know 'spaceship'; its words are: .*forest"):
        check_prompt("a photo of a person in a spaceship")


def test_the_shipped_tokenizer_is_the_one_the_words_make():
    for name, text in tokenizer_files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text


def test_every_word_is_one_token_and_an_unknown_one_is_several():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER)
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word  # start, the word, end
    assert len(tokenizer("spaceship").input_ids) > 3
