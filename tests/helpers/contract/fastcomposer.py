"""A whole FastComposer file, its UNet included. Its references are crops of photos; no face is read."""

from __future__ import annotations

from typing import Any

from ..fastcomposer import weights
from . import Case


def from_the_first_step() -> Any:
    """The official count leaves one step to the text, of which a short run has few."""
    from likeness.adapters.fastcomposer import FastComposerOptions
    from likeness.nodes.references import Options

    return Options(FastComposerOptions(start_step=-1))


CASE = Case(
    "FastComposer", weights, reads_faces=False,
    prompt="a photo of a woman img in the rain", plain="a photo of a woman in the rain",
    options=from_the_first_step,
)  # fmt: skip
