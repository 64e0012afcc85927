"""Colours and texture of a restored face brought back to those of the image. Crops (3, S, S), RGB 0..1."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from ..faces.opencv import opencv

LUMA = (0.2989, 0.5870, 0.1140)
_EPS = 1e-5 / 255**2  # of variances, official at 0..255
_GREY_VARIANCE = 10 / 255**2
_COARSE, _FINE = 1 / 32, 1 / 170  # sigmas in sides of the crop


class ColourMatch(Enum):
    """How the colours of a restored face are brought to those of the image."""

    NONE = "none"
    MEAN = "mean and contrast"
    COARSE = "coarse colours"


def matched(restored: Tensor, crop: Tensor, mask: Tensor, how: ColourMatch) -> Tensor:
    """The restored crop with the image's colours: each channel's mean and deviation inside the mask (S, S), or
    everything coarser than a thirtieth of the crop."""
    if how is ColourMatch.MEAN:
        return _with_statistics_of(restored, crop, mask)
    if how is ColourMatch.COARSE:
        sigma = _COARSE * crop.shape[-1]
        return restored + blurred(crop, sigma) - blurred(restored, sigma)
    return restored


def with_texture(restored: Tensor, crop: Tensor, amount: float) -> Tensor:
    """The restored crop with this share of the image's finest detail, which restorers smooth away."""
    return restored + amount * (crop - blurred(crop, _FINE * crop.shape[-1])) if amount > 0 else restored


def is_grey(crop: Tensor) -> bool:
    """Whether a crop has no colours: channels that differ by a constant, as sczhou/CodeFormer judges it."""
    differences = torch.stack([crop[0] - crop[1], crop[1] - crop[2], crop[2] - crop[0]])
    return bool(differences.flatten(1).var(1, unbiased=False).mean() <= _GREY_VARIANCE)


def grey(crop: Tensor) -> Tensor:
    """The crop's brightness, three times."""
    weights = crop.new_tensor(LUMA).reshape(3, 1, 1)
    return (crop * weights).sum(0, keepdim=True).expand(3, -1, -1)


def grey_like(restored: Tensor, crop: Tensor) -> Tensor:
    """The restored crop in grey, with the mean and deviation of a grey crop (sczhou/CodeFormer, `adain_npy`)."""
    return _with_statistics_of(grey(restored), crop, torch.ones_like(crop[0]))


def _with_statistics_of(content: Tensor, style: Tensor, mask: Tensor) -> Tensor:
    total = mask.sum().clamp(min=1e-6)

    def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = (values * mask).sum((1, 2), keepdim=True) / total
        return mean, (((values - mean) ** 2 * mask).sum((1, 2), keepdim=True) / total + _EPS).sqrt()

    mean, deviation = statistics(content)
    style_mean, style_deviation = statistics(style)
    return (content - mean) / deviation * style_deviation + style_mean


def blurred(crop: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur."""
    cv2 = opencv()
    pixels = crop.permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)).permute(2, 0, 1)
