"""A face analysis whose answers are known: it reads them from the pixels of the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from likeness.faces import Detection, FaceAnalysis

POINTS = np.array([(24, 24), (40, 24), (32, 34), (26, 44), (38, 44)], np.float32)
SIDE = 64


@dataclass(frozen=True)
class ByColour:
    """Finds a face in every image whose middle is not black; its embedding is the colour there, minus mid grey.

    Two bright halves (left and right) that differ are two faces, the left one larger.
    """

    name: str = "by colour"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (64,)

    def detect(self, image_bgr, size=None):
        height, width = image_bgr.shape[:2]
        if (image_bgr[0, 0] == 127).all():  # the search's second attempt, on a padded photo
            return []
        scale = np.array([width / SIDE, height / SIDE], np.float32)
        left, right = image_bgr[height // 2, width // 4], image_bgr[height // 2, 3 * width // 4]
        if not (left == right).all():
            found = [(0, np.array([2, 8, 30, 56]), left, -16), (1, np.array([36, 12, 60, 52]), right, 16)]
            return [
                Detection(np.float32(box) * np.tile(scale, 2), 0.9 - 0.1 * n, (POINTS * 0.5 + (16 + by, 16)) * scale)
                for n, box, colour, by in found
                if colour.max() > 0
            ]
        if image_bgr[height // 2, width // 2].max() == 0:
            return []
        return [Detection(np.array([16, 8, 48, 56], np.float32) * np.tile(scale, 2), 0.9, POINTS * scale)]

    def embed(self, image_rgb, keypoints):
        x, y = keypoints[2].round().astype(int).clip(0, np.array(image_rgb.shape[1::-1]) - 1)
        return image_rgb[y, x].astype(np.float32) - 127.5


def colour_judge(name: str = "by colour") -> FaceAnalysis:
    """A whole face analysis of that kind."""
    return FaceAnalysis(name, ByColour(), ByColour(name), licence="public domain", commercial=True)


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    """An image of the person with this colour; black: nobody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.array(colour, np.uint8), (SIDE, SIDE, 3)).copy()).save(path)
    return path
