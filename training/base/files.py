"""A base model from a checkpoint or a folder in diffusers' layout, without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import LikenessError
from ...weights.families import TRAINABLE, listed, text_encoder_of_width
from .model import BaseModel, Codec, TextTower
from .noise import NoiseSchedule
from .single_file import load_single_file


def load_base(path: Path) -> BaseModel:
    """The base model in a checkpoint or a folder, float32 on the CPU.

    Raises LikenessError when it is none, or a part is missing.
    """
    if path.is_file() or (path.suffix and not path.is_dir()):
        return load_single_file(path)
    if not (path / "model_index.json").is_file():
        raise LikenessError(
            f"The base model '{path}' is not a folder in diffusers' layout (it has no model_index.json): give such a "
            "folder, a .safetensors checkpoint, or 'miniature'."
        )
    try:
        return _diffusers(path)
    except Exception as error:
        raise LikenessError(
            f"The base model '{path}' could not be read ({error}): training needs the unet, text_encoder, tokenizer, "
            f"vae and scheduler of {listed(TRAINABLE, 'or')}."
        ) from error


def _diffusers(folder: Path) -> BaseModel:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def part(kind: Any, name: str) -> Any:
        return kind.from_pretrained(folder / name, local_files_only=True)

    text_models = [CLIPTextModel, CLIPTextModelWithProjection]
    towers = []
    for kind, suffix in zip(text_models, ("", "_2"), strict=True):
        if (folder / f"text_encoder{suffix}").is_dir():
            encoder = part(kind, f"text_encoder{suffix}").eval().requires_grad_(False)
            tokenizer = part(CLIPTokenizer, f"tokenizer{suffix}")
            towers.append(TextTower(tokenizer, encoder, text_encoder_of_width(encoder.config.hidden_size).name))
    unet = part(UNet2DConditionModel, "unet").eval().requires_grad_(False)
    vae = part(AutoencoderKL, "vae").eval().requires_grad_(False)
    return BaseModel(unet, tuple(towers), Codec.of(vae), NoiseSchedule.of(part(DDPMScheduler, "scheduler")))
