"""PuLID: adapters for SDXL and FLUX, their encoders, the image of a face that they read, merging."""

from .adapter import (
    FIDELITY,
    NEUTRAL,
    STYLE,
    SYSTEM,
    VERSION_1_1,
    Background,
    Mode,
    Projection,
    Projections,
    PuLID,
    PuLIDOptions,
    TokenPooling,
    encode,
    with_zeros,
)
from .flux import SYSTEM as FLUX_SYSTEM
from .flux import CrossAttentions, PuLIDFlux

__all__ = [
    "FIDELITY",
    "FLUX_SYSTEM",
    "NEUTRAL",
    "STYLE",
    "SYSTEM",
    "VERSION_1_1",
    "Background",
    "CrossAttentions",
    "Mode",
    "Projection",
    "Projections",
    "PuLID",
    "PuLIDFlux",
    "PuLIDOptions",
    "TokenPooling",
    "encode",
    "with_zeros",
]
