"""The miniature world as a model to train from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...training.base.model import BaseModel, Codec, TextTower
from .latents import PatchCodec, load_codec
from .networks import build_tokenizer, noise_schedule
from .weights import FOLDER, load_text_encoder, load_unet


def base_model(folder: Path = FOLDER) -> BaseModel:
    """Its denoiser, text encoder and codec, ready for any recipe. LikenessError for a weight file that is missing."""
    return base_of(load_unet(folder), load_text_encoder(folder), load_codec())


def base_of(unet: Any, text_encoder: Any, codec: PatchCodec) -> BaseModel:
    """These networks, which a training will change, ready for any recipe."""
    return BaseModel(unet, (TextTower(build_tokenizer(), text_encoder),), Codec.exact(codec), noise_schedule())
