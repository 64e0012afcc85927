"""The UNets of the host and of diffusers have one table of sites: the host itself says which layer is which."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_unets as tiny

# The host's own terms for the layouts of `tiny_unets`; depths run from the outermost level inwards.
LDM: dict[str, dict[str, Any]] = {
    "SD1.5": {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 3, 3],
        "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
    },
    "SDXL": {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 3],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
        "transformer_depth_middle": 10,
    },
    "SSD-1B": {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 3],
        "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        "transformer_depth_middle": -1,
    },
    "KOALA": {
        "num_res_blocks": [1] * 3, "channel_mult": [1, 2, 3],
        "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    },
    "Vega": {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 3],
        "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_output": [0] * 3 + [1] * 3 + [2] * 3,
        "transformer_depth_middle": -1,
    },
    "small SD": {
        "num_res_blocks": [1] * 2, "channel_mult": [1, 2],
        "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0],
        "transformer_depth_middle": 1,
    },
    "uneven": {
        "num_res_blocks": [1, 2, 3], "channel_mult": [1, 2, 3],
        "transformer_depth": [1, 0, 0, 3, 3, 3], "transformer_depth_output": [1, 1, 2, 2, 2, 0, 0, 0, 0],
        "transformer_depth_middle": 3,
    },
}  # fmt: skip


def host_config(layout: str, recipes: Any) -> dict[str, Any]:
    """Channels are multiples of 32, because the host's GroupNorm has 32 groups."""
    linear = bool(tiny.config(layout).get("use_linear_projection", False))
    return {
        **recipes.SD15_TINY, **LDM[layout],
        "context_dim": tiny.config(layout)["cross_attention_dim"], "use_linear_in_transformer": linear,
    }  # fmt: skip


def diffusers_config(layout: str) -> dict[str, Any]:
    channels = [32 * mult for mult in LDM[layout]["channel_mult"]]
    return {**tiny.config(layout), "block_out_channels": channels, "norm_num_groups": 32}


@pytest.fixture(params=LDM)
def layout(request) -> str:
    return request.param


@pytest.fixture
def both(layout, recipes):
    """Sites by the host's network and by diffusers', and the host's own dictionary of names."""
    import comfy.utils
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from likeness.injection.sites import sites_of_comfy_unet, sites_of_diffusers_unet

    config = host_config(layout, recipes)
    model = recipes.unet(config, num_heads=2)
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**diffusers_config(layout))
    names = comfy.utils.unet_to_diffusers(config)
    return sites_of_comfy_unet(model.model.diffusion_model), sites_of_diffusers_unet(theirs), names, model


def test_both_tables_are_equal(both, layout):
    host, diffusers, *_ = both
    assert host == diffusers
    assert len(host) == tiny.LAYOUTS[layout][1]


# The host's dictionary counts blocks as if all levels had as many as this one.
@pytest.mark.parametrize("layout", [name for name in LDM if name != "uneven"], indirect=True)
def test_the_host_agrees_which_layer_is_which(both):
    host, _, names, model = both
    layers = dict(model.model.diffusion_model.named_parameters())
    for site in host:
        for attention in ("attn1", "attn2"):
            ours = f"{site.comfy_path}.{attention}.to_q.weight"
            assert names[f"{site.diffusers_path}.{attention}.to_q.weight"] == ours
            assert ours in layers
        assert layers[f"{site.comfy_path}.attn2.to_k.weight"].shape == (site.width, site.context_dim)


def test_the_host_calls_our_keys_and_no_others(both, recipes):
    """A patch on every key is reached once per call, with the block numbers the table has."""
    host, _, _, model = both
    seen: list[tuple] = []

    def patch(q: Any, k: Any, v: Any, extra: dict) -> Any:
        from comfy.ldm.modules.attention import optimized_attention

        seen.append((*extra["block"], extra["block_index"], extra["transformer_index"], q.shape[-1], k.shape[1]))
        return optimized_attention(q, k, v, extra["n_heads"])

    patched = model.clone()
    for site in host:
        patched.set_model_attn2_replace(patch, *site.block, site.index)
    width = model.model.model_config.unet_config["context_dim"]
    text = recipes.conditioning(width)
    recipes.sample(patched, text, text, steps=1, cfg=1.0)
    order = sorted(host, key=lambda site: (site.transformer, site.index))
    assert seen == [(*site.key, site.transformer, site.width, 77) for site in order]
