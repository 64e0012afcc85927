"""Prompts of more than CLIP's 77 tokens: all of them are read, in training as in the host."""

from __future__ import annotations

from itertools import accumulate, chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.training.base.model import Conditioning
from likeness.training.base.prompt_tokens import TORN, chunks_of, groups_of
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.training.config import RunSettings
from likeness.training.data.portraits import Portrait
from likeness.training.engine import train
from likeness.training.loss_log import read_losses
from likeness.training.recipes.dreambooth import DreamBoothSettings, dreambooth
from likeness.training.recipes.magicapture import MagiCaptureSettings, magicapture
from likeness.training.recipes.textual_inversion import TextualInversionSettings, textual_inversion

LONG = "a photo of a person wearing a red hat and a blue shirt on the beach " * 8
WORD = "<anna>"


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=30), max_size=12), st.integers(10, 20))
def test_every_token_is_in_a_chunk_in_its_order(groups, length):
    chunks = chunks_of(groups, length, 1, 2, 0)
    assert all(len(chunk) == length and chunk[0] == 1 for chunk in chunks)
    bodies = [chunk[1 : chunk.index(2)] for chunk in chunks]
    assert list(chain(*bodies)) == list(chain(*groups))
    assert all(set(chunk[chunk.index(2) + 1 :]) <= {0} for chunk in chunks)


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=TORN - 1), max_size=12))
def test_short_groups_are_never_torn(groups):
    chunks = [chunk[1 : chunk.index(2)] for chunk in chunks_of(groups, 12, 1, 2, 0)]
    assert set(accumulate(map(len, chunks))) <= {0, *accumulate(map(len, groups))}


def test_learned_words_are_groups_of_their_own():
    assert groups_of([5, 6, 90, 91, 7, 90, 91, 92], [[90, 91], [92]]) == [[5, 6], [90, 91], [7], [90, 91], [92]]
    assert groups_of([], [[90]]) == [] == chunks_of([], 5, 1, 2, 0)[0][2:2]
    assert chunks_of([], 5, 1, 2, 0) == [[1, 2, 0, 0, 0]]


@pytest.mark.parametrize("sdxl", [False, True])
@pytest.mark.parametrize("prompt", ["", "a photo of a person", "a person"])
def test_a_short_prompt_has_the_tokens_it_always_had(make_base, sdxl, prompt):
    for tower in make_base(sdxl).text:
        known = tower.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.equal(tower.ids([prompt]), known)


@pytest.mark.parametrize("sdxl", [False, True])
def test_a_batch_of_prompts_of_different_lengths_says_what_each_says_alone(make_base, sdxl):
    base, prompts = make_base(sdxl), ["a person", LONG, "a photo of a person"]
    z, t = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 400, 900])
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 3) if sdxl else None
    with torch.no_grad():
        together = base.encode(prompts)
        alone = [base.encode([prompt]) for prompt in prompts]
        assert [len(ids) for ids in base.ids(prompts)] == [77, 154, 77] and together.states.shape[1] == 154
        assert all(one.mask is None for one in alone) and together.mask is not None
        assert together.mask.sum(1).tolist() == [77, 154, 77]
        joined = Conditioning.joined(alone)
        assert torch.allclose(joined.states, together.states, atol=1e-5)
        ours = base.predict(z, t, together, sizes)
        for i, one in enumerate(alone):
            expected = base.predict(z[i : i + 1], t[i : i + 1], one, None if sizes is None else sizes[:1])
            assert torch.allclose(ours[i : i + 1], expected, atol=1e-5)


def test_maps_of_a_batch_of_different_lengths_are_those_of_each_prompt_alone(base):
    from likeness.training.probe import AttentionProbe, sites_at

    probe = AttentionProbe(base.unet, sites_at(base.unet, (16, 16), (8, 8)))
    z, t, at = torch.randn(2, 4, 16, 16), torch.tensor([5, 400]), torch.tensor([[3], [4]])
    with torch.no_grad():
        both = base.encode(["a person", LONG])
        with probe.recording(at, both.mask) as maps:
            base.predict(z, t, both)
        with probe.recording(at[:1]) as alone:
            base.predict(z[:1], t[:1], base.encode(["a person"]))
    assert all(torch.allclose(m[:1], a, atol=1e-6) for m, a in zip(maps, alone, strict=True))
    probe.detach()


def moved(base, photos, folder, caption):
    """By how much of its length the new word moves in ten steps."""
    chosen = TextualInversionSettings(token=WORD, steps=10, learning_rate=0.05, captions=True, flip=0.0)
    recipe = textual_inversion(base, [photos(number, caption) for number in range(2)], chosen)
    [tower] = base.text
    first = tower.encoder.get_input_embeddings().rows.detach().clone()
    train(base, recipe, RunSettings(), folder)
    return float((tower.encoder.get_input_embeddings().rows.detach() - first).norm() / first.norm())


def test_a_word_at_the_end_of_a_long_caption_is_learned(make_base, make_photo, tmp_path):
    late = moved(make_base(), make_photo, tmp_path / "late", LONG + WORD)
    early = moved(make_base(), make_photo, tmp_path / "early", f"{WORD} {LONG}")
    assert late > 0.2 * early > 0, "it moved by a hundredth where the caption was cut off before it"


def test_dreambooth_trains_on_long_captions_beside_short_class_prompts(make_base, make_photo, tmp_path):
    base = make_base(sdxl=True)
    photos = [make_photo(0, LONG + "ohwx person"), make_photo(1, "a ohwx person")]
    chosen = DreamBoothSettings(captions=True, steps=2)
    recipe = dreambooth(base, photos, chosen, 0, [make_photo(2, chosen.class_prompt)])
    assert train(base, recipe, RunSettings(batch=2), tmp_path / "run").complete


def test_magicapture_finds_its_words_in_long_templates_beside_short_ones(base, make_photo, tmp_path):
    people, styles = [Portrait(make_photo(number)) for number in range(2)], [Portrait(make_photo(2))]
    templates = ("a photo of a {} person", LONG + "{} person")
    chosen = MagiCaptureSettings(
        inversion_steps=1, tuning_steps=3, map_division=2, lambda_id=0, person_templates=templates
    )
    result = train(base, magicapture(base, people, styles, chosen), RunSettings(batch=3), tmp_path / "run")
    assert result.complete and all(float(row["attention"]) > 0 for row in read_losses(result.losses)[1:])


def test_a_learned_word_at_the_end_of_a_chunk_is_not_torn(base):
    vocabulary = Vocabulary(base, [NewToken(WORD, vectors=3, start="person")])
    [tower] = base.text
    ids = vocabulary.ids(WORD)
    for words in range(68, 80):
        chunks = tower.chunks(base.spell("a " * words + WORD + " in the forest")).tolist()
        assert any(chunk[at : at + 3] == ids for chunk in chunks for at in range(75)), words
    vocabulary.remove()
    assert tower.words == ()
