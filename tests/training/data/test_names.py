"""File names and words that stay what they are in a prompt."""

from __future__ import annotations

import re

import bad_values
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.storage import name_fault
from likeness.training.data.captions import check_trigger
from likeness.training.data.dataset import DatasetKind, DatasetSettings
from likeness.training.data.names import prompt_stem
from likeness.training.export import write_safetensors


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("anna", "anna"),
        ("anna (v2)", "anna_v2"),
        ("Anna-2.5", "Anna-2.5"),
        ("(anna:1.2), smiling", "anna_1.2_smiling"),
        ("anna.safetensors", "anna"),
        ("anna.PT", "anna"),
        ("__anna__x__", "anna_x"),
        ("李明 (写真)", "李明_写真"),
        ("हिन्दी", "हिन्दी"),
        ("Zoe\u0308", "Zoë"),
        ("{a|b}<c>[d]", "a_b_c_d"),
        ("nul", "_nul"),
        ("<|>", "result"),
    ],
)
def test_a_stem_is_the_name_without_what_prompts_read(name, stem):
    assert prompt_stem(name) == stem


@given(st.text())
def test_every_name_becomes_a_stem_that_every_system_and_prompt_can_hold(name):
    stem = prompt_stem(name)
    assert stem and not name_fault(stem) and prompt_stem(stem).lstrip("_") == stem.lstrip("_")
    assert not re.search(r"[\s()\[\]{}|\\:,<>/]|__", stem)


@pytest.mark.parametrize("name", bad_values.NAMES)
def test_results_are_saved_under_any_name(tmp_path, name):
    path = write_safetensors({"a": torch.zeros(1)}, tmp_path, name)
    assert path.parent == tmp_path and path.is_file()


@pytest.mark.parametrize("word", ["ohwx(v2)", "[ohwx]", "{ohwx", "a|b", "embedding:anna", "oh\\wx", "o\0x", "o\ud800x"])
def test_a_trigger_word_that_prompts_read_otherwise_is_refused(word):
    with pytest.raises(LikenessError, match=r"The trigger word .*, which prompts do not read as a letter") as caught:
        check_trigger(word)
    assert str(caught.value).encode()


@pytest.mark.parametrize("word", ["ohwx", "<sks>", "anna-2", "李明", "zoë", "o'hara"])
def test_usual_trigger_words_pass(word):
    assert check_trigger(f" {word} ") == word


def test_a_class_word_may_be_several_words_but_no_weight():
    assert DatasetSettings(DatasetKind.PERSON, "ohwx", "young woman").class_word == "young woman"
    with pytest.raises(LikenessError, match=r"The class word '\(woman:1.3\)' holds '\('"):
        DatasetSettings(DatasetKind.PERSON, "ohwx", "(woman:1.3)")
