"""What an adapter hands to `injection`: tokens for both halves of guidance, and how strongly each site hears them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteWeight:
    """How strongly one attention site hears the identity.

    `swapped` is the "precise" trick of style transfer: the conditioned half gets nothing and the unconditioned half
    attends to the *conditioned* tokens, so that guidance pushes the picture away from them.
    """

    strength: float
    swapped: bool = False


# One entry per spatial transformer, in execution order (input, middle, output): ComfyUI's `transformer_index`.
SiteWeights = tuple[SiteWeight, ...]

# (keys, values, weight, channels) -> scaled keys and values. keys and values: (batch, n_tokens, channels).
KeyValueScaling = Callable[[Tensor, Tensor, float, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class IdentityTokens:
    """Image tokens of one reference (or several that share one softmax).

    Shapes: `cond` and `uncond` are (rows, n_tokens, dim); rows is 1, or one row per picture of the latent batch.
    """

    cond: Tensor
    uncond: Tensor

    def __post_init__(self) -> None:
        if self.cond.ndim != 3 or self.uncond.ndim != 3:
            raise ValueError("identity tokens must be (rows, n_tokens, dim)")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> IdentityTokens:
        """The same tokens elsewhere or in another precision."""
        return IdentityTokens(self.cond.to(device, dtype), self.uncond.to(device, dtype))
