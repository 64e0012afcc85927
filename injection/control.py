"""What a ControlNet with a context of its own adds to a denoiser, whatever the host (`effects.ControlContext`).

    hᵢ ← hᵢ + s · mᵢ · Netᵢ(x, t, hint, T)

T are the effect's tokens in place of the text, s its strength, mᵢ its mask at the size of the i-th residual. The net is
open at step i of n unless i/n < start or (i + 1)/n > end, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters.effects import Scope
from .masks import resize_mask
from .plan import fit_rows, take_rows

_ROUNDING = 1e-9  # of a share of steps


def open_at_step(scope: Scope, step: int, steps: int) -> bool:
    """Whether step 0, 1, … of this many lies in the window."""
    return step / steps >= scope.start - _ROUNDING and (step + 1) / steps <= scope.end + _ROUNDING


def residual_mask(
    scope: Scope, size: tuple[int, int], images: int, chunks: int, rows: Sequence[int] | None = None
) -> Tensor | None:
    """Factors for residuals (chunks·images, c, h, w) of this size, (1 | chunks·images, 1, h, w); None for 1.

    rows: which images of the whole batch a chunk holds, None for all.
    """
    if scope.mask is None and scope.image_weights is None:
        return None
    factors = torch.ones(1, 1, 1, 1)
    if scope.mask is not None:
        factors = take_rows(resize_mask(scope.mask, size, scope.mask_resize).unsqueeze(1), rows)
    if scope.image_weights is not None:
        weights = take_rows(torch.tensor(scope.image_weights).view(-1, 1, 1, 1), rows)
        factors = fit_rows(factors, images) * fit_rows(weights, images)
    return factors if len(factors) == 1 else fit_rows(factors, images).repeat(chunks, 1, 1, 1)
