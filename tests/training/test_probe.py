"""The attention probe: the right numbers, a gradient in every mode, and nothing else touched."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from likeness.errors import LikenessError
from likeness.injection.sites import sites_of_diffusers_unet
from likeness.training.base.lora import Reach, add_lora, lora_targets
from likeness.training.probe import (
    AttentionProbe,
    columns_of,
    refocusing_grid,
    sites_at,
    sites_by_grid,
    sites_up_to,
)

POSITIONS = torch.tensor([[3, 5], [2, 7]])
MODES = {
    "plain": None,
    "checkpointed as diffusers does": "diffusers",
    "checkpointed without re-entering": lambda module, *args: checkpoint(module, *args, use_reentrant=False),
    "checkpointed re-entering": lambda module, *args: checkpoint(module, *args, use_reentrant=True),
}


def prepare(unet: Any, mode: Any = None) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    parameters = add_lora(unet, lora_targets(unet, Reach.ATTENTION), rank=2)
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    unet.train()
    if mode == "diffusers":
        unet.enable_gradient_checkpointing()
    elif mode is not None:
        unet.enable_gradient_checkpointing(mode)
    return parameters


def run(unet: Any, seed: int = 0, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    z, text = inputs(seed, size)
    return unet(z, torch.tensor([10, 500]), text.requires_grad_()).sample  # without it the first blocks cannot re-enter


def inputs(seed: int = 0, size: tuple[int, int] = (32, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, *size, generator=noise), torch.randn(2, 9, 24, generator=noise)


def attention_gradients(unet: Any, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
    with probe.recording(POSITIONS) as maps:
        run(unet)
    sum(m.square().sum() for m in maps).backward()  # type: ignore[union-attr]
    probe.detach()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_a_loss_on_maps_alone_reaches_the_weights_in_every_mode(make_unet, mode):
    plain, moded = make_unet(), make_unet()
    expected = attention_gradients(plain, prepare(plain))
    actual = attention_gradients(moded, prepare(moded, mode))
    assert any(float(g.abs().max()) > 0 for g in expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_a_pass_nobody_listened_to_may_share_the_backward(make_unet, mode):
    """The identity loss has a UNet pass of its own between the probed pass and the backward."""
    unet = make_unet()
    parameters = prepare(unet, mode)
    probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
    run(unet, seed=1)
    with probe.recording(POSITIONS) as maps:
        first = run(unet)
    second = run(unet, seed=2)
    assert len(maps) == len(sites_at(unet, (32, 32), (16, 16)))
    (first.sum() + second.sum() + maps[0].sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)


def test_maps_are_the_columns_of_the_softmax_that_the_layer_uses(unet):
    site = sites_at(unet, (32, 32), (16, 16))[0]
    attention = unet.get_submodule(f"{site.diffusers_path}.attn2")
    seen = {}
    hook = attention.register_forward_hook(
        lambda _m, args, kwargs, _o: seen.update(x=args[0], text=kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    probe = AttentionProbe(unet, [site])
    with torch.no_grad(), probe.recording(POSITIONS) as maps:
        run(unet)
    hook.remove()
    q = attention.head_to_batch_dim(attention.to_q(seen["x"]))
    k = attention.head_to_batch_dim(attention.to_k(seen["text"]))
    full = attention.get_attention_scores(q, k).unflatten(0, (2, attention.heads))  # (batch, heads, L, tokens)
    for sample in range(2):
        for n, position in enumerate(POSITIONS[sample]):
            torch.testing.assert_close(maps[0][sample, :, n], full[sample, :, :, position])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_the_same_queries_are_compared_with_the_keys_of_a_reference(make_unet, mode):
    unet = make_unet()
    prepare(unet, mode)
    sites = sites_up_to(unet, (32, 32), (16, 16))
    probe = AttentionProbe(unet, sites)
    reference = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    with probe.comparing(POSITIONS, None, inputs()[1]) as same:
        run(unet)
    with probe.comparing(POSITIONS, None, reference) as other:
        run(unet)
    assert len(same.of_prompt) == len(same.of_reference) == len(sites)
    for mine, theirs, different in zip(same.of_prompt, same.of_reference, other.of_reference, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.requires_grad and not theirs.requires_grad and not torch.allclose(mine, different)


def test_sites_up_to_a_grid_hold_the_middle_block(make_unet):
    unet = make_unet()
    coarse = sites_up_to(unet, (32, 32), (16, 16))
    assert any(site.diffusers_path.startswith("mid_block.") for site in coarse)
    assert {s.slot for s in coarse} > {s.slot for s in sites_at(unet, (32, 32), (16, 16))}
    assert [s.transformer for s in coarse] == sorted(s.transformer for s in coarse)
    assert len(sites_up_to(unet, (32, 32), (32, 32))) == len(sites_of_diffusers_unet(unet))


def test_all_columns_sum_to_one_and_half_precision_is_computed_in_single():
    q, k = torch.randn(1, 16, 8), torch.randn(1, 5, 8)
    every = columns_of(q, k, torch.arange(5).unsqueeze(0), heads=2)
    assert every.shape == (1, 2, 5, 16)
    torch.testing.assert_close(every.sum(2), torch.ones(1, 2, 16))
    assert columns_of(q.half(), k.half(), torch.tensor([[0]]), heads=2).dtype == torch.float32


def test_the_prediction_is_the_same_with_and_without_a_listener(unet):
    with torch.no_grad():
        before = run(unet)
        probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
        silent = run(unet)
        with probe.recording(POSITIONS):
            recorded = run(unet)
    assert torch.equal(before, silent) and torch.equal(before, recorded)


def test_every_layer_keeps_its_processor_and_detaching_leaves_no_hook(unet):
    unet.enable_gradient_checkpointing()
    processors = dict(unet.attn_processors)
    functions = [m._gradient_checkpointing_func for m in unet.modules() if hasattr(m, "_gradient_checkpointing_func")]
    probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    probe.detach()
    assert not any(module._forward_hooks for module in unet.modules())
    after = [m._gradient_checkpointing_func for m in unet.modules() if hasattr(m, "_gradient_checkpointing_func")]
    assert after == functions


def test_an_exception_in_the_pass_leaves_nobody_recording(unet):
    probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
    with pytest.raises(RuntimeError, match="stop"), probe.recording(POSITIONS):
        raise RuntimeError("stop")
    run(unet)
    assert probe._recording is None and not probe._queries


def test_what_is_kept_is_far_less_than_all_maps(unet):
    """All maps of one pass against those the probe makes, counted at the sites it hooks."""
    sites = sites_at(unet, (32, 32), (16, 16))
    probe = AttentionProbe(unet, sites)
    with probe.recording(POSITIONS[:, :1]) as maps:
        run(unet)
    kept = sum(m.numel() for m in maps)
    heads, levels = 4, {32: 2 + 1, 16: 1 + 2 + 1}  # transformers per level: down and up, and the middle at 16
    everything = sum(2 * heads * n * (side**2) * (side**2 + 9) for side, n in levels.items())
    assert kept < 0.01 * everything


# Which sites ----------------------------------------------------------------------------------------------------------


def test_the_official_layers_of_sd15_are_found():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    paths = [
        site.diffusers_path.split(".transformer")[0] for site in sites_at(unet, (64, 64), refocusing_grid((64, 64)))
    ]
    assert paths == [f"down_blocks.2.attentions.{i}" for i in (0, 1)] + [
        f"up_blocks.1.attentions.{i}" for i in (0, 1, 2)
    ]


def test_grids_follow_latents_that_are_not_square_or_not_even(unet):
    probe_grids = sites_by_grid(unet, (30, 21))
    assert set(probe_grids) == {(30, 21), (15, 11)}
    probe = AttentionProbe(unet, probe_grids[(15, 11)])
    with torch.no_grad(), probe.recording(POSITIONS) as maps:
        run(unet, size=(30, 21))
    assert all(m.shape == (2, 4, 2, 15 * 11) for m in maps)


def test_a_grid_that_is_not_there_is_named_with_those_that_are(unet):
    with pytest.raises(LikenessError, match=r"8x8.*32x32, 16x16"):
        sites_at(unet, (32, 32), (8, 8))


def test_a_quarter_of_the_latent():
    assert refocusing_grid((64, 64)) == (16, 16) and refocusing_grid((128, 96)) == (32, 24)


def test_the_probe_hears_the_lora(make_unet):
    unet = make_unet()
    with torch.no_grad():
        maps = []
        for scale in (0.0, 1.0):
            if scale:
                prepare(unet)
            probe = AttentionProbe(unet, sites_at(unet, (32, 32), (16, 16)))
            with probe.recording(POSITIONS) as recorded:
                partial(run, unet)()
            probe.detach()
            maps.append(recorded[0])
    assert not torch.allclose(*maps)
