"""The toy system through diffusers: every kind of effect applied, with the mathematics of its first page."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_unets as tiny
from helpers import toy

from likeness.adapters.effects import AttentionTerm, PromptEdit, PromptStates, WeightDelta
from likeness.adapters.system import Request, WeightFile
from likeness.faces import Identity
from likeness.injection.diffusers import inject
from likeness.injection.plan import Role, layout_of
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet
from likeness.weights.lora import merged


@pytest.fixture(scope="module")
def person() -> Identity:
    def crops(side: int) -> torch.Tensor:
        return torch.zeros(1, side, side, 3, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser="buffalo_l", embeddings=torch.eye(1, 512) + 0.1, weights=torch.ones(1),
        aligned=crops(224), portraits=crops(512), heads=crops(512), keypoints=torch.zeros(1, 5, 2),
        boxes=torch.zeros(1, 4), photo_sizes=torch.full((1, 2), 512),
    )  # fmt: skip


def effects(unet: Any, person: Identity, strength: float = 1.0) -> tuple[Any, ...]:
    sites = sites_of_diffusers_unet(unet)
    shapes = [(site.width, site.context_dim) for site in sites]
    adapter = toy.SYSTEM.load(WeightFile("toy.safetensors", toy.weights(shapes)))
    return adapter.effects(Request(layout_of(sites), diffusers_layers(sites), strength, identity=person))


def test_all_effects_act_in_diffusers_and_leave_no_trace(person):
    unet = tiny.unet("small SD")
    term, delta, edit = effects(unet, person)
    assert isinstance(term, AttentionTerm) and isinstance(delta, WeightDelta) and isinstance(edit, PromptEdit)
    random = torch.Generator().manual_seed(0)
    sample, text = torch.randn(1, 4, 16, 16, generator=random), torch.randn(1, 7, 24, generator=random)

    def paint(states: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return unet(sample, 10, encoder_hidden_states=states).sample

    plain = paint(text)
    injected = inject(unet, [term], roles=(Role.COND,))
    with_term = paint(text)
    injected.eject()
    with merged(unet, delta.changes, delta.strength):
        with_delta = paint(text)
    with_edit = paint(edit.edit(PromptStates(text)).states)
    for changed in (with_term, with_delta, with_edit):
        assert not torch.allclose(changed, plain, atol=1e-4)
    assert torch.equal(paint(text), plain)


def test_strength_0_says_so(person):
    term, delta, _ = effects(tiny.unet("small SD"), person, strength=0.0)
    assert term.why_never == delta.why_never == "the strength is 0"
