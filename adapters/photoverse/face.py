"""What PhotoVerse shows CLIP of a photo: the face box times 1.3, black outside of the photo and around the face.

An identity keeps an upright crop of twice the face box, which holds that square; it is cut out of the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from ...errors import LikenessError
from ...faces.align import expand_box, head_crop
from ...faces.identity import HEAD_FACTOR, HEAD_SIZE, Identity
from ...faces.parsing import BROWS, EYES, LIPS, Part

Parse = Callable[[Tensor], Tensor]  # upright crops (n, S, S, 3) uint8 -> labels of `Part`, (n, S, S)

SCALE = 1.3  # of the face box, as in the paper
SMALLEST = 64  # pixels of a face below which little of it can be seen
KEPT = frozenset(
    {Part.SKIN, Part.GLASSES, Part.NOSE, Part.MOUTH, Part.LEFT_EAR, Part.RIGHT_EAR, Part.HAIR} | EYES | BROWS | LIPS
)


class FaceMask(Enum):
    """What of the crop CLIP sees; the value is the name a user chooses."""

    PUBLISHED = "as the file was made"  # PhotoVerse: the face; ELITE: all of it
    FACE = "face and hair"  # no background, neck, clothes, hat or jewellery
    NONE = "all of the crop"


def face_crops(person: Identity, scale: float = SCALE, parse: Parse | None = None) -> Tensor:
    """The squares of every photo, (n, side, side, 3) in 0..1.

    scale: side in sides of the face box, at most that of the identity's own crops. LikenessError for a photo in which
    `parse` finds no face.
    """
    inside = torch.stack(
        [_inside(box, size) for box, size in zip(person.boxes.numpy(), person.photo_sizes.tolist(), strict=True)]
    )
    crops, found = _cut(person.heads, inside, scale, parse)
    empty = [number for number, one in enumerate(found, 1) if not one]
    if empty:
        raise LikenessError(
            f"The face parsing network finds no face in photo {empty[0]} of {person.name!r}: leave that photo out, or "
            f"choose the mask {FaceMask.NONE.value!r} in PhotoVerse Options."
        )
    return crops


def face_crop(photo: np.ndarray, box: np.ndarray, scale: float = SCALE, parse: Parse | None = None) -> Tensor | None:
    """The same of a photo (H, W, 3) uint8 that belongs to no identity, (1, side, side, 3); None without a face."""
    head = torch.from_numpy(head_crop(photo, box, HEAD_SIZE, HEAD_FACTOR))[None]
    crop, [found] = _cut(head, _inside(box, photo.shape[:2])[None], scale, parse)
    return crop if found else None


def _cut(heads: Tensor, inside: Tensor, scale: float, parse: Parse | None) -> tuple[Tensor, list[bool]]:
    """The squares, and whether each shows a face as far as anybody has looked."""
    seen = heads.float() / 255 * inside
    if parse is None:
        return _middle(seen, scale), [True] * len(heads)
    labels = parse(heads).long()
    kept = torch.isin(labels, torch.tensor(sorted(int(part) for part in KEPT)))
    return _middle(seen * kept.unsqueeze(-1), scale), _middle(kept, scale).flatten(1).any(1).tolist()


def small_faces(person: Identity) -> list[tuple[int, int]]:
    """(number of the photo, pixels of its face) where that is less than `SMALLEST`."""
    sides = (person.boxes[:, 2:] - person.boxes[:, :2]).amax(1).round().int().tolist()
    return [(number, side) for number, side in enumerate(sides, 1) if side < SMALLEST]


def _middle(squares: Tensor, scale: float) -> Tensor:
    """(n, S, S, ...) -> the middle of the crop, `scale` face boxes wide."""
    margin = round(squares.shape[1] * (1 - min(scale / HEAD_FACTOR, 1)) / 2)
    return squares[:, margin : squares.shape[1] - margin, margin : squares.shape[2] - margin]


def _inside(box: np.ndarray, size: Sequence[int]) -> Tensor:
    """1 where a head crop shows the photo of this (height, width), 0 beyond its edges: (HEAD_SIZE, HEAD_SIZE, 1). See
    `align.head_crop`."""
    x1, y1, x2, y2 = expand_box(box, HEAD_FACTOR).round()
    height, width = size
    steps = (torch.arange(HEAD_SIZE) + 0.5) / HEAD_SIZE * max(x2 - x1, y2 - y1, 1.0)
    columns, rows = steps + x1, steps + y1
    inside = ((rows >= 0) & (rows <= height))[:, None] & ((columns >= 0) & (columns <= width))[None]
    return inside.float().unsqueeze(-1)
