"""PhotoVerse's losses beside the denoising one (arXiv 2309.05793, equations 5 to 8; ELITE's value loss).

L = L_diff + 0.01 L_face + 0.01 L_rt + 0.001 L_rv
L_rt = mean |p_f|            the words should stay among the words
L_rv = mean over layers of mean |V_S|
L_face = mean over samples of 1 - cos(f(x), f(x'))
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

FACE_WEIGHT, TEXT_WEIGHT, VISUAL_WEIGHT = 0.01, 0.01, 0.001
LAST_TIMESTEP = 500  # of the face loss: what noisier latents are heading for is a blur


def text_regulariser(words: Tensor) -> Tensor:
    """L_rt of words (batch, m, dim)."""
    return words.abs().mean()


def visual_regulariser(values: Iterable[Tensor]) -> Tensor:
    """L_rv of every layer's values (batch, m, width)."""
    return torch.stack([layer.abs().mean() for layer in values]).mean()


def face_loss(reference: Tensor, generated: Tensor) -> Tensor:
    """L_face of embeddings (batch, d)."""
    return (1 - F.cosine_similarity(reference, generated)).mean()


def active(t: Tensor, last: int = LAST_TIMESTEP) -> Tensor:
    """Which samples the face loss sees, (batch,), by their timesteps."""
    return t <= last
