"""What an adapter hands to `injection`: tokens for both halves of guidance, and a strength per attention site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import LARGEST_FACTOR, check_number


@dataclass(frozen=True)
class SiteWeight:
    """Strength of the identity at one attention site.

    `swapped` is the "precise" trick of style transfer: the conditioned half gets nothing and the unconditioned half
    attends to the *conditioned* tokens, so that guidance pushes the image away from them.
    """

    strength: float
    swapped: bool = False

    @classmethod
    def of(cls, strength: float, swapped: bool) -> SiteWeight:
        """A site with strength 0 is the same either way round."""
        return cls(strength, swapped and strength != 0.0)


# One entry per spatial transformer, in execution order (input, middle, output): ComfyUI's `transformer_index`.
SiteWeights = tuple[SiteWeight, ...]

# (keys, values, weight, channels) -> scaled keys and values. keys and values: (batch, n_tokens, channels).
KeyValueScaling = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


def v_only(keys: Tensor, values: Tensor, weight: float, channels: int) -> tuple[Tensor, Tensor]:
    """w · softmax(q Kᵀ) V: the official adapter."""
    return keys, values * weight


def scale(weights: SiteWeights, factor: float) -> SiteWeights:
    """The same spread, `factor` times as strong."""
    check_number(factor, "The factor", -LARGEST_FACTOR, LARGEST_FACTOR)
    return tuple(SiteWeight.of(site.strength * factor, site.swapped) for site in weights)


@dataclass(frozen=True, eq=False)
class IdentityTokens:
    """Image tokens of one reference (or several that share one softmax).

    Shapes: `cond` and `uncond` are (rows, n_tokens, dim); rows is 1, or one row per image of the latent batch.
    """

    cond: Tensor
    uncond: Tensor

    def __post_init__(self) -> None:
        if self.cond.ndim != 3 or self.uncond.ndim != 3:
            raise ValueError("identity tokens must be (rows, n_tokens, dim)")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> IdentityTokens:
        """The same tokens elsewhere or in another precision."""
        return IdentityTokens(self.cond.to(device, dtype), self.uncond.to(device, dtype))
