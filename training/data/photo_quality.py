"""Whether a photo is worth training on: how sharp it is, and whether it is a copy of another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARPNESS_SIDE = 256  # pixels; larger images are shrunk to it, so that sharpness is that of what training sees
HASH_SIDE = 8
SAME_BITS, SAME_COLOUR = 4, 16.0  # of 64 bits; mean difference in grey levels of 255
ALIKE_BITS, ALIKE_COSINE = 12, 0.98  # of a retouched copy, whose face is the same


def luma(picture: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601) of (H, W, 3) uint8: (H, W) float32, 0..255."""
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def sharpness(picture: np.ndarray) -> float:
    """Variance of the Laplacian, in grey levels squared, of an image (H, W, 3) uint8 shrunk to at most 256 pixels.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000. It grows with contrast too: compare it
    with a low threshold only.
    """
    longest = max(picture.shape[:2])
    if longest > SHARPNESS_SIDE:
        height, width = (max(3, round(side * SHARPNESS_SIDE / longest)) for side in picture.shape[:2])
        picture = _resized(picture, height, width)
    g = np.pad(luma(picture), 1, mode="edge")
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return float(laplacian.var())


@dataclass(frozen=True, eq=False)
class Looks:
    """What is left of an image when its details are ignored, and the same of its mirror image."""

    bits: np.ndarray  # (64,) bool: is a pixel brighter than its left neighbour
    mirrored_bits: np.ndarray
    colours: np.ndarray  # (8, 8, 3) float32, 0..255

    @classmethod
    def of(cls, picture: np.ndarray) -> Looks:
        """Of an image (H, W, 3) uint8."""
        thumbnail = _resized(picture, HASH_SIDE, HASH_SIDE + 1)
        return cls(
            _gradient_bits(thumbnail),
            _gradient_bits(thumbnail[:, ::-1]),
            _resized(picture, HASH_SIDE, HASH_SIDE).astype(np.float32),
        )

    def is_copy_of(self, other: Looks, cosine: float | None = None) -> bool:
        """Whether two images are (mirrored) copies; `cosine` is that of their faces, if known."""
        for bits, colours in ((self.bits, self.colours), (self.mirrored_bits, self.colours[:, ::-1])):
            distance = int((bits != other.bits).sum())
            if distance <= SAME_BITS and float(np.abs(colours - other.colours).mean()) <= SAME_COLOUR:
                return True
            if distance <= ALIKE_BITS and cosine is not None and cosine >= ALIKE_COSINE:
                return True
        return False


def _gradient_bits(thumbnail: np.ndarray) -> np.ndarray:
    g = luma(thumbnail)
    return (g[:, 1:] > g[:, :-1]).reshape(-1)


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
