"""What PhotoVerse shows CLIP of a photo: the face box times 1.3, black outside of the photo and around the face.

An identity keeps an upright crop of twice the face box, which holds that square; it is cut out of the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from ...errors import LikenessError
from ...faces.align import expand_box
from ...faces.identity import HEAD_FACTOR, HEAD_SIZE, Identity
from ...faces.parsing import BROWS, EYES, LIPS, Part

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


def face_crops(person: Identity, scale: float = SCALE, parse: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The squares of every photo, (n, side, side, 3) in 0..1.

    scale: side in sides of the face box, at most that of the identity's own crops. parse: makes labels of `Part` of
    upright crops (n, S, S, 3) uint8; None keeps everything around the face. LikenessError for a photo in which it finds
    no face.
    """
    heads = person.heads
    seen = heads.float() / 255 * torch.stack([_inside(person, i) for i in range(len(person))])
    if parse is not None:
        labels = parse(heads).long()
        kept = torch.isin(labels, torch.tensor(sorted(int(part) for part in KEPT)))
        _require_faces(person, _middle(kept, scale))
        seen = seen * kept.unsqueeze(-1)
    return _middle(seen, scale)


def small_faces(person: Identity) -> list[tuple[int, int]]:
    """(number of the photo, pixels of its face) where that is less than `SMALLEST`."""
    sides = (person.boxes[:, 2:] - person.boxes[:, :2]).amax(1).round().int().tolist()
    return [(number, side) for number, side in enumerate(sides, 1) if side < SMALLEST]


def _middle(squares: Tensor, scale: float) -> Tensor:
    """(n, S, S, ...) -> the middle of the crop, `scale` face boxes wide."""
    margin = round(squares.shape[1] * (1 - min(scale / HEAD_FACTOR, 1)) / 2)
    return squares[:, margin : squares.shape[1] - margin, margin : squares.shape[2] - margin]


def _inside(person: Identity, photo: int) -> Tensor:
    """1 where a head crop shows the photo, 0 beyond its edges: (HEAD_SIZE, HEAD_SIZE, 1). See `align.head_crop`."""
    x1, y1, x2, y2 = expand_box(person.boxes[photo].numpy(), HEAD_FACTOR).round()
    height, width = person.photo_sizes[photo].tolist()
    steps = (torch.arange(HEAD_SIZE) + 0.5) / HEAD_SIZE * max(x2 - x1, y2 - y1, 1.0)
    columns, rows = steps + x1, steps + y1
    inside = ((rows >= 0) & (rows <= height))[:, None] & ((columns >= 0) & (columns <= width))[None]
    return inside.float().unsqueeze(-1)


def _require_faces(person: Identity, kept: Tensor) -> None:
    empty = [number for number, found in enumerate(kept.flatten(1).any(1).tolist(), 1) if not found]
    if empty:
        raise LikenessError(
            f"The face parsing network finds no face in photo {empty[0]} of {person.name!r}: leave that photo out, or "
            f"choose the mask {FaceMask.NONE.value!r} in PhotoVerse Options."
        )
