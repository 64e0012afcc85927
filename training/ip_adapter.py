"""What training an IP-Adapter needs beyond its inference: trainable parts, dropped images, and the official file back.

The objective is the plain one (arXiv 2308.06721, equation 5): the mean of ‖ε − ε_θ(z_t, t, c_text, c_image)‖² over a
batch in which images, texts or both are dropped at random. The adapter enters through `injection.diffusers` with
`live=True`, its LoRA (FaceID) as trainable layers of the UNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.ip_adapter.adapter import IPAdapter
from ..adapters.ip_adapter.evidence import Evidence
from ..injection.plan import check_fit
from ..injection.sites import diffusers_layers, sites_of_diffusers_unet
from ..weights.lora_files import slot_name
from .base.lora import ADAPTER, add_lora, fill_lora, trained_pairs


def fresh_faceid(
    unet: nn.Module, id_dim: int = 512, tokens: int = 4, hidden: int | None = None, rank: int = 16
) -> dict[str, Tensor]:
    """Weights of an untrained FaceID adapter for this UNet under the official keys, as the official trainer starts.

    The projections of the image tokens are those of the text, so that they are understood from the first step; the
    LoRA changes nothing yet. hidden: of the image projection, default twice `id_dim`.
    """
    sites = sites_of_diffusers_unet(unet)
    weights: dict[str, Tensor] = {}
    for site in sites:
        attention: Any = unet.get_submodule(f"{site.diffusers_path}.attn2")
        for name in ("to_k", "to_v"):
            weights[f"ip_adapter.{site.slot}.{name}_ip.weight"] = getattr(attention, name).weight.detach().clone()
        for slot, path in ((site.slot - 1, "attn1"), (site.slot, "attn2")):
            block: Any = unet.get_submodule(f"{site.diffusers_path}.{path}")
            layers = {"to_q": block.to_q, "to_k": block.to_k, "to_v": block.to_v, "to_out": block.to_out[0]}
            for name, layer in layers.items():
                key = f"ip_adapter.{slot}.{name}_lora"
                weights[f"{key}.down.weight"] = torch.randn(rank, layer.in_features) / rank
                weights[f"{key}.up.weight"] = torch.zeros(layer.out_features, rank)
    dim = next(value.shape[1] for key, value in weights.items() if key.endswith("to_k_ip.weight"))
    hidden = hidden or 2 * id_dim
    projection = nn.Sequential(nn.Linear(id_dim, hidden), nn.GELU(), nn.Linear(hidden, tokens * dim))
    norm = nn.LayerNorm(dim)
    weights |= {f"image_proj.proj.{key}": value.detach() for key, value in projection.state_dict().items()}
    return weights | {f"image_proj.norm.{key}": value.detach() for key, value in norm.state_dict().items()}


def make_trainable(adapter: IPAdapter, unet: nn.Module) -> dict[str, nn.Parameter]:
    """Free the adapter's networks and, where its file has a LoRA, give the UNet trainable layers that start from it.

    Returns every trained parameter under its official key, float32. The UNet's own weights are frozen. Raises
    LikenessError when the adapter was made for another UNet.
    """
    check_fit(adapter, sites_of_diffusers_unet(unet), type(unet).__name__)
    unet.requires_grad_(False)
    trained = dict(adapter.float().requires_grad_(True).named_parameters())
    layers = _lora_layers(adapter, unet)
    if not layers:
        return trained
    pairs = {layers[place]: pair for place, pair in adapter.lora_pairs().items()}
    add_lora(unet, pairs, rank=next(iter(pairs.values())).rank)
    fill_lora(unet, pairs)
    for place, path in layers.items():
        layer: Any = unet.get_submodule(path)
        for half, matrices in (("down", layer.lora_A), ("up", layer.lora_B)):
            trained[f"ip_adapter.{slot_name(*place)}.{half}.weight"] = matrices[ADAPTER].weight
    return trained


def official_weights(adapter: IPAdapter, unet: nn.Module) -> dict[str, Tensor]:
    """The adapter as it is now, with the official keys: what to write into a file that any IP-Adapter node loads."""
    weights = {key: value.detach().clone() for key, value in adapter.state_dict().items()}
    layers = _lora_layers(adapter, unet)
    if layers:
        pairs = trained_pairs(unet)
        for place, path in layers.items():
            name = f"ip_adapter.{slot_name(*place)}"
            weights[f"{name}.down.weight"], weights[f"{name}.up.weight"] = pairs[path].down, pairs[path].up
    return weights


def drop_images(evidence: Evidence, dropped: Tensor) -> Evidence:
    """Evidence in which the images of some samples are taken away, before any network sees them.

    dropped: (batch,), bool. An embedding becomes zero; features become those of the unconditioned image, or zero
    where the evidence has none (base variant).
    """

    def without(value: Tensor | None, empty: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        rows = dropped.view(-1, *[1] * (value.ndim - 1))
        return torch.where(rows, torch.zeros_like(value) if empty is None else empty, value)

    features = without(evidence.features, evidence.uncond_features)
    return Evidence(without(evidence.id_embeds, None), features, evidence.uncond_features)


def _lora_layers(adapter: IPAdapter, unet: nn.Module) -> dict[tuple[int, str], str]:
    """(slot, layer) -> path in the UNet of every layer that the adapter's LoRA changes, in its own order."""
    paths = diffusers_layers(sites_of_diffusers_unet(unet))
    return {(slot, layer): f"{paths[slot]}.{layer}" for slot, layer in adapter.lora_pairs()}
