"""Small models for the training tests, built from seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def small_unet(seed: int = 0, **overrides: Any) -> Any:
    """A two-level UNet of the SD1.5 family: with 32x32 latents its second level runs at 16x16."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **overrides})


@pytest.fixture
def unet() -> Any:
    return small_unet().requires_grad_(False)


@pytest.fixture
def make_unet() -> Any:
    return small_unet
