"""Numbers and tensors as every edge takes them: a socket, a file, a command line. What is no number is refused there,
because everything behind it computes on and paints something."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import LikenessError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_FACTOR = 1000.0  # of weights and strengths: more leaves half precision at once


def check_number(value: Any, what: str, least: float = -math.inf, most: float = math.inf) -> float:
    """`value`, where it is a finite number of this range; LikenessError naming `what` where it is not."""
    try:
        fits = isinstance(value, numbers.Real) and math.isfinite(value) and least <= value <= most
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
