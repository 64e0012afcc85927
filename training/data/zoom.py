"""Custom Diffusion's augmentation: an image far away, as it is, or close up, and what the caption says of it.

r < 0.6 s          the image r wide on a grey canvas    "a far away ", "very small "    the loss sees the image
r > s              s wide out of an image r wide         "zoomed in ", "close up "       the loss sees all
between            adobe: as it is, all of it; huggingface: on the canvas as far away, without a prefix
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

FAR, NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")
CELL = 8  # pixels of a latent


class Zoom(Enum):
    """Whose rule decides about sizes; the value is what a user chooses."""

    NONE = "none"
    ADOBE = "adobe"
    HUGGINGFACE = "huggingface"  # leaves a ring of one latent cell out of the loss, even at full size


@dataclass(frozen=True)
class Draw:
    """What chance decided. scale: r. top, left: of the small image on the canvas, or of the crop. prefix: which."""

    scale: int
    top: int = 0
    left: int = 0
    prefix: int = 0

    @classmethod
    def at_random(cls, size: int, zoom: Zoom, random: torch.Generator) -> Draw:
        """r ~ U{s/3 .. s} in two of three draws, else U{1.2 s .. 1.4 s}."""

        def below(count: int) -> int:
            return int(torch.randint(max(1, count), (), generator=random))

        if zoom is Zoom.NONE:
            return cls(size)
        if zoom is Zoom.ADOBE:
            smaller = below(3) < 2
        else:
            smaller = bool(torch.rand((), generator=random) < 0.66)
        low, high = (size // 3, size + 1) if smaller else (int(1.2 * size), int(1.4 * size))
        scale = low + below(high - low)
        if zoom is Zoom.ADOBE:
            scale = even(scale)
        room = abs(size - scale) + 1
        return cls(scale, below(room), below(room), below(2))


def even(scale: int) -> int:
    """r as the adobe rule has it."""
    return scale + scale % 2


@dataclass(frozen=True, eq=False)
class Zoomed:
    """pixels: (3, s, s). mask: (1, s / 8, s / 8), where the loss counts. face: the face's mask, moved along. prefix:
    what goes before the prompt."""

    pixels: Tensor
    mask: Tensor
    face: Tensor | None
    prefix: str


def zoomed(pixels: Tensor, draw: Draw, zoom: Zoom, face: Tensor | None = None, cell: int = CELL) -> Zoomed:
    """A square image (3, s, s), -1..1, as one draw shows it. cell: pixels of a latent."""
    size, r = pixels.shape[-1], draw.scale
    mask = torch.ones(1, size // cell, size // cell)
    if r > size:
        prefix = NEAR[draw.prefix]
    elif r < 0.6 * size:
        prefix = FAR[draw.prefix]
    else:
        prefix = ""
    if zoom is Zoom.NONE or (zoom is Zoom.ADOBE and not prefix):
        return Zoomed(pixels, mask, face, prefix)
    top, left = draw.top, draw.left
    if r > size:
        crop = (..., slice(top, top + size), slice(left, left + size))
        return Zoomed(_resized(pixels, r)[crop], mask, None if face is None else _resized(face, r)[crop], prefix)
    mask = torch.zeros_like(mask)
    rows, columns = (slice(at // cell + 1, (at + r) // cell - 1) for at in (top, left))
    if (rows.stop > rows.start) and (columns.stop > columns.start):
        mask[:, rows, columns] = 1
    return Zoomed(_on_canvas(pixels, draw), mask, None if face is None else _on_canvas(face, draw), prefix)


def _resized(picture: Tensor, side: int) -> Tensor:
    """As PIL resizes bilinearly."""
    return F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def _on_canvas(picture: Tensor, draw: Draw) -> Tensor:
    """Small on nothing: mid-grey for pixels, no face for a mask."""
    canvas, r = torch.zeros_like(picture), draw.scale
    canvas[:, draw.top : draw.top + r, draw.left : draw.left + r] = _resized(picture, r)
    return canvas


def squared(picture: Tensor) -> Tensor:
    """The middle square of (c, H, W), whose side a latent's cell divides."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]
