"""From the host's pictures to photos: what detectors and recognisers take."""

from __future__ import annotations

import logging

import numpy as np
import torch

from ..errors import LikenessError

log = logging.getLogger(__name__)
GREY = 0.5  # behind transparent pixels


def to_photos(images: torch.Tensor) -> list[np.ndarray]:
    """Pictures (B, H, W, C) float 0..1 as a list of B photos (H, W, 3) uint8 RGB; the input is never changed.

    C is 1 (grey, repeated), 3 (RGB) or 4 (RGBA, composed on mid grey, so that hidden colours cannot be taken for a
    face). Values outside 0..1 are clamped with one warning. NaN, infinity, an empty batch and other shapes raise
    `LikenessError`. Like the peers' code, values are truncated to integers, so a photo gives the embedding it
    always gave.
    """
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise LikenessError(
            f"The picture has shape {tuple(images.shape)}, not (batch, height, width, 1, 3 or 4): connect an IMAGE."
        )
    if 0 in images.shape:
        raise LikenessError("The batch of pictures is empty: connect at least one photo.")
    photos, clamped = [], False
    for number, image in enumerate(images, 1):
        pixels = image.detach().float().cpu()
        if not torch.isfinite(pixels).all():
            raise LikenessError(
                f"Photo {number} holds values that are not numbers (NaN or infinite): check the node that made it, "
                "often a VAE in half precision."
            )
        clamped = clamped or bool(pixels.min() < -1e-3) or bool(pixels.max() > 1 + 1e-3)
        pixels = pixels.clamp(0, 1)
        if pixels.shape[-1] == 4:
            colour, alpha = pixels[..., :3], pixels[..., 3:]
            pixels = colour * alpha + GREY * (1 - alpha)
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        # The small addend undoes float32's rounding of n/255, which would truncate to n - 1.
        photos.append((pixels * 255 + 1e-3).to(torch.uint8).contiguous().numpy())
    if clamped:
        log.warning("Pictures with values outside 0..1 were clamped; check the node that made them.")
    return photos
