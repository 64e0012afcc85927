"""StoryMaker's losses (arXiv 2409.12576, section 3.4): each character's tokens look where that character is.

    L_attn = 1/P · Σᵢ mean (Sᵢ − Mᵢ)²,   i over the background and P characters
    Sᵢ     = mean over layers of Σ over i's tokens of the adapter's attention map
    L_mse  = mean e·(1 + w·m),           m = Σ Mᵢ clamped to 0..1

One softmax spans the tokens of all characters and of the background, so that the Sᵢ of a pixel add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError


def attention_loss(
    maps: Sequence[Tensor], masks: Tensor, tokens_each: int = 20, divisor: float | None = None
) -> Tensor:
    """L_attn, before its weight of 0.1: (batch,).

    maps: of every cross-attention layer, (batch, (1 + P)·tokens_each, pixels), the softmax over the adapter's tokens
    alone, averaged over heads. Layers at half the latent's sides are left out. masks: (batch, P, H, W) at latent size,
    0..1. divisor: the number of layers the sum is divided by; None counts those used (60 in SDXL, as the official
    constant).
    """
    height, width = masks.shape[-2] // 2, masks.shape[-1] // 2
    coarse = -(-height // 2), -(-width // 2)  # a stride of 2 rounds up
    used = [layer for layer in maps if layer.shape[-1] != height * width]
    if not used:
        raise LikenessError(
            "The attention loss has no layer coarser than half the latent's sides: train on images of the size the "
            "base model was made for."
        )
    belongs = F.interpolate(masks.float(), (height, width), mode="bilinear", align_corners=False)
    ground = 1 - belongs.sum(1, keepdim=True).clamp(0, 1)
    targets = torch.cat([ground, belongs], dim=1)  # (batch, 1 + P, h, w)
    looks = 0
    for layer in used:  # resampling is linear: the sum over an owner's tokens may come first
        owners = layer.float().unflatten(1, (-1, tokens_each)).sum(2).unflatten(-1, coarse)
        looks = looks + F.interpolate(owners, (height, width), mode="bilinear", align_corners=False)
    looks = looks / (len(used) if divisor is None else divisor)
    return (looks - targets).square().mean(dim=(2, 3)).sum(1) / masks.shape[1]


def masked_error(prediction: Tensor, target: Tensor, masks: Tensor, weight: float = 5.0) -> Tensor:
    """L_mse: the squared error, counted 1 + weight times where a character is: (batch,).

    prediction, target: (batch, channels, H, W); masks: (batch, P, H, W) of the characters, 0..1.
    """
    inside = masks.sum(1, keepdim=True).clamp(0, 1)
    error = (prediction.float() - target.float()).square()
    return (error + weight * inside * error).mean(dim=(1, 2, 3))
