"""What PuLID shows EVA02-CLIP of a photo: the aligned face in grey, everything around face and hair in white."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...faces.parsing import Part

KEPT = (
    Part.SKIN, Part.LEFT_BROW, Part.RIGHT_BROW, Part.LEFT_EYE, Part.RIGHT_EYE, Part.GLASSES, Part.NOSE, Part.MOUTH,
    Part.UPPER_LIP, Part.LOWER_LIP, Part.HAIR,
)  # fmt: skip
_LUMA = (0.299, 0.587, 0.114)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP


def face_features(crops: Tensor, labels: Tensor | None) -> Tensor:
    """Aligned RGB crops (n, S, S, 3) of 0..255 and their labels (n, S, S) of `Part` -> (n, 3, S, S), 0..1.

    Ears, neck, hat, clothes and background are white; nothing is without labels.
    """
    grey = (crops.float() / 255 * torch.tensor(_LUMA)).sum(dim=-1)
    if labels is not None:
        grey = torch.where(torch.isin(labels.long(), torch.tensor(KEPT)), grey, 1.0)
    return grey.unsqueeze(1).expand(-1, 3, -1, -1)


def pixels_of(features: Tensor, side: int, antialias: bool = True) -> Tensor:
    """(n, 3, S, S) in 0..1 -> (n, 3, side, side), resized (bicubic, the overshoot is kept) and normalised for CLIP.

    antialias: as torchvision does since 0.17; PuLID's SDXL versions were published with an older one. Runs on the CPU,
    because not every device has this filter.
    """
    resized = F.interpolate(
        features.float().cpu(), (side, side), mode="bicubic", align_corners=False, antialias=antialias
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (resized - mean) / std
