"""A LoRA in IP-Adapter's numbering as trainable layers of the UNet, and back, as FaceID and StoryMaker bring one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..injection.sites import diffusers_layers, sites_of_diffusers_unet
from ..weights.lora import LoraPair
from ..weights.lora_files import slot_name
from .base.lora import ADAPTER, add_lora, fill_lora, trained_pairs

Place = tuple[int, str]  # slot, and the layer in it, such as to_out.0


def fresh_slot_lora(unet: nn.Module, rank: int) -> dict[str, Tensor]:
    """An untrained LoRA for all attention layers, which changes nothing yet, under `<slot>.<layer>_lora.*`."""
    weights: dict[str, Tensor] = {}
    for site in sites_of_diffusers_unet(unet):
        for slot, path in ((site.slot - 1, "attn1"), (site.slot, "attn2")):
            block: Any = unet.get_submodule(f"{site.diffusers_path}.{path}")
            layers = {"to_q": block.to_q, "to_k": block.to_k, "to_v": block.to_v, "to_out": block.to_out[0]}
            for name, layer in layers.items():
                weights[f"{slot}.{name}_lora.down.weight"] = torch.randn(rank, layer.in_features) / rank
                weights[f"{slot}.{name}_lora.up.weight"] = torch.zeros(layer.out_features, rank)
    return weights


def train_slot_lora(unet: nn.Module, pairs: Mapping[Place, LoraPair]) -> dict[str, nn.Parameter]:
    """Give the UNet trainable layers that start from these; returns them under `<slot>.<layer>_lora.*`."""
    paths = _paths(unet, pairs)
    by_path = {paths[place]: pair for place, pair in pairs.items()}
    add_lora(unet, by_path, rank=next(iter(by_path.values())).rank)
    fill_lora(unet, by_path)
    trained = {}
    for place, path in paths.items():
        layer: Any = unet.get_submodule(path)
        for half, matrices in (("down", layer.lora_A), ("up", layer.lora_B)):
            trained[f"{slot_name(*place)}.{half}.weight"] = matrices[ADAPTER].weight
    return trained


def trained_slot_lora(unet: nn.Module, places: Mapping[Place, LoraPair]) -> dict[str, Tensor]:
    """What `train_slot_lora` gave the UNet, as it is now, under the same names."""
    pairs, weights = trained_pairs(unet), {}
    for place, path in _paths(unet, places).items():
        name = slot_name(*place)
        weights[f"{name}.down.weight"], weights[f"{name}.up.weight"] = pairs[path].down, pairs[path].up
    return weights


def _paths(unet: nn.Module, places: Mapping[Place, LoraPair]) -> dict[Place, str]:
    """The path in the UNet of every layer, in the LoRA's own order."""
    paths = diffusers_layers(sites_of_diffusers_unet(unet))
    return {(slot, layer): f"{paths[slot]}.{layer}" for slot, layer in places}
