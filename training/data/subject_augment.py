"""How FastComposer's training varies what it shows of a person, so that poses and framings are not copied."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ZOOM = 2.0
ROTATION, ROTATED = 30.0, 0.75  # degrees; how often
JITTER, BLUR, GREY = 0.5, 5, 0.1


def zoomed(image: Tensor, random: torch.Generator) -> Tensor:
    """(1, h, w, 3): every second image one to two times as large, of which the upper square is kept."""
    height, width = image.shape[1:3]
    if float(torch.rand((), generator=random)) < 0.5:
        return image
    factor = 1 + (MOST_ZOOM - 1) * float(torch.rand((), generator=random))
    side = max(int(min(height, width) / factor), 1)
    left = (width - side) // 2
    return image[:, :side, left : left + side]


def varied(image: Tensor, random: torch.Generator) -> Tensor:
    """(1, 3, S, S) in 0..1: turned, recoloured, blurred, made grey, mirrored, bent."""
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomApply([v2.RandomRotation(ROTATION, v2.InterpolationMode.BILINEAR)], ROTATED),  # type: ignore[arg-type]
            v2.RandomApply([v2.ColorJitter(JITTER, JITTER, JITTER, JITTER)], 0.5),
            v2.RandomApply([v2.GaussianBlur(BLUR, (0.1, 2.0))], 0.5),
            v2.RandomGrayscale(GREY),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ElasticTransform()], 0.5),
        ]
    )
    with torch.random.fork_rng(devices=[]):  # whose numbers are the process's, not the sample's
        torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
        return change(image).clamp(0, 1)
