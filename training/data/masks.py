"""Where the face of a training photo is, as MagiCapture's objectives want it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError
from ...faces.parsing import EARS, FACE, part_mask
from ..objectives.reconstruction import FLOOR

FACE_PARTS = FACE | EARS


def face_mask(labels: np.ndarray, box: Sequence[int], size: tuple[int, int]) -> Tensor:
    """(1, height, width): 1 on the face, 0.0099 in the rest of its box, 0 outside.

    labels: (h, w), a parser's label map of the box at any resolution. box: x0, y0, x1, y1 in pixels of the photo; what
    reaches beyond the photo is cut off. size: (height, width) of the photo. Raises LikenessError when the box misses
    the photo or holds no face.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    height, width = size
    if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
        raise LikenessError("The face's box lies outside its photo: detect the face again.")
    face = torch.from_numpy(part_mask(labels, FACE_PARTS)).float()
    if not bool(face.any()):
        raise LikenessError("No face was found in the box of a training photo: use a photo that shows the face.")
    in_box = F.interpolate(face[None, None], (y1 - y0, x1 - x0), mode="nearest")[0] + FLOOR
    in_box = in_box / in_box.max()
    mask = torch.zeros(1, height, width)
    top, left = max(y0, 0), max(x0, 0)
    visible = in_box[:, top - y0 : height - y0, left - x0 : width - x0]
    mask[:, top : top + visible.shape[1], left : left + visible.shape[2]] = visible
    return mask
