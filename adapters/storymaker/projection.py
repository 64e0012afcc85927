"""StoryMaker's positional-aware perceiver resampler (arXiv 2409.12576, section 3.2), under its official key names.

f = LN(MLP(id)) + Perceiver(LN(MLP(id)), CLIP of the face)     4 face tokens
b = Resampler(CLIP of the body)                                16 body tokens
c = [f, b] + pos_embed[i]                                      i = place in the list of characters
r = LN(W c) + c
T = [bg_embed, r₁, …, r_P]                                     20 tokens each, one sequence
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks import FaceIdPlusProjection, PerceiverSizes, Resampler

FACE, BODY = "perceiver_resampler.", "resample."  # the two networks that read CLIP


class HeadWidths(NamedTuple):
    """Width of an attention head in the network that reads the face and in the one that reads the body.

    No shape of a weight tells them.
    """

    face: int = 64
    body: int = 64


class StoryMakerProjection(FaceIdPlusProjection):
    """Faces and bodies of up to `len(pos_embed)` characters to the tokens they share with the background."""

    def __init__(
        self, id_dim: int, inner_dim: int, n_face: int, dim: int, face: PerceiverSizes, body: PerceiverSizes,
        n_body: int, most: int,
    ) -> None:  # fmt: skip
        super().__init__(id_dim, inner_dim, n_face, dim, face)
        self.resample = Resampler(body, n_body)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.pos_embed = nn.Parameter(torch.empty(most, n_face + n_body, dim))
        self.bg_embed = nn.Parameter(torch.empty(1, n_face + n_body, dim))

    @property
    def most(self) -> int:
        """How many characters there are places for."""
        return len(self.pos_embed)

    def faces(self, ids: Tensor, features: Tensor) -> Tensor:
        """ids: (photos, id_dim), unit vectors; features: (photos, sequence, hidden) -> (photos, n_face, dim)"""
        return super().forward(ids, features, shortcut=True)

    def bodies(self, features: Tensor) -> Tensor:
        """(images, sequence, hidden) -> (images, n_body, dim)"""
        return self.resample(features)

    def forward(self, faces: Tensor, bodies: Tensor) -> Tensor:  # type: ignore[override]
        """(P, n_face, dim) and (P, n_body, dim), in the order of the list -> (1, (1 + P)·(n_face + n_body), dim)"""
        placed = torch.cat([faces, bodies], dim=1) + self.pos_embed[: len(faces)]
        characters = self.norm_out(self.proj_out(placed)) + placed
        return torch.cat([self.bg_embed, characters]).flatten(0, 1).unsqueeze(0)


def build_character_projection(weights: dict[str, Tensor], heads: HeadWidths) -> StoryMakerProjection:
    """The network whose official weights (keys of `image_proj_model`) these are, frozen and in eval mode.

    Raises KeyError, ValueError or RuntimeError when they do not make up one.
    """
    inner_dim, id_dim = weights["proj.0.weight"].shape
    dim = weights["norm.weight"].shape[0]
    with torch.device("meta"):  # the file's tensors become the parameters: no memory is filled twice
        network = StoryMakerProjection(
            id_dim,
            inner_dim,
            n_face=weights["proj.2.weight"].shape[0] // dim,
            dim=dim,
            face=PerceiverSizes.of(weights, heads.face, FACE),
            body=PerceiverSizes.of(weights, heads.body, BODY),
            n_body=weights[f"{BODY}latents"].shape[1],
            most=weights["pos_embed"].shape[0],
        )
    network.load_state_dict(weights, strict=True, assign=True)
    return network.requires_grad_(False).eval()
