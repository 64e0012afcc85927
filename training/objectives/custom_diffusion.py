"""Custom Diffusion's loss (arXiv 2212.04488, code of its diffusers trainer).

    L_t = mean_b Σ_chw e_b m_b / Σ_hw m_b     L_p = mean (ε' − ε_θ(z'_t, c_pr))²     e = (ε − ε_θ(z_t, c))²

The mask has one channel and the error four, so that a target weighs four times as much as a class image.
"""

from __future__ import annotations

from torch import Tensor


def target_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Every sample's masked error: (batch,). mask: (batch, 1, h, w) at latent size; 0 where it is empty."""
    errors = (prediction.float() - target.float()).square() * mask
    area = mask.sum(dim=(1, 2, 3))
    return errors.sum(dim=(1, 2, 3)) / area.where(area > 0, 1.0)
