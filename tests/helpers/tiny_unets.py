"""diffusers UNets of many layouts with random weights, a few hundred kilobytes each, and adapters that fit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from likeness.adapters.types import IdentityTokens
from likeness.injection.sites import AttentionSite

_COMMON: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "layers_per_block": 2,
}
_XL = {"transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True}
_XL_BLOCKS = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# name -> (configuration, number of cross-attention layers)
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "SD1.5": (
        {
            "block_out_channels": (8, 16, 24, 24),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        },
        16,
    ),
    "SDXL": ({**_XL_BLOCKS, **_XL}, 70),
    "SSD-1B": (
        {
            **_XL_BLOCKS,
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
            "mid_block_type": None,
        },
        34,
    ),
    "KOALA": (
        {
            **_XL_BLOCKS,
            "layers_per_block": 1,
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 2, 5],
            "mid_block_type": None,
        },
        21,
    ),
    "Vega": (
        {
            **_XL_BLOCKS,
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 1, 2],
            "mid_block_type": None,
        },
        15,
    ),
    "small SD": (
        {
            "block_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
        },
        4,
    ),
    "uneven": (
        {
            "block_out_channels": (8, 16, 24),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": (1, 2, 3),
            "transformer_layers_per_block": [1, 2, 3],
        },
        21,
    ),
}  # fmt: skip


def config(layout: str) -> dict[str, Any]:
    return {**_COMMON, **LAYOUTS[layout][0]}


@cache
def unet(layout: str) -> Any:
    """One network per layout; whoever changes it restores it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**config(layout)).eval().requires_grad_(False)


class StandInProjector:
    """Key and value projections that fit some sites, random but fixed by a seed; counts how often it projects."""

    name = "stand-in"

    def __init__(self, sites: Sequence[AttentionSite], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.site_shapes = {site.slot: (site.width, site.context_dim) for site in sites}
        self.weights = {
            slot: torch.randn(2, width, dim, generator=generator) / dim**0.5
            for slot, (width, dim) in self.site_shapes.items()
        }
        self.calls: Counter[int] = Counter()

    def project(self, slot: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.calls[slot] += 1
        keys, values = self.weights[slot]
        return tokens @ keys.T, tokens @ values.T


def tokens(dim: int, seed: int = 0, n: int = 4, rows: int = 1, empty: int | None = None) -> IdentityTokens:
    """Random tokens; `empty` of them in the unconditioned half."""
    generator = torch.Generator().manual_seed(seed)
    return IdentityTokens(
        torch.randn(rows, n, dim, generator=generator), torch.randn(1, empty or n, dim, generator=generator)
    )
