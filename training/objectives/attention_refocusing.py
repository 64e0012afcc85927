"""Attention refocusing: a concept's token may look only where the concept is (MagiCapture, arXiv 2309.06895).

Maps are those of `probe`: one tensor per attention site, (batch, heads, n_tokens, L), the column of each wanted token
in the softmax over the prompt; L = h·w positions on one grid. Regions are (batch, n_tokens, H, W) at latent size, 0..1:
where each token belongs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

INSIDE = 0.5  # a region's value from which a pixel counts as inside


def attention_refocusing(maps: Sequence[Tensor], regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """‖ mean_k S(A_k) − M ‖² where S(A_k) is taken as 1 inside the region, as the official code does: (batch,).

    The mean over all sites and heads comes first, then the square; outside, the target is M itself, whose floor is
    about 0.01. Mean over pixels and tokens.
    """
    inside = regions >= INSIDE
    scaled = _scaled(maps, grid, regions)  # (batch, maps, n_tokens, H, W)
    refocused = torch.where(inside.unsqueeze(1), 1.0, scaled).mean(1)
    return (refocused - regions).square().mean(dim=(1, 2, 3))


def attention_refocusing_per_map(maps: Sequence[Tensor], regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """E_k ‖ (S(A_k) − M) ⊙ (1 − M) ‖², the paper's form, with M binary: (batch,).

    Every map answers for itself, and the target outside is 0.
    """
    outside = regions < INSIDE
    scaled = _scaled(maps, grid, regions)
    return (scaled * outside.unsqueeze(1)).square().mean(dim=(1, 2, 3, 4))


def _scaled(maps: Sequence[Tensor], grid: tuple[int, int], regions: Tensor) -> Tensor:
    """S: every map at the regions' size and stretched to 0..1: (batch, sites · heads, n_tokens, H, W), float32.

    The extremes are constants for the gradient. A map that is zero everywhere stays zero.
    """
    stacked = torch.cat(list(maps), dim=1).float().unflatten(-1, grid)
    resized = F.interpolate(stacked.flatten(0, 1), regions.shape[-2:], mode="bilinear", align_corners=False)
    resized = resized.unflatten(0, stacked.shape[:2])
    lowered = resized - resized.detach().amin(dim=(-2, -1), keepdim=True)
    highest = lowered.detach().amax(dim=(-2, -1), keepdim=True)
    return lowered / torch.where(highest == 0, 1.0, highest)
