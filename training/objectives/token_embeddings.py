"""What keeps learned token embeddings near the words they live among. Rows are (n, dim), the placeholders' only."""

from __future__ import annotations

import torch
from torch import Tensor

CLIP_L_NORM = 0.4  # words of CLIP-L have norms of 0.38 to 0.40; much longer ones drown the rest of a prompt


def norm_decay(rows: Tensor, learning_rate: float, target: float = CLIP_L_NORM) -> Tensor:
    """Pull every row's norm n to n + λ (target − n), λ = min(1, 100 · learning rate); directions stay.

    cloneofsimo/lora's pivotal tuning and MagiCapture, after each optimiser step. A zero row stays zero.
    """
    pull = min(1.0, 100 * learning_rate)
    norms = rows.norm(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(rows, dim=-1) * (norms + pull * (target - norms))


def std_retraction(rows: Tensor, reference_std: float, exponent: float = 0.1) -> Tensor:
    """Scale all rows together by (σ_table / σ_rows)^0.1 (diffusers' advanced pivotal tuning, after each step).

    Both deviations are over all elements, unbiased; `reference_std` is measured once, on the untouched table.
    """
    return rows * (reference_std / rows.std()) ** exponent
