"""PuLID for SDXL: the adapter, its encoders, the image of a face that it reads, and how attentions are merged."""

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

__all__ = [
    "FIDELITY",
    "NEUTRAL",
    "STYLE",
    "SYSTEM",
    "VERSION_1_1",
    "Background",
    "Mode",
    "Projection",
    "Projections",
    "PuLID",
    "PuLIDOptions",
    "TokenPooling",
    "encode",
    "with_zeros",
]
