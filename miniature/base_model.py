"""The miniature world as a model to train from."""

from __future__ import annotations

from pathlib import Path

from ..training.base_model import BaseModel, Codec, TextTower
from .latents import load_codec
from .networks import build_tokenizer, noise_schedule
from .weights import FOLDER, load_text_encoder, load_unet


def base_model(folder: Path = FOLDER) -> BaseModel:
    """Its denoiser, text encoder and codec, ready for any recipe. LikenessError for a weight file that is missing."""
    tower = TextTower(build_tokenizer(), load_text_encoder(folder))
    return BaseModel(load_unet(folder), (tower,), Codec.exact(load_codec()), noise_schedule())
