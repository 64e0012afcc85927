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
from .masks import crop_to_area, resize_mask
from .plan import fit_rows

_ROUNDING = 1e-9  # of a share of steps


def open_at_step(scope: Scope, step: int, steps: int) -> bool:
    """Whether step 0, 1, … of so many lies in the window."""
    return step / steps >= scope.start - _ROUNDING and (step + 1) / steps <= scope.end + _ROUNDING


def residual_mask(
    scope: Scope,
    size: tuple[int, int],
    pictures: int,
    areas: Sequence[tuple[int, int, int, int] | None] = (None,),
    full_size: tuple[int, int] | None = None,
) -> Tensor | None:
    """Factors for residuals (chunks·pictures, c, h, w) of this size, (1 | chunks·pictures, 1, h, w); None for 1.

    areas: of each chunk, ComfyUI's (height, width, y, x) of the whole picture, whose `full_size` is in latents.
    """
    if scope.mask is None and scope.image_weights is None:
        return None
    chunks = []
    for area in areas:
        factors = torch.ones(1, 1, 1, 1)
        if scope.mask is not None:
            mask = scope.mask if area is None or full_size is None else crop_to_area(scope.mask, area, full_size)
            factors = resize_mask(mask, size, scope.mask_resize).unsqueeze(1)
        if scope.image_weights is not None:
            weights = torch.tensor(scope.image_weights).view(-1, 1, 1, 1)
            factors = fit_rows(factors, pictures) * fit_rows(weights, pictures)
        chunks.append(factors)
    if len(chunks) == 1 and len(chunks[0]) == 1:
        return chunks[0]
    return torch.cat([fit_rows(chunk, pictures) for chunk in chunks])
