"""The adapters of ELITE (arXiv 2302.13848) and PhotoVerse: feature maps of CLIP to one vector each.

    S_i = mapping_i(class token of e_i) + mean over patches of mapping_patch_i(patches of e_i)

e_0 is CLIP's last hidden state, the others are those of `LAYERS`. The mean is taken of what the MLP returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks import count_mappings, mapping, mapping_widths

LAYERS = (-1, 4, 8, 12, 16)  # of CLIP's hidden states; 0 would be the embeddings


class AdapterKind(Enum):
    """Which reading of the paper a mapping is; the value is what files and settings call it."""

    ELITE = "elite"  # ends in a Linear to the width of the text
    LITERAL = "literal"  # the paper's words: two layers, as wide as CLIP, for a text encoder of that width


class AdapterSizes(NamedTuple):
    """maps: how many feature maps it reads. width: of these; out: of the vectors, None: of the hidden layers."""

    maps: int
    width: int
    hidden: int
    out: int | None

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> AdapterSizes:
        """Read off the official weights. KeyError or ValueError when they are none of this kind."""
        width, _, hidden, *last = mapping_widths(weights, "mapping_0.")
        return cls(count_mappings(weights), width, hidden, last[0] if last else None)

    @property
    def kind(self) -> AdapterKind:
        return AdapterKind.LITERAL if self.out is None else AdapterKind.ELITE


class FeatureAdapter(nn.Module):
    """One vector for each feature map; `state_dict()` has the official keys."""

    def __init__(self, sizes: AdapterSizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = (sizes.width, sizes.hidden, sizes.hidden, *([] if sizes.out is None else [sizes.out]))
        for i in range(sizes.maps):
            self.add_module(f"mapping_{i}", mapping(widths))
            self.add_module(f"mapping_patch_{i}", mapping(widths))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.sizes.out or self.sizes.hidden

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The first feature maps, as many as are wanted, each (batch, 1 + patches, width) -> (batch, maps, dim)"""
        vectors = [
            self.get_submodule(f"mapping_{i}")(states[:, :1])
            + self.get_submodule(f"mapping_patch_{i}")(states[:, 1:]).mean(dim=1, keepdim=True)
            for i, states in enumerate(features)
        ]
        return torch.cat(vectors, dim=1)


def build_adapter(weights: Mapping[str, Tensor]) -> FeatureAdapter:
    """The adapter whose official weights these are, float32 and frozen.

    Raises KeyError, ValueError or RuntimeError when they do not make up one.
    """
    with torch.device("meta"):  # no memory is filled twice: the file's tensors become the parameters
        network = FeatureAdapter(AdapterSizes.of(weights))
    network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    return network.requires_grad_(False).eval()
