"""Numbers and tensors as every edge takes them: a socket, a file, a command line. What is not a number is
refused there, because everything behind it computes on and paints something."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import LikenessError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_FACTOR = 1000.0  # of weights and strengths: more leaves half precision at once


def check_number(value: Any, what: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """`value`, where it is a finite number of this range; LikenessError naming `what` where it is not."""
    given: Any = value
    try:
        fits = isinstance(value, numbers.Real) and math.isfinite(given) and least <= given <= most
    except OverflowError:  # a whole number that no float can hold
        fits = False
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:40] + "…"
        room = f"from {least:.15g} to {most:.15g}" if math.isfinite(least) and math.isfinite(most) else "such as 1.0"
        raise LikenessError(f"{what} is {shown}: enter a number {room}.")
    return value


def all_finite(tensor: Tensor, most: float = math.inf) -> bool:
    """Whether a tensor holds nothing but numbers, none of them larger than `most`. One pass, no copy."""
    import torch

    if not tensor.numel() or not tensor.is_floating_point():
        return True
    values = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # 8 bits know no arithmetic
    low, high = (float(end) for end in torch.aminmax(values))  # NaN, where there is one
    return math.isfinite(low) and math.isfinite(high) and -most <= low and high <= most


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors.items() if not all_finite(tensor)), None)


# --- masks

EMPTY_MASK = "Load Image gives an empty mask for an image without transparency"


def as_mask(mask: Any, what: str) -> Tensor:
    """A MASK as (m, H, W) float32 in 0..1; (H, W) and (m, 1, H, W) are understood. LikenessError for others."""
    import torch

    if not isinstance(mask, torch.Tensor):
        raise LikenessError(f"{what} is a {type(mask).__name__}: connect a MASK.")
    shape = tuple(mask.shape)
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask.squeeze(1) if mask.ndim == 4 and shape[1] == 1 else mask
    if mask.ndim != 3:
        raise LikenessError(f"{what} has shape {shape}: connect a MASK of shape (count, height, width).")
    if not mask.numel():
        raise LikenessError(f"{what} is empty, its shape is {shape}: connect one with at least a pixel.")
    if not all_finite(mask):
        raise LikenessError(f"{what} holds NaN or infinity: check the node that makes it.")
    return mask.float().clamp(0.0, 1.0)


def require_painted(mask: Tensor, what: str, least: float = 0.0) -> None:
    """LikenessError unless every mask of (m, H, W) lets something through, more than `least` of it."""
    blank = [number for number, one in enumerate(mask, 1) if not bool((one > least).any())]
    if blank:
        which = f" number {blank[0]} of {len(mask)}" if len(mask) > 1 else ""
        raise LikenessError(
            f"{what}{which} is empty, so nothing is selected: disconnect it, or paint what counts ({EMPTY_MASK})."
        )
