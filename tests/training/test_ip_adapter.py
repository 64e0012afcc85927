"""Training an IP-Adapter through the live diffusers binding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from likeness.adapters import Evidence, IPAdapter, build
from likeness.adapters.effects import AttentionTerm
from likeness.errors import LikenessError
from likeness.injection.diffusers import inject
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.training.ip_adapter import drop_images, make_trainable, official_weights


def faceid(unet: Any, rank: int = 2) -> IPAdapter:
    """A FaceID adapter with a LoRA that fits the UNet."""
    torch.manual_seed(0)
    dim = 24
    weights = {
        "image_proj.proj.0.weight": torch.randn(2 * dim, 16) * 0.1,
        "image_proj.proj.0.bias": torch.zeros(2 * dim),
        "image_proj.proj.2.weight": torch.randn(4 * dim, 2 * dim) * 0.1,
        "image_proj.proj.2.bias": torch.zeros(4 * dim),
        "image_proj.norm.weight": torch.ones(dim),
        "image_proj.norm.bias": torch.zeros(dim),
    }
    for site in sites_of_diffusers_unet(unet):
        for name in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{site.slot}.{name}.weight"] = torch.randn(site.width, dim) * 0.1
        for slot, context in ((site.slot - 1, site.width), (site.slot, dim)):
            for name in ("to_q", "to_k", "to_v", "to_out"):
                width_in = context if name in ("to_k", "to_v") else site.width
                weights[f"ip_adapter.{slot}.{name}_lora.down.weight"] = torch.randn(rank, width_in) * 0.1
                weights[f"ip_adapter.{slot}.{name}_lora.up.weight"] = torch.randn(site.width, rank) * 0.1
    return build(weights, "faceid")


def run(unet: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 4, 32, 32, generator=noise), torch.randn(2, 5, 24, generator=noise)
    return unet(z, torch.tensor([100, 700]), text).sample


def evidence() -> Evidence:
    return Evidence(id_embeds=torch.randn(2, 16, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_trained_part_gets_a_gradient_and_the_unet_none(unet, checkpointed):
    adapter = faceid(unet)
    trained = make_trainable(adapter, unet)
    if checkpointed:
        unet.train()
        unet.enable_gradient_checkpointing()
    injection = AttentionTerm(adapter, adapter.tokens(evidence()), uniform(1.0, sites_of_diffusers_unet(unet)))
    inject(unet, [injection], roles=(Role.COND,), live=True)
    run(unet).square().mean().backward()
    silent = [name for name, p in trained.items() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert not silent
    others = {id(p) for p in unet.parameters()} - {id(p) for p in trained.values()}
    assert not any(p.requires_grad for p in unet.parameters() if id(p) in others)


def test_live_and_frozen_injection_agree_and_live_follows_new_tokens(unet):
    adapter = faceid(unet)
    sites = sites_of_diffusers_unet(unet)
    injection = AttentionTerm(adapter, adapter.encode(evidence()), uniform(0.8, sites))
    with torch.no_grad():
        frozen = inject(unet, [injection], roles=(Role.COND,))
        expected = run(unet)
        frozen.eject()
        live = inject(unet, [injection], roles=(Role.COND,), live=True)
        assert torch.equal(run(unet), expected)
        tokens = adapter.encode(Evidence(id_embeds=torch.zeros(2, 16)))
        live.injections = [replace(injection, tokens=tokens)]
        assert not torch.allclose(run(unet), expected, atol=1e-4)
        live.eject()


def test_the_official_file_comes_back_with_all_keys_and_with_what_was_trained(unet):
    adapter = faceid(unet)
    before = {**adapter.state_dict(), **{f"ip_adapter.{k}": v for k, v in adapter._lora.items()}}
    before = {key: value.clone() for key, value in before.items()}
    trained = make_trainable(adapter, unet)
    untouched = official_weights(adapter, unet)
    assert set(untouched) == set(before) == set(trained)
    assert all(torch.equal(untouched[key], before[key]) for key in before)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 1
    assert all(torch.equal(value, before[key] + 1) for key, value in official_weights(adapter, unet).items())


def test_dropped_images_are_what_the_unconditioned_half_sees():
    ids, features, empty = torch.ones(2, 4), torch.ones(2, 3, 5), torch.full((1, 3, 5), 7.0)
    dropped = torch.tensor([False, True])
    given = drop_images(Evidence(ids, features, empty), dropped)
    assert given.id_embeds is not None and given.features is not None
    assert given.id_embeds[:, 0].tolist() == [1, 0] and given.features[:, 0, 0].tolist() == [1, 7]
    pooled = drop_images(Evidence(features=torch.ones(2, 4)), dropped).features
    assert pooled is not None and pooled[:, 0].tolist() == [1, 0]


def test_an_adapter_for_another_model_is_refused(make_unet):
    adapter = faceid(make_unet())
    with pytest.raises(LikenessError, match="made for"):
        make_trainable(adapter, make_unet(block_out_channels=(16, 64)))
