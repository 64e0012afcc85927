"""Images of what was found and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from .restore import FaceOutcome, Fate
from .upscale import resized

MIDDLE = 768  # pixels

COLOURS = {Fate.RESTORED: (60, 220, 90), Fate.REDUCED: (255, 196, 0), Fate.KEPT: (255, 70, 60)}


def side_by_side(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Every image or crop before, at the left, and after: (n, H, 2 W, 3). Crops (3, S, S) or images (H, W, 3)."""
    pairs = [torch.cat([_upright(one), _upright(other)], 1) for one, other in zip(before, after, strict=True)]
    return torch.stack(pairs).clamp(0, 1)


def middles(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """The middle of every image (H, W, 3) at the size of the result, before and after: (n, h, 2 w, 3)."""
    rows, columns = after[0].shape[0], after[0].shape[1]
    scale = rows / before[0].shape[0], columns / before[0].shape[1]
    height, width = min(MIDDLE, rows), min(MIDDLE, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    shown = [one[top : top + height, left : left + width] for one in after]
    parts = [
        one[int(top / scale[0]) :, int(left / scale[1]) :][: ceil(height / scale[0]), : ceil(width / scale[1])]
        for one in before
    ]
    return side_by_side([resized(part, height, width) for part in parts], shown)


def _upright(pixels: Tensor) -> Tensor:
    return pixels if pixels.shape[-1] == 3 else pixels.permute(1, 2, 0)


def marked(picture: Tensor, outcomes: Sequence[FaceOutcome], number: int) -> Tensor:
    """An image (H, W, 3) with a box around each of its faces, in the colour of its fate, and how alike it stayed."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    pen = ImageDraw.Draw(sheet)
    line = max(1, round(min(sheet.size) / 300))
    font = ImageFont.load_default(size=max(10.0, 9.0 * line))
    for outcome in (one for one in outcomes if one.picture == number):
        x1, y1, x2, y2 = (float(value) for value in outcome.face.box)
        colour = COLOURS[outcome.fate]
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=2 * line)
        said = str(outcome.number) if outcome.likeness is None else f"{outcome.number}: {outcome.likeness.kept:.2f}"
        pen.text((x1 + 4 * line, y1 + 3 * line), said, fill=colour, font=font, stroke_width=1, stroke_fill=0)
    return torch.from_numpy(np.array(sheet)) / 255
