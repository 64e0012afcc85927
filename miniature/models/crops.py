"""Upright crops for the miniature's recognisers: wide enough to show the hair, the ears and a beard."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The five points of a face that looks straight ahead, in half heads around the middle of the crop.
_POINTS = np.array([(-0.35, 0.07), (0.35, 0.07), (0.0, 0.38), (-0.27, 0.66), (0.27, 0.66)])
_REACH = 1.32  # half heads from the middle to the crop's edge


def template(side: int) -> np.ndarray:
    """Where the five points (5, 2) lie in a crop, pixel centres whole."""
    return (_POINTS / _REACH + 1) * side / 2 - 0.5


def crop_matrices(keypoints: np.ndarray, side: int) -> np.ndarray:
    """The similarity (B, 2, 3) from crop pixels to image pixels of every face; keypoints (B, 5, 2).

    Least squares in closed form: as complex numbers, picture = a crop + b.
    """
    crop = template(side) @ [1, 1j]
    points = np.asarray(keypoints, np.float64) @ [1, 1j]
    centre, middle = crop.mean(), points.mean(1)
    a = ((points - middle[:, None]) * (crop - centre).conj()).sum(1) / (abs(crop - centre) ** 2).sum()
    b = middle - a * centre
    return np.stack([np.stack([a.real, -a.imag, b.real], 1), np.stack([a.imag, a.real, b.imag], 1)], 1)


def aligned_crops(pictures: Tensor, keypoints: np.ndarray, side: int) -> Tensor:
    """Crops (B, 3, side, side), RGB -1..1, of images (B, 3, H, W), RGB 0..1, with gradient; outside is grey.

    keypoints: (B, 5, 2) in pixels of the images.
    """
    height, width = pictures.shape[-2:]
    matrices = torch.from_numpy(crop_matrices(keypoints, side)).to(pictures)
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).to(pictures)
    places = grid.view(1, -1, 2) @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    size = torch.tensor([width, height]).to(pictures)
    normal = ((2 * places + 1) / size - 1).view(-1, side, side, 2)
    return F.grid_sample(2 * pictures - 1, normal, mode="bilinear", padding_mode="zeros", align_corners=False)
