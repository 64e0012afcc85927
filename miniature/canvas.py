"""A batch of pictures under the brush, with everything that is known about each pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..faces.parsing import Part

# What covers the face without being part of it, and what a person consists of (facial features lie on the skin).
_OCCLUDERS = (Part.HAIR, Part.HAT)
_BODY = (Part.SKIN, Part.NECK, Part.CLOTH, Part.HAIR, Part.HAT, Part.LEFT_EAR, Part.RIGHT_EAR)


class Canvas:
    """Pictures (B, 3, H, W) with part labels (B, H, W) and the coverage of face and person (B, H, W), painted back to front."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.rgb = torch.zeros(batch, 3, size, size, device=device)
        self.parts = torch.zeros(batch, size, size, dtype=torch.uint8, device=device)
        self.face = torch.zeros(batch, size, size, device=device)
        self.person = torch.zeros(batch, size, size, device=device)

    def paint(self, alpha: Tensor, colour: Tensor, part: Part | None = None) -> None:
        """Lay `colour` (B, 3, 1, 1) or (B, 3, H, W) over the pictures where `alpha` (B, H, W) says.

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
        """Say what lies where `alpha` exceeds one half, leaving the picture as it is."""
        self.parts = torch.where(alpha > 0.5, int(part), self.parts)

    def reveal_face(self, alpha: Tensor) -> None:
        """Count this area as face, until hair or a hat is painted over it."""
        self.face = torch.maximum(self.face, alpha)

    def shade(self, factor: Tensor, alpha: Tensor) -> None:
        """Multiply the light by `factor` (B, H, W) where `alpha` (B, H, W) says."""
        self.rgb = (self.rgb * (1 + (factor - 1) * alpha)[:, None]).clamp(0, 1)
