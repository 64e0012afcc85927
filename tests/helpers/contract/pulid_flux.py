"""PuLID for FLUX; what it finds beside its file lies in the small world."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pulid import flux_adapter
from . import Case


def weights(shapes: Any, seed: int) -> dict[str, Tensor]:
    return flux_adapter(shapes[0][0], seed=seed)


CASE = Case("PuLID for FLUX", weights, base="flux")
