"""The kinds of IP-Adapter file, and what they are shown of a person or an image."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Variant(Enum):
    """The kinds of IP-Adapter file; the value is what a user reads."""

    BASE = "IP-Adapter"
    PLUS = "IP-Adapter Plus"
    FULL_FACE = "IP-Adapter Full Face"
    FACEID = "IP-Adapter FaceID"
    FACEID_PLUS = "IP-Adapter FaceID Plus"
    FACEID_PLUS_V2 = "IP-Adapter FaceID Plus v2"
    PORTRAIT = "IP-Adapter FaceID Portrait"
    PORTRAIT_UNNORM = "IP-Adapter FaceID Portrait (raw embedding)"


READS_EMBEDDING = {
    Variant.FACEID,
    Variant.FACEID_PLUS,
    Variant.FACEID_PLUS_V2,
    Variant.PORTRAIT,
    Variant.PORTRAIT_UNNORM,
}
READS_FEATURES = {Variant.PLUS, Variant.FULL_FACE, Variant.FACEID_PLUS, Variant.FACEID_PLUS_V2}


@dataclass(frozen=True)
class Evidence:
    """What an adapter is shown of a person or an image; one row per photo, whatever the variant needs.

    id_embeds: (photos, id_dim), unit vectors, raw for Portrait-unnorm.
    features, uncond_features: CLIP, pooled (photos, embed_dim) for the base variant, else the hidden states of the last
    but one layer (photos, sequence, hidden_dim). The unconditioned ones come from an image of zeros after
    normalisation, the way training dropped images; for the base variant they default to zeros.
    """

    id_embeds: Tensor | None = None
    features: Tensor | None = None
    uncond_features: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Evidence:
        """The same evidence elsewhere or in another precision."""
        tensors = (self.id_embeds, self.features, self.uncond_features)
        return Evidence(*(None if t is None else t.to(device, dtype) for t in tensors))
