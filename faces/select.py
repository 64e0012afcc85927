"""Which of several faces is meant. One rule for the whole graph, so that two nodes never follow different people."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch

from ..checks import as_mask, require_painted
from ..errors import LikenessError
from .face import Face
from .similarity import cosine_similarity

FACE_INSIDE = 0.5  # of a mask, at the middle of a face that counts


class Choice(Enum):
    """The order in which faces are offered."""

    LARGEST = "largest"
    CENTRAL = "most central"
    LEFT_TO_RIGHT = "left to right"
    SCORE = "highest score"
    SIMILAR = "most similar to reference"
    ONLY = "the only face"


def order_faces(
    faces: Sequence[Face],
    choice: Choice = Choice.LARGEST,
    photo_size: tuple[int, int] | None = None,
    reference: torch.Tensor | None = None,
) -> list[Face]:
    """The faces of one photo, best first by the rule; equal ones keep their order.

    `photo_size` (height, width) is needed for CENTRAL, `reference` (an embedding (D,) of the same recogniser) for
    SIMILAR. ONLY raises `LikenessError` unless there is exactly one face.
    """
    if choice is Choice.ONLY and len(faces) != 1:
        raise LikenessError(
            f"Exactly one face was expected, {len(faces)} were found: choose a rule, for example the largest face."
        )
    keys = {
        Choice.LARGEST: lambda face: -face.area,
        Choice.CENTRAL: lambda face: _distance_to_centre(face, photo_size),
        Choice.LEFT_TO_RIGHT: lambda face: float(face.box[0] + face.box[2]),
        Choice.SCORE: lambda face: -face.score,
        Choice.SIMILAR: lambda face: -_likeness(face, reference),
        Choice.ONLY: lambda face: 0.0,
    }
    return sorted(faces, key=keys[choice])


def _distance_to_centre(face: Face, photo_size: tuple[int, int] | None) -> float:
    if photo_size is None:
        raise LikenessError("The most central face needs the size of its photo: connect the photo.")
    height, width = photo_size
    centre = (face.box[:2] + face.box[2:]) / 2
    return float(np.hypot(centre[0] - width / 2, centre[1] - height / 2))


def _likeness(face: Face, reference: torch.Tensor | None) -> float:
    if reference is None:
        raise LikenessError("The face most similar to a reference needs one: connect an identity.")
    if face.embedding is None or len(face.embedding) != reference.shape[-1]:
        raise LikenessError(
            "The reference identity was made by another recogniser than the one that looks at this photo: "
            "make both with the same face analysis."
        )
    return float(cosine_similarity(torch.from_numpy(face.embedding)[None], reference.reshape(1, -1))[0, 0])


def face_regions(regions: torch.Tensor, photos: int) -> torch.Tensor:
    """Where faces count, (1 | photos, H, W); LikenessError for no mask, or one in which no face can lie."""
    regions = as_mask(regions, "The mask 'region'")
    if len(regions) not in (1, photos):
        raise LikenessError(
            f"There are {len(regions)} masks on 'region' for {photos} images: connect one mask, or one for each image."
        )
    require_painted(regions.amax(0, keepdim=True), "The mask 'region'", FACE_INSIDE)
    return regions


def is_inside(face: Face, region: torch.Tensor, size: tuple[int, int]) -> bool:
    """Whether the middle of the face's box lies on a mask (h, w) that stands for an image of this height and width."""
    x, y = (face.box[:2] + face.box[2:]) / 2
    row = int(np.clip(y / size[0] * region.shape[0], 0, region.shape[0] - 1))
    column = int(np.clip(x / size[1] * region.shape[1], 0, region.shape[1] - 1))
    return bool(region[row, column] > FACE_INSIDE)
