"""A MODEL or CLIP whose weights are quantised, in any way that this host knows, is trained as what they stand for."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from helpers.quantised import FORMATS, MIXED, layers_of, quantised, quantised_model
from torch import Tensor

from likeness.weights.checkpoint_layout import unet_names

ERROR = {"int8_tensorwise": 0.05}  # the host rounds what goes into these layers too


@pytest.fixture(scope="module")
def sockets(host_nodes):
    from likeness.nodes import sockets

    return sockets


def _clip(recipes: Any, kind: str) -> tuple[Any, dict[str, Tensor], list[str]]:
    """A CLIP, what its weights stand for, and its quantised layers."""
    import comfy.sd
    from comfy import sd1_clip, supported_models_base

    text = recipes.tiny_clip().cond_stage_model
    layers = layers_of(text, kind)
    stored, means = quantised(text.state_dict(), layers, kind)
    options: dict[str, Any] = {"clip_l_model_config": recipes._CLIP_TINY, "dtype": torch.float32}
    if kind in MIXED:
        options["quantization_metadata"] = {"mixed_ops": True}
    elif kind == "scaled_fp8":
        options["scaled_fp8"] = torch.float8_e4m3fn
    else:
        options["dtype"] = torch.float8_e4m3fn
    target = supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    if "state_dict" in signature(comfy.sd.CLIP).parameters:  # newer hosts build layers as their weights come
        return comfy.sd.CLIP(target, state_dict=stored, model_options=options), means, layers
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.load_sd(stored, full_model=True)
    return clip, means, layers


def _with_lora(patcher: Any, keys: list[str]) -> tuple[Any, dict[str, Tensor]]:
    """A clone with a change on these weights, and the change."""
    random, clone = torch.Generator().manual_seed(3), patcher.clone()
    shapes = {key: clone.get_model_object(key).shape for key in keys}
    up = {key: torch.randn(shape[0], 2, generator=random) for key, shape in shapes.items()}
    down = {key: torch.randn(2, shape[1], generator=random) for key, shape in shapes.items()}
    changes = {key: (0.05 * up[key] @ down[key],) for key in keys}
    assert len(clone.add_patches(changes, 0.7)) == len(keys)
    return clone, {key: 0.7 * change for key, (change,) in changes.items()}


def _as_stored(kind: str, change: Tensor) -> Tensor:
    """What a change of the host's makes of the weight: patches go under the scale of the layer's input."""
    return change * torch.linspace(0.5, 2, change.shape[1]) if kind == "nvfp4 with scaled inputs" else change


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("sdxl", [False, True])
def test_a_quantised_model_gives_its_weights_with_patches_and_predicts_the_same(sockets, recipes, kind, sdxl):
    import comfy.model_management

    model, means, layers = quantised_model(recipes, kind, sdxl)
    patched, changes = _with_lora(model, [f"{sockets.UNET}{layer}.weight" for layer in layers[::2]])
    assert len(changes) > 10
    for patcher, added in ((model, {}), (patched, changes)):
        found = sockets.merged_weights(patcher, sockets.UNET)
        assert set(found) == set(means)
        for name, value in means.items():
            key = sockets.UNET + name
            wanted = value + _as_stored(kind, added[key]) if key in added else value
            assert torch.allclose(found[name], wanted, atol=1e-5), name
            assert found[name].dtype is torch.float32 and type(found[name]) is Tensor
    with torch.no_grad():
        comfy.model_management.load_models_gpu([patched], force_full_load=True)
    again = sockets.merged_weights(patched, sockets.UNET)  # now that the host has patched its own weights
    assert all(torch.equal(again[name], value) for name, value in found.items())
    comfy.model_management.unload_all_models()

    width = model.model.model_config.unet_config["context_dim"]
    z, states = torch.randn(2, 4, 16, 16), torch.randn(2, 77, width)
    pooled, ids = torch.randn(2, recipes.SDXL_POOLED), torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)
    extra, added = {}, None
    if sdxl:
        extra = {"y": torch.cat([pooled, *(model.model.embedder(row) for row in ids.T)], 1)}
        added = {"text_embeds": pooled, "time_ids": ids}
    unet = sockets.unet_of(model, 16)
    assert set(unet_names(unet.state_dict()).values()) == set(means)
    with torch.no_grad():
        theirs = model.model.diffusion_model(z, torch.tensor([400, 400]), context=states, **extra)
        ours = unet(z, torch.tensor([400, 400]), states, added_cond_kwargs=added).sample
    assert float((ours - theirs).square().mean().sqrt()) < ERROR.get(kind, 1e-4) * float(theirs.std())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantised_clip_gives_its_weights_with_patches_and_says_the_same(sockets, recipes, kind):
    clip, means, layers = _clip(recipes, kind)
    prefix = "clip_l.transformer."
    patched, changes = _with_lora(clip.patcher, [f"{layer}.weight" for layer in layers[::2]])
    found = sockets.merged_weights(patched, prefix)
    assert len(changes) > 10 and set(found) >= {name.removeprefix(prefix) for name in means if name.startswith(prefix)}
    for name, value in means.items():
        wanted = value + _as_stored(kind, changes[name]) if name in changes else value
        if name.startswith(prefix):
            assert torch.allclose(found[name.removeprefix(prefix)], wanted, atol=1e-5), name
    [tower] = sockets.towers_of(clip)
    with torch.no_grad():
        theirs = clip.encode_from_tokens(clip.tokenize("a photo of a person"))
        ours = tower.last(tower.chunks("a photo of a person"), 0)
    assert float((ours - theirs).square().mean().sqrt()) < ERROR.get(kind, 1e-4) * float(theirs.std())
