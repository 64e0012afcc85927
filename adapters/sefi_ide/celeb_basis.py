"""Celeb Basis (arXiv 2306.00926): a face's tokens as a mixture of the directions in which names of people differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def basis_of_names(token_ids: Tensor, table: Tensor, components: int, end_token: int, words: int = 2) -> Tensor:
    """Per word position the mean of the names' embeddings, then their principal directions: (words, 1 + n, width).

    token_ids: (names, tokens), start token first. Tokens that several names share count once for each name.
    """
    positions = []
    for ids in token_ids[:, 1 : 1 + words].T:
        rows = table[ids[ids != end_token]]
        mean = rows.mean(0, keepdim=True)
        directions = torch.linalg.svd(rows - mean, full_matrices=False).Vh[:components]
        positions.append(torch.cat([mean, directions]))
    return torch.stack(positions)


class FaceCoefficients(nn.Module):
    """From a face's recognition embedding to unit coefficients over the basis, by layers of these widths."""

    def __init__(self, widths: Sequence[int], words: int = 2) -> None:
        super().__init__()
        self.words = words
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.stylegan_mlp = nn.ModuleDict({"net": nn.ModuleList(layers)})

    def forward(self, face: Tensor) -> Tensor:
        """face: (batch, face width); the result: (batch, words, 1, components)."""
        x = F.normalize(face, dim=-1)
        layers = self.stylegan_mlp["net"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = F.leaky_relu(layer(x), 0.2)
        return F.normalize(x.unflatten(-1, (self.words, 1, -1)), dim=-1)


def tokens_of(coefficients: Tensor, basis: Tensor) -> Tensor:
    """The mean of each word position plus the mixture of its directions: (batch, words, width)."""
    return (coefficients @ basis[:, 1:]).squeeze(2) + basis[:, 0]
