"""How alike two embeddings are. Only embeddings of one and the same recogniser can be compared."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1, eps=1e-12)


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of every row of `a` (n, D) with every row of `b` (m, D): (n, m), -1..1."""
    return unit(a) @ unit(b).mT


def unit_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distance (n, m) of the unit vectors: sqrt(2 - 2 cosine), 0..2."""
    return (2 - 2 * cosine_similarity(a, b)).clamp(min=0).sqrt()


def mean_direction(vectors: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The re-normalised (weighted) mean of the unit vectors of rows (n, D): (D,)."""
    rows = unit(vectors)
    if weights is None:
        return unit(rows.mean(0))
    return unit((rows * weights.float().unsqueeze(-1)).sum(0))


ARCFACE_SAME = 0.25  # two photos of one person are rarely less alike to ArcFace and SFace, two persons rarely more
_SAME = {"dlib": 0.5}  # the same of others; measured on 44 photos of 10 people, see docs/evaluation.md


def on_scale_of(recogniser: str | None, cosine: float) -> float:
    """A cosine as people know it from ArcFace, on another recogniser's scale; -1 and 1 stay what they are."""
    return float(np.interp(cosine, [-1.0, ARCFACE_SAME, 1.0], [-1.0, _SAME.get(recogniser or "", ARCFACE_SAME), 1.0]))
