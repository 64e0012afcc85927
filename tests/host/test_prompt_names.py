"""The stems that results are saved under, in prompts of the real host."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from likeness.training.data.names import prompt_stem

NAMES = (
    "anna",
    "anna (v2)",
    "anna, smiling",
    "(anna:1.2)",
    "李明 (写真)",
    "Zoë [x]",
    "{a|b}",
    "anna.pt",
    "anna 2",
    "a<b",
)
PROMPTS = (
    "embedding:{}",
    "a photo of a embedding:{} person in the style of embedding:{}",
    "a photo of embedding:{}, smiling",
    "(embedding:{}:1.2) in the forest",
    "a photo\nembedding:{}\n in the forest",
)


@pytest.fixture(scope="module")
def clip(recipes, tmp_path_factory):
    made, folder = recipes.tiny_clip(), tmp_path_factory.mktemp("embeddings")
    made.tokenizer.clip_l.embedding_directory = [str(folder)]
    return made


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_stem_is_found_in_a_prompt(host_nodes, clip, prompt):
    [folder] = clip.tokenizer.clip_l.embedding_directory

    @settings(max_examples=60, deadline=None)
    @given(st.text(min_size=1, max_size=20))
    def check(name):
        stem = prompt_stem(name)
        save_file({"emb_params": torch.full((1, 64), 7.0)}, f"{folder}/{stem}.safetensors")
        tokens = [token for row in clip.tokenize(prompt.format(stem, stem))["l"] for token, _ in row]
        assert sum(torch.is_tensor(token) for token in tokens) == prompt.count("{}"), stem

    for name in NAMES:
        check = example(name)(check)
    check()
