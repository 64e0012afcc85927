"""How well the network's prediction meets its target, over the whole image or inside a mask.

Predictions and targets are (batch, channels, h, w); masks are (batch, 1, H, W) at any size, 0..1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FLOOR = 0.01  # what a MagiCapture mask weighs outside, before the temperature


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """‖ε̂ − ε‖² averaged over a sample's elements, float32: (batch,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def masked_squared_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """m · (ε̂ − ε)² averaged over all elements, masked or not: (batch,).

    The mask is resized by averaging areas. Not renormalised: a small mask gives a small loss (kohya-ss/sd-scripts;
    with a binary mask at latent size, also Break-A-Scene's masked loss).
    """
    m = F.interpolate(mask.float(), target.shape[-2:], mode="area")
    return (m * (prediction.float() - target.float()).square()).flatten(1).mean(1)


def soft_mask(mask: Tensor, size: tuple[int, int], temperature: float = 1.0) -> Tensor:
    """MagiCapture's mask at latent size: ((m + 0.01)^T) / max, nearest neighbour: (batch, 1, *size).

    Outside it weighs 0.01 to 0.02, never 0. The maximum is each sample's own.
    """
    m = (F.interpolate(mask.float(), size, mode="nearest") + FLOOR) ** temperature
    return m / m.amax(dim=(1, 2, 3), keepdim=True)


def masked_reconstruction(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """‖m ⊙ ε̂ − m ⊙ ε‖² / (C Σm), MagiCapture's reconstruction loss: (batch,).

    mask: (batch, 1, h, w) at latent size, from `soft_mask`. Normalised over the mask's area, so a small face weighs as
    much as a large one (code of arXiv 2309.06895; the paper writes the plain masked norm).
    """
    squared = (mask * (prediction.float() - target.float())).square()
    return squared.sum(dim=(1, 2, 3)) / (target.shape[1] * mask.sum(dim=(1, 2, 3)))
