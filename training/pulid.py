"""What training PuLID needs beyond its inference: an untrained adapter, trainable parts, and the official file back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..adapters.networks import PerceiverAttention, feed_forward
from ..adapters.pulid import PuLID
from ..adapters.pulid.encoders import HEAD_WIDTH, ID_TOKENS
from ..injection.sites import sites_of_diffusers_unet

SCALES, ROUNDS, QUERIES = 5, 2, 32  # layers of EVA02-CLIP that are read, readings of each, tokens (version 1.1)
START = 1e-3  # deviation of the value projections: the first step is the base model's, nearly
_LAYERS, _ENCODER = "id_adapter_attn_layers.", "id_adapter."


def fresh_pulid(
    unet: nn.Module, id_dim: int, hidden_dim: int, version_1_1: bool = True, width: int = 1024
) -> dict[str, Tensor]:
    """Weights of an untrained adapter for this UNet under the official keys.

    id_dim: of the recogniser's embedding and EVA02-CLIP's together; hidden_dim: of its hidden states. width: of the
    encoder, 1024 in the published ones. Keys begin as those of the text.
    """
    sites = sites_of_diffusers_unet(unet)
    dim = sites[0].context_dim
    networks = _id_former(id_dim, hidden_dim, width) if version_1_1 else _id_encoder(id_dim, hidden_dim, dim, width)
    weights = {
        f"{_ENCODER}{name}.{key}": value.detach()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    if version_1_1:
        weights[f"{_ENCODER}latents"] = torch.randn(1, QUERIES, width) * width**-0.5
        weights[f"{_ENCODER}proj_out"] = torch.randn(width, dim) * width**-0.5
    for site in sites:
        key = unet.get_submodule(f"{site.diffusers_path}.attn2.to_k").weight
        assert isinstance(key, Tensor)
        weights[f"{_LAYERS}{site.slot}.id_to_k.weight"] = key.detach().float().clone()
        weights[f"{_LAYERS}{site.slot}.id_to_v.weight"] = torch.randn(key.shape) * START
    return weights


def _mapping(given: int, made: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(given, width),
        nn.LayerNorm(width),
        nn.LeakyReLU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
        nn.LeakyReLU(),
        nn.Linear(width, made),
    )


def _id_encoder(id_dim: int, hidden_dim: int, dim: int, width: int) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {"body": _mapping(id_dim, ID_TOKENS * dim, width)}
    for i in range(SCALES):
        networks[f"mapping_{i}"] = _mapping(hidden_dim, dim, width)
        networks[f"mapping_patch_{i}"] = _mapping(hidden_dim, dim, width)
    return networks


def _id_former(id_dim: int, hidden_dim: int, width: int) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {"id_embedding_mapping": _mapping(id_dim, ID_TOKENS * width, width)}
    for i in range(SCALES):
        networks[f"mapping_{i}"] = _mapping(hidden_dim, width, width)
    for i in range(SCALES * ROUNDS):
        networks[f"layers.{i}.0"] = PerceiverAttention(width, width // HEAD_WIDTH, HEAD_WIDTH)
        networks[f"layers.{i}.1"] = feed_forward(width, 4 * width)
    return networks


def official_weights(adapter: PuLID) -> dict[str, Tensor]:
    """The adapter as it is now, with the official keys."""
    return {key: value.detach().clone() for key, value in adapter.state_dict().items()}
