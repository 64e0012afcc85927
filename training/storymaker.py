"""What training StoryMaker needs beyond its inference: an untrained adapter, trainable parts, its file back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..adapters.networks import PerceiverSizes
from ..adapters.storymaker import StoryMaker
from ..adapters.storymaker.projection import HeadWidths, StoryMakerProjection
from ..injection.plan import check_fit
from ..injection.sites import sites_of_diffusers_unet
from .ip_adapter import fresh_key_values, text_width
from .slot_lora import fresh_slot_lora, train_slot_lora, trained_slot_lora

FACE_TOKENS, BODY_TOKENS, MOST = 4, 16, 3
_DEPTH = 4  # of both networks that read CLIP
_PROJECTION, _LAYERS = "image_proj_model.", "ip_adapter."


def fresh_storymaker(unet: nn.Module, id_dim: int, feature_dim: int, rank: int = 128) -> dict[str, Tensor]:
    """Weights of an untrained adapter for this UNet under the official keys. Keys and values begin as the text's."""
    dim, width = text_width(unet), HeadWidths()
    body = min(dim, 1280)

    def sizes(of: int, head: int) -> PerceiverSizes:
        return PerceiverSizes(feature_dim, of, _DEPTH, max(1, of // head), head, 4 * of, dim)

    network = StoryMakerProjection(
        id_dim, 2 * id_dim, FACE_TOKENS, dim, sizes(dim, width.face), sizes(body, width.body), BODY_TOKENS, MOST
    )
    for parameter in (network.resample.latents, network.pos_embed, network.bg_embed):
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    weights = {f"{_PROJECTION}{key}": value.detach() for key, value in network.state_dict().items()}
    weights |= fresh_key_values(unet)
    return weights | {f"{_LAYERS}{key}": value for key, value in fresh_slot_lora(unet, rank).items()}


def from_ip_adapter(fresh: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with what a FaceID-Plus file has too: the network of the face, keys, values and LoRA, as the official
    training begins."""
    known = {key.replace("image_proj.", _PROJECTION, 1): value for key, value in given.items()}
    return {
        key: known[key].clone() if key in known and known[key].shape == value.shape else value
        for key, value in fresh.items()
    }


def make_trainable(adapter: StoryMaker, unet: nn.Module) -> dict[str, nn.Parameter]:
    """Free the adapter's networks and give the UNet the trainable layers of its LoRA; all under the official keys."""
    check_fit(adapter, sites_of_diffusers_unet(unet), type(unet).__name__)
    unet.requires_grad_(False)
    trained = dict(adapter.float().requires_grad_(True).named_parameters())
    lora = train_slot_lora(unet, adapter.lora_pairs())
    return trained | {f"{_LAYERS}{key}": parameter for key, parameter in lora.items()}


def official_weights(adapter: StoryMaker, unet: nn.Module) -> dict[str, Tensor]:
    """The adapter as it is now, with the official keys."""
    weights = {key: value.detach().clone() for key, value in adapter.state_dict().items()}
    lora = trained_slot_lora(unet, adapter.lora_pairs())
    return weights | {f"{_LAYERS}{key}": value for key, value in lora.items()}


def maps_of(queries: Tensor, keys: Tensor) -> Tensor:
    """The attention of a layer to the adapter's tokens alone, the mean over heads: (batch, n, L), float32.

    queries: (batch, heads, L, d); keys: (batch, n, width).
    """
    keys = keys.unflatten(-1, (queries.shape[1], -1)).transpose(1, 2).float()
    scores = keys @ queries.float().transpose(-1, -2) * queries.shape[-1] ** -0.5
    return torch.softmax(scores, dim=2).mean(1)
