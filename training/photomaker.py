"""What training PhotoMaker needs beyond its inference: an untrained adapter, trainable parts, and the official file
back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters.networks import FuseModule, PerceiverSizes
from ..adapters.photomaker import RESAMPLER_HEAD_WIDTH, IdEncoder, PhotoMaker, QFormer
from ..errors import LikenessError
from ..injection.plan import check_fit
from ..injection.sites import sites_of_diffusers_unet
from ..weights.files import read_weights
from ..weights.lora import LoraPair
from .base.lora import Reach, continue_lora, lora_parameters, lora_targets, trained_pairs
from .ip_adapter import text_width

_TOWER = "vision_model."
_SHARE = 768 / 2048  # of the first projection in the width of the text
_DEPTH, _TOKENS = 4, 2  # of version 2's network


def fresh_photomaker(unet: nn.Module, encoder: Path, rank: int = 64, id_dim: int | None = None) -> dict[str, Tensor]:
    """Weights of an untrained adapter for this UNet under the official keys, around a CLIP image encoder.

    id_dim: width of the embedding that version 2 reads; None: version 1. Raises LikenessError when the file is no CLIP
    image encoder.
    """
    found, _ = read_weights(encoder)
    tower = {key: value.float() for key, value in found.items() if key.startswith(_TOWER)}
    tower = {key: value for key, value in tower.items() if not key.endswith("position_ids")}
    if f"{_TOWER}pre_layrnorm.weight" not in tower or "visual_projection.weight" not in found:
        raise LikenessError(
            f"'{encoder.name}' is no CLIP image encoder in transformers' layout: write that of CLIP ViT-L/14 into "
            "data.encoder."
        )
    dim, width = text_width(unet), tower[f"{_TOWER}pre_layrnorm.weight"].shape[0]
    own = found["visual_projection.weight"].float()
    first = len(own) if len(own) < dim else round(_SHARE * dim)
    weights = dict(tower)
    weights["visual_projection.weight"] = own if len(own) == first else _linear(width, first)
    weights["visual_projection_2.weight"] = _linear(width, dim - first)
    weights |= {f"fuse_module.{key}": value.detach() for key, value in FuseModule(dim).state_dict().items()}
    if id_dim is not None:
        sizes = PerceiverSizes(width, dim, _DEPTH, max(1, dim // 128), RESAMPLER_HEAD_WIDTH, 4 * dim, dim)
        network = QFormer(id_dim, 2 * id_dim, _TOKENS, sizes)
        weights |= {f"qformer_perceiver.{key}": value.detach() for key, value in network.state_dict().items()}
    lora: dict[str, Tensor] = {}
    for path in lora_targets(unet, Reach.ATTENTION):
        layer = unet.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        lora |= _lora_keys(
            path, LoraPair(torch.randn(rank, layer.in_features) / rank, torch.zeros(layer.out_features, rank))
        )
    return {f"id_encoder.{key}": value for key, value in weights.items()} | lora


def _linear(given: int, made: int) -> Tensor:
    return nn.Linear(given, made, bias=False).weight.detach()


def _lora_keys(path: str, pair: LoraPair) -> dict[str, Tensor]:
    """down_blocks.0…attn1.to_out.0 -> lora_weights.unet.down_blocks.0…attn1.processor.to_out_lora.{down,up}.weight"""
    name = re.sub(r"\.(to_\w+?)(\.0)?$", r".processor.\1_lora", path)
    return {f"lora_weights.unet.{name}.{half}.weight": getattr(pair, half) for half in ("down", "up")}


def trainable_encoder(encoder: IdEncoder, layers: int) -> tuple[dict[str, nn.Parameter], int]:
    """Free an encoder but for the first layers of its tower: parameters by their official names, and how many layers
    stay frozen."""
    tower = encoder.vision_model
    count = len(tower.encoder.layers)  # type: ignore[arg-type]
    frozen = max(0, count - layers)
    still = [f"{_TOWER}embeddings.", f"{_TOWER}pre_layrnorm."]
    still += [f"{_TOWER}encoder.layers.{i}." for i in range(frozen)]
    if encoder.qformer_perceiver is not None:  # which reads the tower's states before their norm
        still += [f"{_TOWER}post_layernorm.", "visual_projection"]
    trained = {
        key: parameter for key, parameter in encoder.float().named_parameters() if not key.startswith(tuple(still))
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained, frozen


def train_lora(adapter: PhotoMaker, unet: nn.Module) -> dict[str, nn.Parameter]:
    """Give the UNet trainable layers that start from the adapter's LoRA."""
    check_fit(adapter, sites_of_diffusers_unet(unet), type(unet).__name__)
    continue_lora(unet, adapter.lora_pairs())
    return lora_parameters(unet)


def official_weights(adapter: PhotoMaker, unet: nn.Module) -> dict[str, Tensor]:
    """The adapter as it is now, with the official keys."""
    weights: dict[str, Tensor] = {}
    encoder: Mapping[str, Tensor] = adapter.id_encoder.state_dict()
    weights |= {f"id_encoder.{key}": value.detach().clone() for key, value in encoder.items()}
    for path, pair in trained_pairs(unet).items():
        weights |= _lora_keys(path, LoraPair(pair.down, pair.scale * pair.up))
    return weights
