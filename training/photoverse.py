"""What training PhotoVerse needs beyond its inference: a new adapter for a UNet, its trained parts, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..adapters.photoverse import PhotoVerse
from ..adapters.photoverse.layouts import Content, Layout, to_ours
from ..adapters.photoverse.networks import AdapterKind, AdapterSizes, FeatureAdapter
from ..injection.plan import check_fit
from ..injection.sites import sites_of_diffusers_unet
from .base.lora import add_lora, continue_lora, lora_parameters, trained_pairs


def fresh_photoverse(
    unet: nn.Module, width: int, maps: int = 5, kind: AdapterKind = AdapterKind.ELITE, hidden: int | None = None
) -> Content:
    """An untrained adapter for this UNet. width: of CLIP's hidden states; hidden: of the adapters, None for as wide.

    Keys and values of the image start as those of the text, so that tokens are understood from the first step.
    """
    visual = {}
    for site in sites_of_diffusers_unet(unet):
        attention: Any = unet.get_submodule(f"{site.diffusers_path}.attn2")
        pair = attention.to_k.weight.detach().float().clone(), attention.to_v.weight.detach().float().clone()
        visual[f"{site.diffusers_path}.attn2"] = pair
    dim = next(iter(visual.values()))[0].shape[1]
    literal = kind is AdapterKind.LITERAL
    sizes = AdapterSizes(maps, width, hidden or (dim if literal else width), None if literal else dim)
    text, image = (_state(FeatureAdapter(sizes)) for _ in range(2))
    return Content(Layout.OURS, text, image, visual)


def make_trainable(adapter: PhotoVerse, unet: nn.Module, rank: int) -> dict[str, Mapping[str, nn.Parameter]]:
    """The trained parameters by part, float32; the UNet gets trainable layers with the LoRA of the file, or with a new
    one of this rank on the text's keys and values. Its own weights are frozen.

    Raises LikenessError when the adapter was made for another UNet.
    """
    sites = sites_of_diffusers_unet(unet)
    check_fit(adapter, sites, type(unet).__name__)
    if adapter.lora_pairs:
        continue_lora(unet, adapter.lora_pairs)
    else:
        paths = [f"{site.diffusers_path}.attn2.{layer}" for site in sites for layer in ("to_k", "to_v")]
        add_lora(unet, paths, rank)
    adapter.float().requires_grad_(True)
    assert adapter.image_adapter is not None
    return {
        "text": dict(adapter.text_adapter.named_parameters()),
        "image": dict(adapter.image_adapter.named_parameters()),
        "branch": dict(adapter.ip_adapter.named_parameters()),
        "lora": lora_parameters(unet),
    }


def our_file(adapter: PhotoVerse, unet: nn.Module, base: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the adapter as it is now. base: the title of the model's family."""
    assert adapter.image_adapter is not None
    visual = {}
    for site in sites_of_diffusers_unet(unet):
        pair: Any = adapter.ip_adapter[str(site.slot)]
        visual[f"{site.diffusers_path}.attn2"] = pair.to_k_ip.weight.detach(), pair.to_v_ip.weight.detach()
    text, image = _state(adapter.text_adapter), _state(adapter.image_adapter)
    content = Content(Layout.OURS, text, image, visual, trained_pairs(unet))
    sizes = adapter.text_adapter.sizes
    return to_ours(content, {"base": base, "m": sizes.maps, "kind": sizes.kind.value})


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in network.state_dict().items()}
