"""A FaceID file with its LoRA."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from helpers import official

from . import Case


def faceid(shapes: Any, seed: int) -> dict[str, Tensor]:
    groups = official.groups(official.identity(shapes[0][1], seed=seed), shapes, with_lora=True, seed=seed)
    return {f"{group}.{key}": value for group, tensors in groups.items() for key, value in tensors.items()}


CASE = Case("IP-Adapter", faceid)
