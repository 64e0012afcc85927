"""Training photos with what a recogniser needs to know about the face in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..objectives.identity import Measure
from .dataset import Dataset, DatasetPicture
from .examples import Example

MIRRORED = (1, 0, 2, 4, 3)  # eyes and mouth corners change sides in the mirror

Detect = Callable[[np.ndarray], "np.ndarray | None"]  # (H, W, 3) uint8 RGB -> (5, 2) keypoints of the face, or None


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photo, its face's keypoints (5, 2) in pixels and recogniser embedding (d,); None where no face was found."""

    example: Example
    keypoints: Tensor | None = None
    embedding: Tensor | None = None

    def keypoints_as_shown(self, flipped: bool) -> Tensor | None:
        """The keypoints in the photo or in its mirror image."""
        if self.keypoints is None or not flipped:
            return self.keypoints
        mirrored = self.keypoints[list(MIRRORED)].clone()
        mirrored[:, 0] = self.example.size[1] - 1 - mirrored[:, 0]
        return mirrored


def portraits(dataset: Dataset, measure: Measure | None = None, device: torch.device | str = "cpu") -> list[Portrait]:
    """A dataset's images, their faces measured (on `device`) as the identity loss will. Once, before a training."""
    return [p for sample in dataset.pictures for p in [_portrait(sample, measure, device)] * sample.repeats]


def _portrait(sample: DatasetPicture, measure: Measure | None, device: torch.device | str) -> Portrait:
    example = sample.example()
    if sample.keypoints is None:
        return Portrait(example)
    keypoints, embedding = torch.from_numpy(sample.keypoints).float(), None
    if measure is not None:
        with torch.no_grad():
            picture = (example.pixels / 2 + 0.5).unsqueeze(0).to(device)
            embedding = measure(picture, keypoints.unsqueeze(0))[0].cpu()
    return Portrait(example, keypoints, embedding)


def as_uint8(picture: Tensor) -> np.ndarray:
    """(3, H, W), 0..1, to (H, W, 3) uint8."""
    return (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
