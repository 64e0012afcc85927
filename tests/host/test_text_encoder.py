"""ComfyUI's CLIP and transformers' models behind one face: the same tokens, the same states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from likeness.adapters.text_encoder import Token, TransformersTextEncoder, encode_tokens
from likeness.adapters.trigger_words import places_of, replaced
from likeness.errors import LikenessError

PROMPTS = [
    "",
    "a photo of a man in the rain",
    "a (man:1.3) with (((red))) hair, half-body",
    "a (very long (weighted:1.4) part, with many words in it, so that it is torn:0.9) and a short (one two:1.2)",
    "word " * 74 + "(six words that stay together here:1.1) and more",
    "longer, " * 120,
]


@pytest.fixture(scope="module", params=[False, True], ids=["SD1.5", "SDXL"])
def clip(request, recipes) -> Any:
    return recipes.tiny_clip(sdxl=request.param)


@pytest.fixture(scope="module")
def encoder(clip) -> Any:
    from likeness.injection.comfy import ComfyTextEncoder

    return ComfyTextEncoder(clip)


@pytest.mark.parametrize("text", PROMPTS, ids=range(len(PROMPTS)))
def test_a_prompt_is_cut_and_encoded_as_the_host_does(clip, encoder, text):
    tokens, host = encoder.tokenize(text), clip.tokenize(text)
    for tower in encoder.towers:
        ours = [[(t.id, t.weight) for t in window] for window in tower.windows(tokens[tower.name])]
        assert ours == host[tower.name.removeprefix("clip_")]
    states, pooled = clip.encode_from_tokens(host, return_pooled=True)
    found = encode_tokens(encoder, tokens)
    assert torch.equal(found.states, states) and torch.equal(found.pooled, pooled)


def test_any_hidden_layer_is_read_as_clip_set_last_layer_reads_it(clip, encoder):
    tokens = encoder.tokenize("a man")
    skipped = clip.clone()
    skipped.clip_layer(-3)
    third = encode_tokens(encoder, tokens, layer=-3).states
    assert torch.equal(third, skipped.encode_from_tokens(clip.tokenize("a man")))
    assert not torch.equal(third, encode_tokens(encoder, tokens).states)
    assert clip.layer_idx is None


def test_vectors_stand_in_place_of_a_word(clip, encoder):
    """The vector of a word of the vocabulary, in place of another word, is that word."""
    towers = {tower.name: getattr(clip.cond_stage_model, tower.name) for tower in encoder.towers}
    tokens, other, wanted = (encoder.tokenize(text) for text in ("a photo of sks, wet", "sks", "man"))
    changed = {}
    for name, own in tokens.items():
        (man,) = wanted[name]
        table = towers[name].transformer.get_input_embeddings().weight
        changed[name] = replaced(own, places_of(own, other[name]), table[man.id].detach().unsqueeze(0))
        assert len(changed[name]) == len(encoder.tokenize("a photo of man, wet")[name])
    expected = encode_tokens(encoder, encoder.tokenize("a photo of man, wet"))
    found = encode_tokens(encoder, changed)
    torch.testing.assert_close(found.states, expected.states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", [PROMPTS[1], PROMPTS[5]], ids=["short", "long"])
def test_transformers_says_the_same(clip, encoder, text):
    from likeness.nodes.sockets import towers_of

    parts = [(tower.kind, tower.tokenizer, tower.encoder) for tower in towers_of(clip)]
    other = TransformersTextEncoder(parts)
    assert [(t.name, t.width, t.pad, t.length) for t in other.towers] == [
        (t.name, t.width, t.pad, t.length) for t in encoder.towers
    ]
    tokens = other.tokenize(text)
    vector = torch.randn(encoder.towers[0].width, generator=torch.Generator().manual_seed(0))
    for own in (tokens, {name: [*part, Token(vector)] for name, part in tokens.items()}):
        expected = encode_tokens(encoder, {name: [Token(t.id, t.piece) for t in part] for name, part in own.items()})
        found = encode_tokens(other, own)
        torch.testing.assert_close(found.states, expected.states, atol=2e-5, rtol=1e-4)
        if len(encoder.towers) > 1:
            torch.testing.assert_close(found.pooled, expected.pooled, atol=2e-5, rtol=1e-4)


def test_text_encoders_of_another_kind_are_refused():
    from likeness.injection.comfy import ComfyTextEncoder

    class Other:
        cond_stage_model = torch.nn.ModuleDict({"t5xxl": torch.nn.Linear(1, 1)})
        tokenizer = None

    with pytest.raises(LikenessError, match="connect the CLIP of"):
        ComfyTextEncoder(Other())
