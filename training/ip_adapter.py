"""What training an IP-Adapter needs beyond its inference: trainable parts, dropped images, and the official file back.

The objective is the plain one (arXiv 2308.06721, equation 5): the mean of ‖ε − ε_θ(z_t, t, c_text, c_image)‖² over a
batch in which images, texts or both are dropped at random. The adapter enters through `injection.diffusers` with
`live=True`, its LoRA (FaceID) as trainable layers of the UNet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.ip_adapter.adapter import HEAD_WIDTH, IPAdapter
from ..adapters.ip_adapter.evidence import Evidence
from ..adapters.networks import IdProjection, ImageProjection, PerceiverSizes, Resampler
from ..injection.plan import check_fit
from ..injection.sites import AttentionSite, sites_of_diffusers_unet
from .slot_lora import fresh_slot_lora, train_slot_lora, trained_slot_lora


def fresh_faceid(
    unet: nn.Module, id_dim: int = 512, tokens: int = 4, hidden: int | None = None, rank: int = 16
) -> dict[str, Tensor]:
    """Weights of an untrained FaceID adapter for this UNet under the official keys, as the official trainer starts.

    The LoRA changes nothing yet. hidden: of the image projection, default twice `id_dim`.
    """
    lora = {f"ip_adapter.{key}": value for key, value in fresh_slot_lora(unet, rank).items()}
    weights = fresh_key_values(unet) | lora
    network = IdProjection(id_dim, hidden or 2 * id_dim, tokens, text_width(unet))
    return weights | image_projection(network)


def fresh_base(unet: nn.Module, embed_dim: int, tokens: int = 4) -> dict[str, Tensor]:
    """Those of an untrained adapter that reads the pooled embedding of an image."""
    return fresh_key_values(unet) | image_projection(ImageProjection(embed_dim, tokens, text_width(unet)))


def fresh_plus(unet: nn.Module, hidden_dim: int, tokens: int = 16) -> dict[str, Tensor]:
    """Those of an untrained Plus adapter, which reads the image encoder's last but one layer."""
    return fresh_key_values(unet) | image_projection(fresh_resampler(hidden_dim, text_width(unet), tokens))


def fresh_resampler(feature_dim: int, out_dim: int, queries: int, depth: int = 4) -> Resampler:
    """A resampler of the published sizes: as wide as the text of SD1.5, 1280 for SDXL."""
    dim = min(out_dim, 1280)
    heads = max(1, dim // HEAD_WIDTH)
    network = Resampler(PerceiverSizes(feature_dim, dim, depth, heads, HEAD_WIDTH, 4 * dim, out_dim), queries)
    nn.init.normal_(network.latents, std=dim**-0.5)
    return network


def fresh_key_values(unet: nn.Module) -> dict[str, Tensor]:
    """The projections of the image tokens begin as those of the text, so that they are understood from the first step:
    under the official keys of all sites."""
    return {
        f"ip_adapter.{site.slot}.{name}_ip.weight": getattr(_attention(unet, site), name).weight.detach().clone()
        for site in sites_of_diffusers_unet(unet)
        for name in ("to_k", "to_v")
    }


def text_width(unet: nn.Module) -> int:
    """Width of the tokens that the UNet's cross-attention reads."""
    return sites_of_diffusers_unet(unet)[0].context_dim


def image_projection(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights as those of an adapter's image projection."""
    return {f"image_proj.{key}": value.detach() for key, value in network.state_dict().items()}


def _attention(unet: nn.Module, site: AttentionSite) -> Any:
    return unet.get_submodule(f"{site.diffusers_path}.attn2")


def make_trainable(adapter: IPAdapter, unet: nn.Module) -> dict[str, nn.Parameter]:
    """Free the adapter's networks and, where its file has a LoRA, give the UNet trainable layers that start from it.

    Returns every trained parameter under its official key, float32. The UNet's own weights are frozen. Raises
    LikenessError when the adapter was made for another UNet.
    """
    check_fit(adapter, sites_of_diffusers_unet(unet), type(unet).__name__)
    unet.requires_grad_(False)
    trained = dict(adapter.float().requires_grad_(True).named_parameters())
    pairs = adapter.lora_pairs()
    lora = train_slot_lora(unet, pairs) if pairs else {}
    return trained | {f"ip_adapter.{key}": parameter for key, parameter in lora.items()}


def official_weights(adapter: IPAdapter, unet: nn.Module) -> dict[str, Tensor]:
    """The adapter as it is now, with the official keys: what to write into a file that any IP-Adapter node loads."""
    weights = {key: value.detach().clone() for key, value in adapter.state_dict().items()}
    lora = trained_slot_lora(unet, adapter.lora_pairs()) if adapter.lora_pairs() else {}
    return weights | {f"ip_adapter.{key}": value for key, value in lora.items()}


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
