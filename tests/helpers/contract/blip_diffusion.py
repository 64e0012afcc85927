"""BLIP-Diffusion's subject encoder; of another width than the tiny models', a trained subject, which is small."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from helpers import official

from .. import blip_diffusion as made
from . import Case


def weights(shapes: Any, seed: int) -> dict[str, Tensor]:
    width = shapes[0][1]
    if width > 128:
        return {"ctx_embeddings_cache": official.Maker(seed).tensor(1, made.QUERIES, width)}
    return made.encoder(width, seed)


CASE = Case(
    "BLIP-Diffusion", weights, reads_faces=False,
    prompt="a photo of a woman img in the rain", plain="a photo of a woman in the rain",
)  # fmt: skip
