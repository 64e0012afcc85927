"""PuLID's encoders: a recogniser's embedding and EVA02-CLIP's hidden states to tokens, under the official key names.

    IDEncoder   v1: tokens of the embedding, and one token for each of the five layers
    IDFormer    v1.1 and FLUX: learnt queries that read the five layers one after the other

All sizes are read from the weights but one: the width of a head of attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..networks import PerceiverAttention, count_mappings, feed_forward, mapping, mapping_widths

HEAD_WIDTH = 64
ID_TOKENS = 5  # that one embedding becomes


def _mapping(weights: Mapping[str, Tensor], prefix: str) -> nn.Sequential:
    return mapping(mapping_widths(weights, prefix))


class IDEncoder(nn.Module):
    """Version 1.

    global = body(id)                                            5 tokens
    localᵢ = mappingᵢ(classᵢ) + mean over patches of mapping_patchᵢ(patchesᵢ)      one for each layer i
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = count_mappings(weights)
        self.body = _mapping(weights, "body.")
        for i in range(self.layers):
            self.add_module(f"mapping_{i}", _mapping(weights, f"mapping_{i}."))
            self.add_module(f"mapping_patch_{i}", _mapping(weights, f"mapping_patch_{i}."))

    @property
    def id_dim(self) -> int:
        """Width of what it reads of a photo: the recogniser's embedding and EVA02-CLIP's."""
        return self.body[0].in_features  # type: ignore[return-value]

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden states it reads."""
        return self.get_submodule("mapping_0.0").in_features  # type: ignore[return-value]

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.get_submodule("mapping_0.6").out_features  # type: ignore[return-value]

    def forward(self, id_cond: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """id_cond: (B, id_dim); hidden: per layer (B, 1 + patches, hidden_dim) -> (B, 5 + layers, dim)"""
        local = [
            self.get_submodule(f"mapping_{i}")(states[:, :1])
            + self.get_submodule(f"mapping_patch_{i}")(states[:, 1:]).mean(dim=1, keepdim=True)
            for i, states in enumerate(hidden)
        ]
        return torch.cat([self.body(id_cond).unflatten(-1, (-1, self.dim)), *local], dim=1)


class IDFormer(nn.Module):
    """Version 1.1 and FLUX. x: five tokens of each photo's embedding, read again at every layer as they were.

    latents = [queries, x]
    per layer i, two rounds: latents += attention([x, mappingᵢ(hiddenᵢ)], latents);  latents += ff(latents)
    tokens = latents[:queries] @ proj_out
    """

    def __init__(self, weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> None:
        super().__init__()
        _, queries, width = weights["latents"].shape
        inner = len(weights["layers.0.0.to_q.weight"])
        if inner % head_width:
            raise ValueError(f"attention of width {inner} has no heads of width {head_width}")
        depth = len({key.split(".")[1] for key in weights if key.startswith("layers.")})
        self.scales = count_mappings(weights)
        self.latents = nn.Parameter(torch.empty(1, queries, width))
        self.proj_out = nn.Parameter(torch.empty(width, weights["proj_out"].shape[1]))
        self.id_embedding_mapping = _mapping(weights, "id_embedding_mapping.")
        for i in range(self.scales):
            self.add_module(f"mapping_{i}", _mapping(weights, f"mapping_{i}."))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, inner // head_width, head_width),
                    feed_forward(width, len(weights[f"layers.{i}.1.1.weight"])),
                ]
            )
            for i in range(depth)
        )

    @property
    def id_dim(self) -> int:
        """Width of what it reads of a photo: the recogniser's embedding and EVA02-CLIP's."""
        return self.id_embedding_mapping[0].in_features  # type: ignore[return-value]

    @property
    def hidden_dim(self) -> int:
        """Width of the hidden states it reads."""
        return self.get_submodule("mapping_0.0").in_features  # type: ignore[return-value]

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.proj_out.shape[1]

    def forward(self, id_cond: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """(B, id_dim) or (B, photos, id_dim), with the hidden states of the photos side by side, per layer (B, photos ·
        (1 + patches), hidden_dim) -> (B, queries, dim)"""
        queries, width = self.latents.shape[1:]
        x = self.id_embedding_mapping(id_cond).reshape(len(id_cond), -1, width)
        latents = torch.cat([self.latents.expand(len(x), -1, -1), x], dim=1)
        rounds = len(self.layers) // self.scales
        for i, states in enumerate(hidden):
            context = torch.cat([x, self.get_submodule(f"mapping_{i}")(states)], dim=1)
            for attention, feed in self.layers[i * rounds : (i + 1) * rounds]:  # type: ignore[misc]
                latents = attention(context, latents) + latents
                latents = feed(latents) + latents
        return latents[:, :queries] @ self.proj_out


def build_encoder(weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> IDEncoder | IDFormer:
    """The encoder whose official weights (keys without `id_adapter.`) these are, loaded and in eval mode.

    Raises KeyError, ValueError or RuntimeError when they are neither, or not all there.
    """
    with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
        network = IDFormer(weights, head_width) if "latents" in weights else IDEncoder(weights)
    network.load_state_dict(dict(weights), strict=True, assign=True)
    return network.requires_grad_(False).eval()
