"""Small models for the training tests, built from seeds."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from likeness.training.base.model import BaseModel, Codec, TextTower
from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.data.examples import Example


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


def small_text_encoder(seed: int = 0, width: int = 24, projection: bool = False) -> Any:
    """A CLIP text encoder of two layers for the tokenizer of the miniature world."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(small_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=16,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


@functools.cache
def small_tokenizer() -> Any:
    from likeness.miniature.models.networks import build_tokenizer

    return build_tokenizer()


def small_vae(seed: int = 0) -> Any:
    """A VAE of two levels: a latent is half as large as its image."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 16),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        norm_num_groups=4,
    ).eval()


def small_base(sdxl: bool = False, prediction: Prediction = Prediction.EPSILON) -> BaseModel:
    """A base model of 32x32 pixels, 16x16 latents and attention maps of 16x16 and 8x8."""
    if sdxl:
        unet = small_unet(
            cross_attention_dim=24 + 32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        )
        towers = (
            TextTower(small_tokenizer(), small_text_encoder(1), "clip_l"),
            TextTower(small_tokenizer(), small_text_encoder(2, 32, projection=True), "clip_g"),
        )
    else:
        unet, towers = small_unet(), (TextTower(small_tokenizer(), small_text_encoder(1)),)
    return BaseModel(unet.eval(), towers, Codec.of(small_vae()), NoiseSchedule.scaled_linear(prediction))


def small_photo(number: int, caption: str = "", side: int = 32) -> Example:
    """Noise with a face in the middle."""
    pixels = torch.rand(3, side, side, generator=torch.Generator().manual_seed(number)) * 2 - 1
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : 3 * side // 4, side // 4 : side // 2] = 1
    return Example(pixels, caption, mask)


@pytest.fixture
def make_base() -> Any:
    return small_base


@pytest.fixture
def make_photo() -> Any:
    return small_photo


@pytest.fixture
def base() -> BaseModel:
    return small_base()


@pytest.fixture
def photos() -> list[Example]:
    return [small_photo(number) for number in range(3)]
