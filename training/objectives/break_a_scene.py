"""Break-A-Scene's losses (arXiv 2305.16311): every concept is painted where its mask is, and looked for there.

    L_rec  = mean (U ε̂ − U ε)²                              U: the union of the concepts' masks
    L_attn = Σ_k mean (M_k − A_k / max A_k)²                 A_k: the attention to concept k's token

A_k is the mean over all heads of the layers on one grid of the down and up path (16 x 16 for SD at 512 pixels). The
maximum has a gradient; dividing by it makes the loss blind to how much attention the token gets in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError


def average_attention(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """The mean over layers and heads: (batch, n_tokens, *grid), float32.

    maps: those of `probe`, (batch, heads, n_tokens, L), of layers on one grid. Layers may differ in their heads; every
    head counts alike.
    """
    return torch.cat(list(maps), dim=1).float().mean(1).unflatten(-1, grid)


def concept_attention(attention: Tensor, masks: Tensor) -> Tensor:
    """L_attn, before its weight of 0.01: (batch,), the sum over concepts.

    attention: (batch, concepts, h, w), the average map of each concept's token. masks: (batch, concepts, H, W), 0..1.
    """
    wanted = F.interpolate(masks.float(), attention.shape[-2:], mode="nearest")
    highest = attention.amax(dim=(-2, -1), keepdim=True)
    seen = attention / torch.where(highest == 0, 1.0, highest)
    return (wanted - seen).square().mean(dim=(-2, -1)).sum(1)


def union_error(prediction: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """L_rec: (batch,), averaged over all elements, inside the union of the masks or not.

    prediction, target: (batch, channels, h, w); masks: (batch, concepts, H, W), brought to their size by the nearest
    pixel.
    """
    union = F.interpolate(masks.float().amax(1, keepdim=True), target.shape[-2:], mode="nearest")
    return (union * (prediction.float() - target.float())).square().flatten(1).mean(1)


def concept_positions(ids: Tensor, concepts: Tensor) -> Tensor:
    """Where each concept's token stands in its prompt: (batch, concepts).

    ids: (batch, tokens); concepts: (batch, concepts), token ids. Raises LikenessError, naming the image and the
    concept, where one is not there exactly once.
    """
    found = ids[:, None] == concepts[:, :, None]  # (batch, concepts, tokens)
    counts = found.sum(2)
    wrong = (counts != 1).nonzero()
    if len(wrong):
        image, concept = wrong[0].tolist()
        often = int(counts[image, concept])
        raise LikenessError(
            f"The prompt of image {image + 1} names concept {concept + 1} {often} times: name each concept once, "
            "within the length of the prompt."
            if often
            else f"The prompt of image {image + 1} does not name concept {concept + 1}, or is cut off before it: name "
            "each concept once, near the beginning."
        )
    return found.int().argmax(2)
