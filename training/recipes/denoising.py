"""The denoising loss that most recipes share: plain or masked, with or without min-SNR weights."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError
from ..config import Seen
from ..data.examples import Example
from ..objectives.reconstruction import masked_reconstruction, masked_squared_error, soft_mask, squared_error
from ..objectives.snr_weighting import min_snr
from ..recipe import Pass, Sample


class Mask(Enum):
    """How the face mask of a photo weighs its loss."""

    NONE = "none"
    FACE = "face"  # a small face gives a small loss (sd-scripts)
    FACE_NORMALISED = "face, normalised"  # a small face weighs as much as a large one (MagiCapture)


def seen_by(captions: bool, mask: Mask) -> Seen:
    """What of the photos this loss depends on."""
    return (Seen.CAPTIONS if captions else Seen(0)) | (Seen(0) if mask is Mask.NONE else Seen.MASKS)


def require_masks(photos: Sequence[Example], mask: Mask, cell: int, of_style: bool = False) -> None:
    """Raises LikenessError when the loss wants a mask that a photo lacks, or has in another size, or of which nothing
    is left among the latents, whose cells are `cell` pixels wide.

    of_style: what is outside of the mask counts, and the mask may say that there is no face.
    """
    if mask is Mask.NONE:
        return
    for number, photo in enumerate(photos, 1):
        name = photo.name or f"Photo {number}"
        if photo.face_mask is None or not (of_style or photo.shows_face):
            raise LikenessError(
                f"{name} has no face mask: find its face with Portrait Dataset, leave the photo out, or train without "
                "a mask."
            )
        if photo.face_mask.shape[-2:] != photo.pixels.shape[-2:]:
            raise LikenessError(
                f"The mask of {name} is {tuple(photo.face_mask.shape[-2:])} and the photo {photo.size}: make them the "
                "same size."
            )
        counts = 1 - photo.face_mask if of_style else photo.face_mask
        if not bool((F.interpolate(counts[None], [side // cell for side in photo.size], mode="nearest") > 0.5).any()):
            missing = (
                "leaves nothing but the face" if of_style else f"is smaller than the network's cells of {cell} pixels"
            )
            raise LikenessError(f"The mask of {name} {missing}: paint it again, or leave the photo out.")


def face_mask_of(sample: Sample) -> Tensor:
    """The face mask as the sample shows it, (1, 1, H, W); one everywhere for an image without."""
    mask = sample.example.face_mask
    if mask is None:
        mask = torch.ones(1, *sample.example.size)
    mask = mask.unsqueeze(0)
    return mask.flip(-1) if sample.flipped else mask


def denoising_losses(found: Pass, mask: Mask = Mask.NONE, gamma: float | None = None) -> Tensor:
    """‖ε̂ − ε‖² of every sample, or of every velocity: (batch,)."""
    losses = _errors(found, mask)
    if gamma is None:
        return losses
    return losses * min_snr(found.schedule.snr(found.t), gamma, found.schedule.prediction)


def _errors(found: Pass, mask: Mask) -> Tensor:
    prediction, target, size = found.prediction, found.target, found.z0.shape[-2:]
    if mask is Mask.NONE:
        return squared_error(prediction, target)
    faces = torch.cat([face_mask_of(sample) for sample in found.samples])
    if mask is Mask.FACE:
        return masked_squared_error(prediction, target, faces.to(target.device))
    return masked_reconstruction(prediction, target, soft_mask(faces, (size[0], size[1])).to(target))
