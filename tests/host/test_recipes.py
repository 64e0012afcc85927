"""The recipes themselves: deterministic, alive, and equal to diffusers where weights are carried over."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("make", ["tiny_sd15", "tiny_sdxl", "tiny_flux"])
def test_sampling_is_deterministic_and_depends_on_the_prompt(recipes, make):
    width, pooled, shape, extra = {
        "tiny_sd15": (64, None, (2, 4, 16, 24), {}),
        "tiny_sdxl": (128, recipes.SDXL_POOLED, (1, 4, 16, 16), {}),
        "tiny_flux": (48, 32, (1, 16, 16, 16), {"guidance": 3.5}),
    }[make]
    prompts = [recipes.conditioning(width, pooled=pooled, seed=seed, **extra) for seed in range(3)]
    model, again = getattr(recipes, make)(), getattr(recipes, make)()
    picture = recipes.sample(model, prompts[0], prompts[1], shape=shape)
    assert torch.isfinite(picture).all() and picture.std() > 0.01
    assert torch.equal(picture, recipes.sample(again, prompts[0], prompts[1], shape=shape))
    assert not torch.allclose(picture, recipes.sample(model, prompts[2], prompts[1], shape=shape), atol=1e-4)


@pytest.mark.parametrize(("name", "layers", "width"), [("SD15_SITES", 16, 64), ("SDXL_SITES", 70, 128)])
def test_site_layouts_have_the_full_nets_cross_attention_layers(recipes, name, layers, width):
    model = recipes.unet(getattr(recipes, name))
    calls = []

    def count(q, k, v, extra):
        calls.append((*extra["block"], extra["block_index"]))
        return q

    seen = model.clone()
    for block in ("input", "middle", "output"):
        for number in range(12):
            seen.set_model_attn2_replace(count, block, number)
    pooled = recipes.SDXL_POOLED if "XL" in name else None
    prompt = recipes.conditioning(width, pooled=pooled)
    recipes.sample(seen, prompt, prompt, steps=1, cfg=1.0)
    assert len(calls) == len(set(calls)) == layers
    assert ("middle", 0, 0) in calls


def test_clip_and_vae_work_together_with_the_tiny_unet(recipes):
    clip, vae = recipes.tiny_clip(), recipes.tiny_vae()
    encode = clip.encode_from_tokens_scheduled
    with torch.inference_mode():
        positive, negative = encode(clip.tokenize("a portrait")), encode(clip.tokenize(""))
        latent = recipes.sample(recipes.tiny_sd15(), positive, negative, shape=(1, 4, 8, 8))
        image = vae.decode(latent)
    assert image.shape == (1, 64, 64, 3)
    assert float(image.min()) >= 0 and float(image.max()) <= 1 and float(image.std()) > 0.005


def test_sdxl_clip_gives_the_widths_of_the_tiny_sdxl(recipes):
    clip = recipes.tiny_clip(sdxl=True)
    with torch.inference_mode():
        [[states, options]] = clip.encode_from_tokens_scheduled(clip.tokenize("a portrait"))
    assert states.shape[-1] == recipes.SDXL_TINY["context_dim"]
    assert options["pooled_output"].shape[-1] == recipes.SDXL_POOLED


DIFFUSERS = {
    "sd, two levels": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    "sd, three levels, two layers": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    "sdxl, head width 16": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 32,
        "attention_head_dim": (2, 4),
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_weights_compute_the_same_in_the_host(recipes, name):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = {"sample_size": 16, "in_channels": 4, "out_channels": 4, **DIFFUSERS[name]}
    theirs = UNet2DConditionModel(**config).eval()
    recipes.init_randomly(theirs, seed=3)
    ours = recipes.unet_from_diffusers(config, theirs.state_dict())
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 16, 12, generator=generator)
    text = torch.randn(2, 11, config["cross_attention_dim"], generator=generator)
    t = torch.tensor([500, 20])
    added, y = {}, None
    if "addition_embed_type" in config:
        pooled = torch.randn(2, 16, generator=generator)
        ids = torch.tensor([[128.0, 96.0, 0.0, 8.0, 128.0, 96.0]]).repeat(2, 1)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        y = ours.model.encode_adm(
            pooled_output=pooled, height=128, width=96, crop_h=0, crop_w=8, target_height=128, target_width=96
        )
    with torch.no_grad():
        expected = theirs(x, t, text, **added).sample
        got = ours.model.diffusion_model(x, t, context=text, y=y, transformer_options={})
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
