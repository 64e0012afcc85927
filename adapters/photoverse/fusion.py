"""How the attention to a face's image joins that to the text (PhotoVerse, equations 3 and 4).

    O = gamma * Attn(Q, K_T, V_T) + sigma * Attn(Q, K_S, V_S)

In use both are 1, and can be set. In training they are drawn for every sample, the same for all layers:

    u < r1   gamma = 2, sigma = 0     the text alone
    u > r2   gamma = 0, sigma = 2     the image alone
    else     gamma = sigma = 1
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

R1, R2 = 1 / 3, 2 / 3


class Factors(NamedTuple):
    gamma: float = 1.0
    sigma: float = 1.0


class Branches(Enum):
    """Which branches a sample of the training sees; the value is gamma and sigma."""

    TEXT = Factors(2.0, 0.0)
    IMAGE = Factors(0.0, 2.0)
    BOTH = Factors(1.0, 1.0)


def drawn(u: float, r1: float = R1, r2: float = R2) -> Branches:
    """The branches for a number drawn from 0..1; on a border both."""
    if u < r1:
        return Branches.TEXT
    return Branches.IMAGE if u > r2 else Branches.BOTH


@dataclass(frozen=True, eq=False)
class Fusion:
    """An `effects.Merge`: gamma T + sigma I, written as what is added to T.

    gamma, sigma: numbers, or (batch, 1, 1), one for each sample. Where the keys are zero, because a half of guidance or
    a sample has no face, the text stays as it is.
    """

    gamma: float | Tensor = 1.0
    sigma: float | Tensor = 1.0

    def __call__(self, text: Tensor, identity: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """(gamma - 1) T + sigma I; see `effects.Merge`."""
        has_face = keys.detach().flatten(1).any(dim=1).repeat_interleave(len(text) // len(keys)).view(-1, 1, 1)
        return torch.addcmul(self.sigma * identity, text, ((self.gamma - 1) * has_face).to(text.dtype))
