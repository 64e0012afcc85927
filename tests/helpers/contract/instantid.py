"""InstantID's adapter. Its content can be FaceID Portrait's as well: the name tells."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from helpers import official

from . import Case


def weights(shapes: Any, seed: int) -> dict[str, Tensor]:
    groups = official.groups(official.resampler(shapes[0][1], features=512, seed=seed), shapes, seed=seed)
    return {f"{group}.{key}": value for group, tensors in groups.items() for key, value in tensors.items()}


CASE = Case("InstantID", weights, file_name="instantid.safetensors")
