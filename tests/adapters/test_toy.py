"""The toy system through diffusers: every kind of effect applied, with the mathematics of its first page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from helpers import tiny_unets as tiny
from helpers import toy
from torch import Tensor

from likeness.adapters.effects import AttentionTerm, PromptEdit, Scope, WeightDelta
from likeness.adapters.system import Request, WeightFile
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.injection.diffusers import SamplingRun, apply_effects
from likeness.injection.plan import Role, layout_of
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet


@pytest.fixture(scope="module")
def person() -> Identity:
    def crops(side: int) -> torch.Tensor:
        return torch.zeros(1, side, side, 3, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser="buffalo_l", embeddings=torch.eye(1, 512) + 0.1, weights=torch.ones(1),
        aligned=crops(224), portraits=crops(512), heads=crops(512), keypoints=torch.zeros(1, 5, 2),
        boxes=torch.zeros(1, 4), photo_sizes=torch.full((1, 2), 512),
    )  # fmt: skip


def effects(unet: Any, person: Identity, strength: float = 1.0, **window: float) -> tuple[Any, ...]:
    sites = sites_of_diffusers_unet(unet)
    shapes = [(site.width, site.context_dim) for site in sites]
    adapter = toy.SYSTEM.load(WeightFile("toy.safetensors", toy.weights(shapes)))
    return adapter.effects(Request(layout_of(sites), diffusers_layers(sites), strength, Scope(**window), person))


def paint(unet: Any) -> Tensor:
    random = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 16, 16, generator=random), torch.randn(1, 7, 24, generator=random)
    with torch.no_grad():
        return unet(sample, 10, encoder_hidden_states=text).sample


def test_all_effects_act_in_diffusers_and_leave_no_trace(person):
    unet = tiny.unet("small SD")
    plain, found = paint(unet), []
    made = effects(unet, person)
    assert [type(effect) for effect in made] == [AttentionTerm, WeightDelta, PromptEdit]
    for some in (*([effect] for effect in made), made):
        with apply_effects(unet, some, (Role.COND,)):
            found.append(paint(unet))
        assert torch.equal(paint(unet), plain)
    for changed, others in ((found[n], [plain, *found[:n]]) for n in range(len(found))):
        assert not any(torch.allclose(changed, other, atol=1e-4) for other in others)


def test_its_windows_are_open_in_the_same_steps_of_a_run(person):
    unet, scheduler = tiny.unet("small SD"), DDIMScheduler()
    scheduler.set_timesteps(10)
    plain, changed = paint(unet), []
    term, _, edit = effects(unet, person, start=0.25, end=0.6)
    with apply_effects(unet, [term, edit], (Role.COND,), run=SamplingRun.of(scheduler)) as applied:
        for step in range(10):
            applied.at_step(step)
            changed += [step] if not torch.equal(paint(unet), plain) else []
    assert changed == [2, 3, 4, 5]


def test_strength_0_and_a_window_that_never_opens_change_not_a_bit(person):
    unet = tiny.unet("small SD")
    plain = paint(unet)
    for made in (effects(unet, person, strength=0.0), effects(unet, person, start=0.5, end=0.5)):
        with apply_effects(unet, made, (Role.COND,)):
            assert torch.equal(paint(unet), plain)


def test_two_people_commute(person):
    unet, found = tiny.unet("small SD"), []
    ada, bob = effects(unet, person), effects(unet, replace(person, name="Bob", embeddings=torch.eye(1, 512) * 2))
    for some in ((*ada, *bob), (*bob, *ada)):
        with apply_effects(unet, some, (Role.COND,)):
            found.append(paint(unet))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    with apply_effects(unet, ada, (Role.COND,)):
        assert not torch.allclose(found[0], paint(unet), atol=1e-4)


def test_another_network_is_refused_by_name_and_left_as_it_is(person):
    other = tiny.unet("SD1.5")
    plain = paint(other)
    for effect in effects(tiny.unet("small SD"), person)[:2]:
        with pytest.raises(LikenessError, match=r"'toy\.safetensors' was made for|does not fit the model"):
            apply_effects(other, [effect], (Role.COND,))
    assert torch.equal(paint(other), plain)


def test_strength_0_says_so(person):
    term, delta, _ = effects(tiny.unet("small SD"), person, strength=0.0)
    assert term.why_never == delta.why_never == "the strength is 0"
