"""What every detector of this room offers, and the little geometry they share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

SIZES = (640, 512, 448, 320, 256, 192, 128)  # large first: a face that fills the image is only found when shrunk
SCORE_FLOOR = 0.1  # candidates above it are reported, so that "no face" can say how close the best one came


class Detection(NamedTuple):
    """One candidate, in pixels of the image that was searched."""

    box: np.ndarray  # (4,) float32: x1, y1, x2, y2
    score: float  # 0..1
    keypoints: np.ndarray | None  # (5, 2) float32


class Detector(Protocol):
    """Finds faces. `sizes` are worth trying in this order; candidates from `threshold` on count as faces."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """All candidates in an image (H, W, 3) uint8 BGR, best first, also those below `threshold`.

        `size` is the side of the square the image is shrunk into, or None for the detector's first choice.
        """
        ...


def non_maximum_suppression(
    boxes: np.ndarray, scores: np.ndarray, overlap: float, last_pixel: bool = False
) -> np.ndarray:
    """Indices, best score first, of the boxes (n, 4) that no better box overlaps by more than `overlap` (IoU).

    With `last_pixel` a side is x2 - x1 + 1 long, as insightface counts. Equal scores keep their order.
    """
    more = 1 if last_pixel else 0
    areas = (boxes[:, 2:] - boxes[:, :2] + more).prod(1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        corner = np.maximum(boxes[best, :2], boxes[rest, :2])
        opposite = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.clip(opposite - corner + more, 0, None).prod(1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= overlap]
    return np.array(kept, np.int64)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear uint8 resize (H, W, C) without anti-aliasing: what detectors are used to."""
    if image.shape[:2] == (height, width):
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)[0]
    return resized.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def shrink_to(image: np.ndarray, size: int | None) -> tuple[np.ndarray, float]:
    """The image with its longer side at most `size`, and the scale that was applied."""
    longest = max(image.shape[:2])
    if size is None or longest <= size:
        return image, 1.0
    scale = size / longest
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return resize(image, width, height), scale
