"""Runners are general over the variant: cases that the golden folder lacks are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conformance import harness
from conformance.runners import custom_diffusion as concepts
from conformance.runners import ip_adapter as runner
from conformance.runners import ip_adapter_options as options
from helpers import official

WIDTH, SITES = 32, [(32, 32)] * 3


def case(weights, inputs, config, expected=()) -> harness.Case:
    tensors = dict.fromkeys(expected, torch.zeros(1))
    return harness.Case(Path("x"), "ip_adapter", "two adapters", config, 0.0, 0.0, weights, inputs, tensors)


def file_of(image_proj: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    groups = official.groups(image_proj, SITES, with_lora=False)
    return {f"adapter_{number}.{g}.{key}": value for g, part in groups.items() for key, value in part.items()}


@pytest.mark.parametrize("photos", [1, 3])
def test_a_faceid_adapter_beside_one_that_reads_images(photos):
    weights = {**file_of(official.pooled(WIDTH), 0), **file_of(official.identity(WIDTH), 1)}
    pooled = official.pooled(WIDTH)["proj.weight"].shape[1]
    inputs = {"embeds_0": torch.randn(1, 2, pooled), "embeds_1": torch.randn(1, photos, 512)}
    first, second = runner.adapters_of(case(weights, inputs, {"kinds": ["ip-adapter", "ip-adapter-faceid"]}))
    assert not first[0].needs_embedding and second[0].needs_embedding
    assert first[1].cond.shape == (2, 4, WIDTH) and second[1].cond.shape == (photos, 4, WIDTH)


@pytest.mark.parametrize("asked", [["w_0"], ["w_0", "w_invert_0"], ["w_0", "image_1_0", "image_2_0"]])
def test_schedules_give_what_the_case_has(asked):
    row = {"weights": "0,1", "timing": "linear", "frames": 3, "n": 2}
    assert set(options.weight_schedules(case({}, {}, {"cases": [row]}, asked))) == set(asked)


def whole_network(layout: str, queries: bool, sdxl: bool) -> harness.Case:
    """A tiny UNet and a file in a layout that the golden folder may not hold."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    config = {
        "sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1, "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 32,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layout": layout, "freeze_model": "crossattn",
    }  # fmt: skip
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(2, 5, 32),
    }
    if sdxl:
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        config["projection_class_embeddings_input_dim"] = 16 + 6 * 8
        inputs |= {"text_embeds": torch.randn(2, 16), "time_ids": torch.ones(2, 6)}
    unet = UNet2DConditionModel(**{name: config[name] for name in config if name not in ("layout", "freeze_model")})
    endings = ("to_k.weight", "to_v.weight", *(("to_q.weight", "to_out.0.weight", "to_out.0.bias") if queries else ()))
    base = {name: value.clone() for name, value in unet.state_dict().items()}
    trained = {n: v + 0.1 * torch.randn_like(v) for n, v in base.items() if ".attn2." in n and n.endswith(endings)}
    weights = {f"unet.{name}": value for name, value in base.items()}
    if layout == "compressed":
        for name, value in trained.items():
            if name.endswith(("to_k.weight", "to_v.weight")):
                u, s, vt = torch.linalg.svd(value - base[name], full_matrices=False)
                weights |= {f"delta.unet.{name}.u": u * s, f"delta.unet.{name}.v": vt}
            else:
                weights[f"delta.unet.{name}"] = value
    elif layout == "delta":
        weights |= {f"delta.unet.{name}": value for name, value in trained.items()}
        weights["delta.modifier_token.<new1>"] = torch.ones(32)
    else:
        for name, value in trained.items():
            layer, _, rest = name.rpartition(".attn2.")
            part, _, rest = rest.partition(".")
            weights[f"delta.{layer}.attn2.processor.{part}_custom_diffusion.{rest}"] = value
    unet.load_state_dict(trained, strict=False)
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs} or None
    with torch.no_grad():
        states = inputs["encoder_hidden_states"]
        expected = unet(inputs["sample"], inputs["timestep"], states, added_cond_kwargs=added).sample
    return harness.Case(
        Path("x"), "custom_diffusion", "end to end", config, 1e-4, 1e-5, weights, inputs, {"noise_pred": expected}
    )


@pytest.mark.parametrize("sdxl", [False, True])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("layout", ["delta", "compressed", "attn_procs"])
def test_every_layout_of_a_concept_is_the_same_network(layout, queries, sdxl):
    made = whole_network(layout, queries, sdxl)
    harness.judge(made, concepts.whole_unet(made), harness.Runner(concepts.whole_unet, {}))
