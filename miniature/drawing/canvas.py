"""A batch of images under the brush, with everything that is known about each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...faces.parsing import Part

# What covers the face without being part of it, and what a person consists of (facial features lie on the skin).
_OCCLUDERS = (Part.HAIR, Part.HAT)
_BODY = (Part.SKIN, Part.NECK, Part.CLOTH, Part.HAIR, Part.HAT, Part.LEFT_EAR, Part.RIGHT_EAR)


@dataclass(frozen=True)
class Extent:
    """The same small rectangle out of some images of a batch, at another place in each."""

    rows: Tensor  # (N,) which images
    top: Tensor  # (N,) pixels
    left: Tensor
    height: int
    width: int

    @property
    def ys(self) -> Tensor:
        """Rows of pixels, (N, height, 1)."""
        return (self.top[:, None] + torch.arange(self.height, device=self.top.device))[:, :, None]

    @property
    def xs(self) -> Tensor:
        """Columns of pixels, (N, 1, width)."""
        return (self.left[:, None] + torch.arange(self.width, device=self.left.device))[:, None, :]


class Canvas:
    """Images (B, 3, H, W) with part labels and the coverage of face and person (B, H, W), painted back to front."""

    def __init__(self, rgb: Tensor, parts: Tensor, face: Tensor, person: Tensor) -> None:
        self.rgb, self.parts, self.face, self.person = rgb, parts, face, person

    @classmethod
    def on(cls, background: Tensor) -> Canvas:
        """Nobody yet, in front of a background (B, 3, H, W)."""
        blank = torch.zeros_like(background[:, 0])
        return cls(background, blank.to(torch.uint8), blank, blank.clone())

    def cut(self, window: Extent) -> Canvas:
        """A copy of what a window shows; `put` lays it back."""
        plane, colour = _places(window)
        return Canvas(self.rgb[colour], self.parts[plane], self.face[plane], self.person[plane])

    def put(self, window: Extent, piece: Canvas) -> None:
        """Replace what a window shows."""
        plane, colour = _places(window)
        self.rgb.index_put_(colour, piece.rgb)
        self.parts.index_put_(plane, piece.parts)
        self.face.index_put_(plane, piece.face)
        self.person.index_put_(plane, piece.person)

    def paint(self, alpha: Tensor, colour: Tensor, part: Part | None = None) -> None:
        """Lay `colour` (B, 3, 1, 1) or (B, 3, H, W) over the images where `alpha` (B, H, W) says.

        Without a part it is light and shade: it changes how something looks, not what it is.
        """
        self.rgb = torch.lerp(self.rgb, colour, alpha[:, None])
        if part is None:
            return
        self.label(alpha, part)
        if part in _BODY:
            self.person = torch.lerp(self.person, torch.ones_like(alpha), alpha)
        if part in _OCCLUDERS:
            self.face = self.face * (1 - alpha)

    def label(self, alpha: Tensor, part: Part) -> None:
        """Say what lies where `alpha` exceeds one half, leaving the image as it is."""
        self.parts = torch.where(alpha > 0.5, int(part), self.parts)

    def reveal_face(self, alpha: Tensor) -> None:
        """Count this area as face, until hair or a hat is painted over it."""
        self.face = torch.maximum(self.face, alpha)

    def shade(self, factor: Tensor, alpha: Tensor) -> None:
        """Multiply the light by `factor` (B, H, W) where `alpha` (B, H, W) says."""
        self.rgb = (self.rgb * (1 + (factor - 1) * alpha)[:, None]).clamp(0, 1)


def _places(window: Extent) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Indices of a window's pixels, into (B, H, W) and into (B, 3, H, W)."""
    rows, ys, xs = window.rows[:, None, None], window.ys, window.xs
    channels = torch.arange(3, device=ys.device)[None, :, None, None]
    return (rows, ys, xs), (rows[:, None], channels, ys[:, None], xs[:, None])
