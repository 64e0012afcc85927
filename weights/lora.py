"""One layer's low-rank change, whatever file or network it comes from (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One layer's change. Linear: down (r, in), up (out, r). Convolution: down (r, in, k, k), up (out, r, 1, 1), or
    with `mid` (r, r, k, k) between two 1x1 kernels. alpha None, or 0 as in old files, means alpha = rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """α / r"""
        return self.alpha / self.rank if self.alpha else 1.0

    def delta(self, strength: float = 1.0) -> Tensor:
        """The change of the weight, in its shape and in float32."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            product = torch.einsum("op,pqkl,qi->oikl", up.flatten(1), self.mid.float(), down.flatten(1))
        else:
            product = (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
        return strength * self.scale * product
