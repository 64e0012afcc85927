"""Is it an image at all, and is the face sharp? Beauty is not measured: scores of it say little about identity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

DARK, FLAT = 2 / 255, 1 / 255


def sane(images: torch.Tensor) -> torch.Tensor:
    """Which images (n, H, W, C) 0..1 are pictures: finite, not black, not one colour. (n,) bool."""
    flat = images.float().flatten(1)
    finite = torch.isfinite(flat).all(1)
    flat = torch.nan_to_num(flat, posinf=0.0, neginf=0.0)
    return finite & (flat.amax(1) > DARK) & (flat.amax(1) - flat.amin(1) > FLAT)


def crop_sharpness(faces: torch.Tensor) -> torch.Tensor:
    """Variance of the Laplacian of grey face crops (n, H, W, 3) 0..1: (n,), greater is sharper.

    Compare crops of one size only, and methods by their ratio to the images without identity.
    """
    grey = (faces.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[:, None]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    return F.conv2d(grey, kernel[None, None]).var((1, 2, 3))
