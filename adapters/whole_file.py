"""Files that hold everything of a system, as its trainer left them: buffers, mixed precisions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def without_buffers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the positions that older transformers wrote with them."""
    return {key: value for key, value in weights.items() if not key.endswith("position_ids")}


def of_one_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that mix bfloat16 and float32, which no layer takes together, in float32."""
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) < 2:
        return dict(weights)
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def fault(error: Exception) -> str:
    """Which keys are missing or unknown, on one line of a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("Error(s) in loading state_dict for "):
        text = text.partition(": ")[2]
    return text if len(text) <= 200 else f"{text[:200]}…"
