"""FastComposer's losses (arXiv 2305.10431): every subject's word looks where the subject is.

    bg_i  = Σ_p A[p, i] (1 - m_i[p]) / Σ_p (1 - m_i[p])        obj_i = Σ_p A[p, i] m_i[p] / Σ_p m_i[p]
    L(l)  = mean over samples and heads of  Σ_i valid_i (bg_i - obj_i) / Σ_i valid_i

The balanced L1 is this difference of two means: -1 where all attention lies on the subject. Maps are those of `probe`,
(batch, heads, n, L), one for each site; masks m are (batch, n, H, W) at any size, 0..1, soft ones allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-5  # of a denominator


def site_localisation(
    attention: Tensor, masks: Tensor, valid: Tensor, grid: tuple[int, int], normalised: bool = False
) -> Tensor:
    """L of one site: (batch,). valid: (batch, n), which of the subjects there are. grid: (h, w) of the map's pixels.

    normalised: every map is divided by its maximum. A sample without subjects gives 0.
    """
    m = F.interpolate(masks.float(), grid, mode="bilinear", align_corners=False, antialias=True)
    m = m.flatten(2).unsqueeze(1)  # (batch, 1, n, L)
    a = attention.float()
    if normalised:
        a = a / (a.amax(-1, keepdim=True) + SMALLEST)
    background = (a * (1 - m)).sum(-1) / ((1 - m).sum(-1) + SMALLEST)
    subject = (a * m).sum(-1) / (m.sum(-1) + SMALLEST)
    there = valid.to(a).unsqueeze(1)
    return (((background - subject) * there).sum(-1) / (there.sum(-1) + SMALLEST)).mean(1)


def localisation(
    maps: Sequence[Tensor],
    masks: Tensor,
    valid: Tensor,
    grids: Sequence[tuple[int, int]],
    normalised: bool = False,
) -> Tensor:
    """The mean over the sites, (batch,). grids: of every map, in their order."""
    pairs = zip(maps, grids, strict=True)
    return torch.stack([site_localisation(a, masks, valid, grid, normalised) for a, grid in pairs]).mean(0)


def subject_error(prediction: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """The squared error where any subject is, averaged over all elements: (batch,).

    The mask multiplies both before the square, and the mean still divides by every pixel: a small subject gives a small
    loss. masks: (batch, n, H, W); any value above 0 counts, resized without antialiasing.
    """
    anybody = (masks.sum(1, keepdim=True) > 0).float()
    m = F.interpolate(anybody, target.shape[-2:], mode="bilinear", align_corners=False)
    return ((m * prediction.float()) - (m * target.float())).square().flatten(1).mean(1)
