"""Apply Identity and Scale Identities, looked at in what the MODEL then samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.small_world import official, person, pictures, same, sentence
from torch import Tensor


@pytest.mark.parametrize("kind", ["faceid", "faceid-plus", "portrait", "plus", "base"])
def test_every_kind_of_adapter_changes_the_picture(world, plain, kind):
    pooled = {"options": world.options(image=pictures())} if kind == "base" else {}
    clip = {} if kind in ("faceid", "portrait") else {"clip_vision": world.clip_vision}
    model, report = world.apply(world.adapter(kind), person(), **clip, **pooled)
    heard = world.sample(model)
    assert heard.isfinite().all() and not same(heard, plain)
    assert f"{len(world.sites)} of {len(world.sites)} sites" in report and f"{kind}_0.safetensors" in report
    assert torch.equal(world.sample(world.model), plain), "the given MODEL stays as it is"


def test_the_full_layout_of_sd15_hears_a_faceid_adapter_at_all_16_sites(world, recipes):
    from likeness.injection.comfy import sites_of

    model = recipes.unet(recipes.SD15_SITES)
    shapes = [(site.width, site.context_dim) for site in sites_of(model)]
    official.write(world.folder / "ipadapter" / "full.bin", world.groups("faceid", shapes))
    adapter = world.run("LikenessLoadIdentityAdapter", adapter_file="full.bin")
    applied, report = world.apply(adapter, person(), model=model)
    assert report == (
        "IP-Adapter FaceID (full.bin): 'Ada' as 4 tokens at 16 of 16 sites, from 0 to 1 of the sampling, "
        "LoRA 0.6 on 128 weights."
    )
    shape = (1, 4, 16, 16)
    assert not same(world.sample(applied, shape=shape), world.sample(model, shape=shape))


def test_another_person_gives_another_picture_and_the_same_one_the_same(world):
    adapter = world.adapter("faceid")
    ada, bob = (world.sample(world.apply(adapter, person(seed=seed))[0]) for seed in (0, 1))
    assert not same(ada, bob)
    assert torch.equal(ada, world.sample(world.apply(adapter, person(seed=0))[0]))


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"weight": 0.0}, "the strength is 0"),
        ({"start_at": 0.5, "end_at": 0.5}, "start 0.5 is not before end 0.5"),
        ({"attn_mask": torch.zeros(1, 64, 64)}, "the mask is empty (Load Image gives an empty mask"),
    ],
)
def test_what_has_no_effect_changes_not_a_bit_and_says_why(world, plain, inputs, why):
    """The LoRA of a FaceID file included."""
    model, report = world.apply(world.adapter("faceid"), person(), **inputs)
    assert torch.equal(world.sample(model), plain)
    assert "has no effect" in report and why in report


@pytest.mark.parametrize("weight", [-1.0, -0.2, 3.0])
def test_strengths_of_either_sign_are_heard(world, plain, weight):
    model, _ = world.apply(world.adapter("portrait"), person(), weight=weight)
    heard = world.sample(model)
    assert heard.isfinite().all() and not same(heard, plain)


@pytest.mark.parametrize("name", ["weight", "start_at", "end_at", "lora_strength"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(world, name, value):
    text = sentence(world.apply, world.adapter("faceid"), person(), **{name: value})
    assert "enter a number" in text and ("strength" if name == "weight" else name) in text


def test_a_window_that_ends_before_it_starts_is_refused(world):
    text = sentence(world.apply, world.adapter("faceid"), person(), start_at=0.8, end_at=0.2)
    assert "start_at is 0.8 and end_at 0.2" in text


def test_the_window_is_kept(world, plain):
    late, _ = world.apply(world.adapter("portrait"), person(), start_at=0.5)
    steps: list[Tensor] = []
    world.sample(late, steps=4, callback=lambda *a: steps.append(a[1].clone()))
    without: list[Tensor] = []
    world.sample(world.model, steps=4, callback=lambda *a: without.append(a[1].clone()))
    equal = [torch.equal(a, b) for a, b in zip(steps, without, strict=True)]
    assert equal[0] and not equal[-1]


@pytest.mark.parametrize(
    "mask", [torch.rand(64, 64), torch.rand(1, 7, 90), torch.rand(3, 1, 16, 16), torch.rand(5, 8, 8)]
)
def test_masks_of_any_size_and_batch_are_understood(world, mask):
    model, _ = world.apply(world.adapter("portrait"), person(), attn_mask=mask)
    assert world.sample(model, shape=(2, 4, 8, 12), steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.full((1, 8, 8), torch.nan), "NaN"),
        (torch.zeros(0, 8, 8), "empty"),
        (torch.zeros(1, 8, 8, 3), "connect a MASK"),
    ],
)
def test_masks_that_are_none_are_refused(world, mask, expected):
    assert expected in sentence(world.apply, world.adapter("portrait"), person(), attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["faceid", "portrait"])
def test_models_in_half_precision_work(world, recipes, dtype, kind):
    base = recipes.unet(recipes.SD15_TINY, dtype=dtype)
    model, _ = world.apply(world.adapter(kind), person(), model=base)
    low = world.sample(model)
    assert low.isfinite().all()
    exact = world.sample(world.apply(world.adapter(kind), person())[0])
    assert (low - exact).abs().mean() < 0.25 * exact.abs().mean()


def test_an_identity_s_weights_reach_the_picture(world):
    adapter, ada = world.adapter("faceid"), person(2)
    only_first = replace(ada, weights=torch.tensor([1.0, 0.0]))
    one, other = world.sample(world.apply(adapter, only_first)[0]), world.sample(world.apply(adapter, ada.take([0]))[0])
    assert same(one, other)


def test_two_people_with_masks_chain_and_share_the_lora(world):
    adapter, left, right = world.adapter("faceid"), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    left[..., :4], right[..., 4:] = 1, 1
    ada, bob = person(seed=0), person(seed=1)
    one, _ = world.apply(adapter, ada, attn_mask=left)
    both, report = world.apply(adapter, bob, attn_mask=right, model=one)
    other_way, _ = world.apply(adapter, ada, attn_mask=left, model=world.apply(adapter, bob, attn_mask=right)[0])
    assert same(world.sample(both), world.sample(other_way))
    assert not same(world.sample(both), world.sample(one))
    assert all(len(patches) == 1 for patches in both.patches.values()), "the LoRA is there once"
    assert "sites" in report


def test_scaling_multiplies_every_identity(world, plain):
    adapter = world.adapter("portrait")
    full, half = (world.apply(adapter, person(), weight=w)[0] for w in (1.0, 0.5))
    assert same(world.sample(world.run("LikenessScaleIdentities", model=full, factor=0.5)), world.sample(half))
    assert torch.equal(world.sample(world.run("LikenessScaleIdentities", model=full, factor=0.0)), plain)
    assert "connect it after Apply Identity" in sentence(
        world.run, "LikenessScaleIdentities", model=world.model, factor=1.0
    )
    assert "enter a number" in sentence(world.run, "LikenessScaleIdentities", model=full, factor=float("nan"))
