"""FastComposer files with random weights, in the official layout, for UNets of a few hundred kilobytes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from helpers import official, photomaker

TINY = [(width, 64) for width in (32, 64, 64, 64, 32, 32, 64)]  # of `recipes.tiny_sd15`, in slot order
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "attention_head_dim": 8,
}  # fmt: skip


@cache
def unet(seed: int = 0) -> dict[str, Tensor]:
    """The state dict of a UNet like `recipes.tiny_sd15`, under diffusers' names."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(**UNET).state_dict()


def encoder(dim: int, seed: int = 0, loud: float = 1.0) -> dict[str, Tensor]:
    """`image_encoder` and `postfuse_module`, as wide as the text. loud: how long the fused words are, so that a random
    UNet hears them within a step."""
    images, fuse = official.Maker(seed), official.Maker(seed + 1)
    photomaker.tower(images, photomaker.TOWER)
    images.linear("visual_projection", dim, photomaker.TOWER["width"], bias=False)
    photomaker.fuse_module(fuse, dim)
    fuse.weights["fuse_module.layer_norm.weight"] *= loud
    fused = {key.replace("fuse_module.", "postfuse_module."): value for key, value in fuse.weights.items()}
    return {**{f"image_encoder.{key}": value for key, value in images.weights.items()}, **fused}


def weights(shapes: Any = TINY, seed: int = 0) -> dict[str, Tensor]:
    """A whole file, with a text encoder and a VAE that nobody reads. The UNet is whole where it is a tiny SD1.5's; of
    any other there are the layers that tell it."""
    if list(shapes) == TINY:
        net = unet(seed)
    else:
        paths = photomaker.blocks(shapes)
        net = {f"{p}.attn2.to_k.weight": torch.zeros(shape) for p, shape in zip(paths, shapes, strict=True)}
    return {
        **encoder(shapes[0][1], seed),
        **{f"unet.{key}": value for key, value in net.items()},
        "image_encoder.vision_model.embeddings.position_ids": torch.arange(5).unsqueeze(0),
        "text_encoder.embeddings.position_ids": torch.arange(77).unsqueeze(0),
        "vae.quant_conv.bias": torch.zeros(8),
    }
