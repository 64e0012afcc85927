"""SeFi-IDE's subject-wise attention loss: every word of a prompt looks where it looks in the class word's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class Reduction(str, Enum):
    """Over queries and tokens; batch, heads and layers are always averaged."""

    SUM = "sum"
    MEAN = "mean"


def attention_difference(
    queries: Tensor, keys: Tensor, reference_keys: Tensor, positions: Tensor, heads: int, reduction: Reduction
) -> Tensor:
    """The loss of one layer. The reference is detached, its queries included; both are softmaxes over all tokens.

    queries: (batch, L, width), keys: (batch, tokens, width), positions: (batch, n) of the compared tokens.
    """
    from ..probe import columns_of

    target = columns_of(queries, keys, positions, heads)
    with torch.no_grad():
        reference = columns_of(queries, reference_keys, positions, heads)
    return difference_of_maps(target, reference, reduction)


def difference_of_maps(
    target: Tensor, reference: Tensor, reduction: Reduction, counted: Tensor | None = None
) -> Tensor:
    """The same of maps (batch, heads, n, L). counted: (batch, n), which of the tokens count; None: all of them."""
    squared = (target - reference).square()
    if counted is not None:
        squared = squared * counted[:, None, :, None]
    summed = squared.sum((2, 3)).mean()
    if reduction is Reduction.SUM:
        return summed
    tokens = squared.shape[2] if counted is None else counted.sum(1).float().mean()
    return summed / (tokens * squared.shape[3])


def subject_attention(layers: Sequence[Tensor]) -> Tensor:
    """The mean of the layers' losses."""
    return torch.stack(list(layers)).mean()
