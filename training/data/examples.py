"""One training image, as the data side hands it to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """An image with what training needs to know about it."""

    pixels: Tensor  # (3, height, width) float32 in -1..1; height and width are multiples of 8
    caption: str
    face_mask: Tensor | None = None  # (1, height, width) float32 in 0..1, one where the face is; None: unknown
    original_size: tuple[int, int] | None = None  # (height, width) before resizing, for SDXL; None: that of `pixels`
    crop: tuple[int, int] = (0, 0)  # (top, left) of the crop in the resized image, for SDXL
    name: str = ""  # as messages call it

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def shows_face(self) -> bool:
        """Whether the mask says where a face is."""
        return self.face_mask is not None and bool((self.face_mask > 0.5).any())
