"""BLIP-Diffusion through Identity Prompt and its options node, in the real CLIP and sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import blip_diffusion as made
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file

IMAGES = torch.rand(2, 48, 32, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def adapter(world) -> Any:
    folder = world.folder / "blip_diffusion" / "blipdiffusion" / "qformer"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(made.encoder(world.dim), folder / "pytorch_model.bin")
    return world.run(
        "LikenessLoadIdentityAdapter", adapter_file="blip_diffusion/blipdiffusion/qformer/pytorch_model.bin"
    )


def options(world, **inputs: Any) -> Any:
    return world.run("LikenessBlipDiffusionOptions", **{"category": "dog", "images": IMAGES[:1], **inputs})


def prompt(world, adapter: Any, text: str = "swimming", **inputs: Any) -> tuple[Any, Any, str]:
    given = {"start_at": 0.0, "text": text, **inputs}
    return world.prompt(adapter, **given)


def states(world, adapter: Any, *text: str, **inputs: Any) -> torch.Tensor:
    ((found, _),) = prompt(world, adapter, *text, **inputs)[1]
    return found


def test_the_hub_folder_is_listed_and_read(world, adapter):
    from likeness.nodes.adapter_files import adapter_choices

    assert "blip_diffusion/blipdiffusion/qformer/pytorch_model.bin" in adapter_choices()
    assert adapter.adapter.title == "BLIP-Diffusion"


def test_images_alone_make_a_prompt_of_exactly_77_tokens(world, adapter):
    chosen = options(world)
    assert states(world, adapter, options=chosen).shape == (1, 77, world.dim)
    _, _, report = prompt(world, adapter, options=chosen)
    assert "image 1 (dog) as 4 vectors" in report and "through the prompt" in report
    again, other = (states(world, adapter, options=options(world, images=IMAGES[i : i + 1])) for i in (0, 1))
    assert same(again, states(world, adapter, options=chosen)) and not same(again, other)


def test_a_model_is_not_needed_and_one_that_is_given_is_not_changed(world, adapter):
    model, conditioning, _ = prompt(world, adapter, model=None, options=options(world))
    assert model is None and len(conditioning) == 1
    model, conditioning, _ = prompt(world, adapter, options=options(world))
    assert not model.patches
    painted = world.recipes.sample(model, conditioning, world.text[1], steps=2, shape=(1, 4, 8, 8))
    assert painted.isfinite().all()


@pytest.mark.parametrize("given", [{"crop": "squash"}, {"background": "noise"}, {"target": "tiger"}, {"repeats": 1}])
def test_every_option_reaches_the_prompt(world, adapter, given):
    mask = torch.zeros(1, 48, 32)
    mask[:, 8:40] = 1
    plain, changed = (states(world, adapter, options=options(world, mask=mask, **how)) for how in ({}, given))
    assert not same(plain, changed)


def test_images_of_several_sizes_are_mixed_by_ratio(world, adapter):
    more = torch.rand(1, 20, 60, 3, generator=torch.Generator().manual_seed(2))
    both = {"images_2": more, "category": "dog, cat"}
    first = states(world, adapter, options=options(world))
    assert same(states(world, adapter, options=options(world, **both, ratios="1, 0")), first)
    assert not same(states(world, adapter, options=options(world, **both)), first)
    _, _, report = prompt(world, adapter, options=options(world, **both, ratios="3 1"))
    assert "add up to 4" in report and "image 2 (cat)" in report


def test_a_prompt_in_half_precision_stays_one(world, adapter):
    clip = world.recipes.tiny_clip(dtype=torch.float16)
    found = states(world, adapter, clip=clip, options=options(world))
    assert found.shape == (1, 77, world.dim) and found.isfinite().all()
    assert (found.float() - states(world, adapter, options=options(world))).abs().max() < 0.1


def test_emphasis_in_the_text_is_understood(world, adapter):
    plain, loud = (states(world, adapter, text, options=options(world, repeats=1)) for text in ("wet", "(wet:1.6)"))
    assert not same(plain, loud)


def test_a_subject_of_its_own_needs_no_vocabulary(world, monkeypatch):
    from likeness.nodes import prompts

    vectors = torch.randn(1, made.QUERIES, world.dim)
    save_file(
        {"ctx_embeddings_cache": vectors}, world.folder / "blip_diffusion" / "rex.safetensors", {"subject": "dog"}
    )
    rex = world.run("LikenessLoadIdentityAdapter", adapter_file="blip_diffusion/rex.safetensors")
    monkeypatch.setattr(prompts, "find_vocabulary", None)
    _, ((found, _),), report = prompt(world, rex)
    assert found.shape == (1, 77, world.dim) and "the trained subject 'dog'" in report


# --- what is said


def test_a_missing_vocabulary_is_named_with_its_place(world, adapter, tmp_path):
    path = world.folder / "blip_diffusion" / "vocab.txt"
    path.rename(tmp_path / "vocab.txt")
    try:
        text = sentence(prompt, world, adapter, options=options(world))
    finally:
        (tmp_path / "vocab.txt").rename(path)
    assert "vocab.txt" in text and "blip_diffusion" in text and "likeness models get" in text


def test_the_clip_of_sdxl_is_refused_by_name(world, adapter):
    text = sentence(prompt, world, adapter, clip=world.recipes.tiny_clip(sdxl=True), options=options(world))
    assert "needs the 64-wide CLIP-L" in text and "clip_g" in text


def test_it_is_sent_to_the_node_it_works_in(world, adapter):
    assert "Identity Prompt" in sentence(world.apply, adapter, person())


@pytest.mark.parametrize("ratios", ["half", "-1, 2", "nan", "0.5; x"])
def test_ratios_that_are_none_are_refused(world, ratios):
    assert "such as 0.7, 0.3" in sentence(options, world, ratios=ratios)


def test_no_prompt_is_left_of_a_strength_below_one(world):
    assert "less than 1" in sentence(options, world, prompt_strength=0.01)
