"""The CLIP vision tower that some files carry inside them, under transformers' key names.

    x = pre_layernorm([class; patches] + positions)
    x = x + attention(norm1(x));   x = x + mlp(norm2(x))      in every layer
    last = x;   pooled = post_layernorm(class token of x)

PhotoMaker and FastComposer bring one that they have trained further, so the CLIP_VISION socket cannot stand in for it.
All sizes are read from the weights; that of a head is not in them and is stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.families import HEAD_WIDTH

# Keys of one tower, beside its layers'.
_PATCHES, _POSITIONS = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"


class TowerSizes(NamedTuple):
    """image_size: side of the images it reads, in pixels."""

    width: int
    inner: int
    layers: int
    heads: int
    patch: int
    image_size: int

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], head_width: int = HEAD_WIDTH) -> TowerSizes:
        """From the weights (keys without `vision_model.`). KeyError or ValueError when they are not such a tower."""
        width, _, patch, _ = weights[_PATCHES].shape
        if width % head_width:
            raise ValueError(f"attention of width {width} has no heads of width {head_width}")
        side = round((weights[_POSITIONS].shape[0] - 1) ** 0.5)
        return cls(
            width,
            inner=weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
            layers=len({key.split(".")[2] for key in weights if key.startswith("encoder.layers.")}),
            heads=width // head_width,
            patch=patch,
            image_size=side * patch,
        )


class ClipTower(nn.Module):
    """A CLIP ViT with transformers' names, `pre_layrnorm` (sic) included. Keys are those below `vision_model.`."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.image_size = sizes.image_size
        self.embeddings = _Embeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(sizes.width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.post_layernorm = nn.LayerNorm(sizes.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixel values (B, 3, S, S) -> the last layer's states (B, 1 + patches, width), without a norm."""
        return self.rest(self.first(pixels, 0), 0)

    def first(self, pixels: Tensor, layers: int) -> Tensor:
        """The states after so many layers."""
        x, every = self.pre_layrnorm(self.embeddings(pixels)), cast(nn.ModuleList, self.encoder.layers)
        for layer in every[:layers]:
            x = layer(x)
        return x

    def rest(self, states: Tensor, layers: int) -> Tensor:
        """The last layer's states, of those after so many layers."""
        for layer in cast(nn.ModuleList, self.encoder.layers)[layers:]:
            states = layer(states)
        return states

    def pooled(self, last: Tensor) -> Tensor:
        """The last layer's states -> (B, width): the class token, normed."""
        return self.post_layernorm(last[:, 0])


class _Embeddings(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(sizes.width))
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch, bias=False)
        self.position_embedding = nn.Embedding((sizes.image_size // sizes.patch) ** 2 + 1, sizes.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class _Layer(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width)
        self.self_attn = _SelfAttention(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width)
        self.mlp = _QuickMlp(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _SelfAttention(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(sizes.width, sizes.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class _QuickMlp(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))
