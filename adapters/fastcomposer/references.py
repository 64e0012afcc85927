"""What FastComposer looks at: a subject as a square with black bars, its background replaced by noise.

No face is looked for. The square is padded, never cropped, so that a face at the border stays.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..image_prep import CLIP_SIZE, to_rgb

NOISE_LEVELS = 255  # 0..254, as in training: 255 never occurs


class Background(Enum):
    """What stands around a subject whose mask is known; the value is the name a user chooses."""

    NOISE = "noise"  # as in training
    KEEP = "keep"
    BLACK = "black"


def pad_to_square(images: Tensor) -> Tensor:
    """(B, H, W, 3) -> the same with black bars at both ends of the short side, one pixel from square where odd."""
    height, width = images.shape[1:3]
    bar = abs(height - width) // 2
    around = (0, 0, bar, bar, 0, 0) if height > width else (0, 0, 0, 0, bar, bar)
    return F.pad(images, around)


def reference(images: Tensor, size: int = CLIP_SIZE) -> Tensor:
    """Images (B, H, W, 1 to 4) in 0..1, any size -> squares (B, 3, size, size), rounded to 8 bits."""
    from PIL import Image

    padded = (pad_to_square(to_rgb(images)) * 255).round().to(torch.uint8).cpu().numpy()
    squares = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in padded]
    return torch.from_numpy(np.stack(squares)).movedim(-1, 1).float() / 255


def noise(height: int, width: int, random: torch.Generator) -> Tensor:
    """(1, height, width, 3) in 0..1: what fills a background, one noise for all subjects of an image."""
    return torch.randint(0, NOISE_LEVELS, (1, height, width, 3), generator=random).float() / 255


def on_background(images: Tensor, masks: Tensor, background: Tensor) -> Tensor:
    """Subjects cut out of their images: (B, H, W, 3), with masks (B, H, W), soft ones allowed, before a background."""
    return torch.lerp(background.expand_as(images), images, masks.unsqueeze(-1).to(images))


def cut_out(image: Tensor, mask: Tensor, background: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """One subject of an image as training sees it: (1, H, W, 3), mask (1, H, W) -> (1, h, w, 3).

    box: (x1, y1, x2, y2), the far ends exclusive.
    """
    left, top, right, bottom = box
    return on_background(image, mask, background)[:, top:bottom, left:right]
