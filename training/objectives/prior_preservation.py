"""Class-specific prior preservation (DreamBooth, arXiv 2208.12242, equation 2).

L = E‖ε − ε_θ(z_t, c)‖² + λ E‖ε' − ε_θ(z'_t', c_pr)‖²
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PriorPreservation(NamedTuple):
    """Means over their halves of the batch, and instance + λ · prior. All scalars."""

    instance: Tensor
    prior: Tensor
    total: Tensor


def prior_preservation(
    losses: Tensor, prior_weight: float, instance_weights: Tensor | None = None
) -> PriorPreservation:
    """The loss of a batch that holds the person's photos in its first half and class images in its second.

    losses: (2 n,), the reconstruction loss of each sample. prior_weight: λ. instance_weights: (n,), for example
    min-SNR weights of the first half's timesteps; class images are never reweighted (diffusers).
    """
    mine, others = losses.chunk(2)
    instance = (mine if instance_weights is None else mine * instance_weights).mean()
    prior = others.mean()
    return PriorPreservation(instance, prior, instance + prior_weight * prior)
