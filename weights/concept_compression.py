"""The difference of a trained weight as two thin matrices: W − W0 ≈ u v, by singular values (Custom Diffusion,
arXiv 2212.04488, section 4, 'compressing')."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from ..errors import LikenessError
from .concepts import Concept, Layout, check_base, whole_weight
from .lora import LoraPair


class RankRule(Enum):
    """How many components are kept; the value is what a user chooses."""

    SHARE = "share kept"  # the fewest that hold at least the share, one at least
    OFFICIAL = "official"  # those before the first at which the share is exceeded; may be none
    FIXED = "fixed rank"


def rank_by_share(values: Tensor, share: float) -> int:
    """The fewest components that hold at least this share of the singular values' sum, at least 1."""
    running = values.double().cumsum(0)
    return int((running >= (share - 1e-9) * running[-1]).nonzero()[0]) + 1


def rank_official(values: Tensor, share: float) -> int:
    """The index of the first component at which the running share exceeds the ratio: what comes before is kept."""
    exceeded = ((values / values.sum()).cumsum(0) > share).nonzero()
    return int(exceeded[0]) if len(exceeded) else len(values) - 1


def rank_choice(rule: RankRule, share: float, rank: int) -> Callable[[Tensor], int]:
    """The rank of each layer from its singular values. LikenessError for an impossible share or rank."""
    if rule is RankRule.FIXED:
        if rank < 1:
            raise LikenessError(f"The rank {rank} keeps nothing: enter at least 1.")
        return lambda values: min(rank, len(values))
    if not 0 < share <= 1:
        raise LikenessError(f"The share {share:g} is out of range: enter a number above 0 and up to 1, such as 0.6.")
    chosen = rank_official if rule is RankRule.OFFICIAL else rank_by_share
    return lambda values: chosen(values, share)


def compress(difference: Tensor, rank_of: Callable[[Tensor], int]) -> LoraPair:
    """W − W0, (o, d), as a pair: up = u = U diag(s), down = v = Vᵀ."""
    u, s, vt = torch.linalg.svd(difference.float(), full_matrices=False)
    rank = rank_of(s)
    return LoraPair(vt[:rank].contiguous(), (u[:, :rank] * s[:rank]).contiguous())


def compress_concept(concept: Concept, base: Mapping[str, Tensor], rank_of: Callable[[Tensor], int]) -> Concept:
    """The same with its keys and values as pairs. Queries and output stay whole, as the official code leaves them."""
    check_base(concept, base)
    weights: dict[str, Tensor | LoraPair] = {
        name: compress(whole_weight(concept, name, base[name]) - base[name].float(), rank_of)
        if name.endswith(("to_k.weight", "to_v.weight"))
        else value
        for name, value in concept.weights.items()
    }
    return replace(concept, weights=weights, layouts=(Layout.COMPRESSED,))
