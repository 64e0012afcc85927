"""Crops that other nodes have changed, back to where Find Faces or Identity from Photos cut them out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from ..errors import LikenessError
from ..faces.align import (
    expand_box,
    ffhq_crop,
    ffhq_template,
    head_crop,
    robust_similarity_transform,
    transform_points,
)
from ..faces.face import Face
from ..faces.found import FoundFaces
from ..faces.identity import HEAD_FACTOR
from ..faces.masks import Region, feathered, region_masks
from .colour import matched
from .paste import Shape, cut_out_mask, for_scaled, put_back, shaped_edge
from .restore import PasteOptions


class CropFraming(Enum):
    """How crops were cut out."""

    HEAD = "heads (crops of Find Faces)"
    PORTRAIT = "portraits (aligned)"


def head_matrix(box: np.ndarray, size: int) -> np.ndarray:
    """The matrix (2, 3) of `faces.align.head_crop`, photo to crop."""
    x1, y1, x2, y2 = expand_box(box, HEAD_FACTOR).round().astype(int)
    scale = size / max(int(max(x2 - x1, y2 - y1)), 1)
    return np.array([[scale, 0, (0.5 - x1) * scale - 0.5], [0, scale, (0.5 - y1) * scale - 0.5]], np.float64)


def paste_crops(
    canvases: list[Tensor],
    found: FoundFaces,
    crops: Sequence[Tensor],
    framing: CropFraming,
    options: PasteOptions,
    regions: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The images (H, W, 3) with the changed crops (3, S, S) of their chosen faces, and where they were pasted (H, W).

    canvases: the photos that the faces were found in, in their own or in another size; they are changed, but nowhere
    outside of the masks (H, W) `regions`. Raises LikenessError where the numbers do not match, for crops that are not
    square, and for faces that cannot be aligned.
    """
    pasted = [(number, face) for number, face in enumerate(found.chosen) if face is not None]
    if len(canvases) != len(found.photos) or len(crops) != len(pasted):
        raise LikenessError(
            f"Find Faces was given {len(found.photos)} images and chose {len(pasted)} faces, but there are "
            f"{len(canvases)} images and {len(crops)} crops: connect the same images, and one crop for each face."
        )
    covered = [canvas.new_zeros(canvas.shape[:2]) for canvas in canvases]
    for (number, face), crop in zip(pasted, crops, strict=True):
        side = crop.shape[-1]
        if crop.shape[-2] != side:
            raise LikenessError(f"A crop has {side}x{crop.shape[-2]} pixels: crops are square, resize it before.")
        photo, canvas = found.photos[number], canvases[number]
        matrix, before = _cut(photo, face, side, framing)
        scale = canvas.shape[1] / photo.shape[1], canvas.shape[0] / photo.shape[0]
        if abs(np.log(scale[0] / scale[1])) > 0.05:
            raise LikenessError(
                f"Image {number + 1} has {canvas.shape[1]}x{canvas.shape[0]} pixels, and Find Faces was given "
                f"{photo.shape[1]}x{photo.shape[0]}: it may be enlarged, but not cut or stretched."
            )
        placed = for_scaled(matrix, scale)
        mask = _mask(photo, face, matrix, side, options)
        region = None if regions is None else regions[number % len(regions)]
        if region is not None:
            mask = np.minimum(mask, cut_out_mask(region, placed, side))
        after = matched(crop, before, torch.from_numpy(mask), options.colours)
        put_back(canvas, before, after, placed, mask, options.strength, covered[number], region)
    return canvases, covered


def _cut(photo: np.ndarray, face: Face, side: int, framing: CropFraming) -> tuple[np.ndarray, Tensor]:
    """The matrix of a face's crop, and the crop (3, S, S) as it was."""
    if framing is CropFraming.HEAD:
        matrix, crop = head_matrix(face.box, side), head_crop(photo, face.box, side, HEAD_FACTOR)
    elif face.keypoints is None:
        raise LikenessError(
            "A face without keypoints has no aligned portrait: choose the framing 'heads', or a face analysis with "
            "keypoints."
        )
    else:
        matrix = robust_similarity_transform(face.keypoints, ffhq_template(side))
        crop = ffhq_crop(photo, face.keypoints, side)
    return matrix, torch.from_numpy(crop).permute(2, 0, 1).float() / 255


def _mask(photo: np.ndarray, face: Face, matrix: np.ndarray, side: int, options: PasteOptions) -> np.ndarray:
    if options.parser is not None:
        [seen] = region_masks(photo, [face], [Region.HEAD], options.parser)
        soft = feathered(seen, float(max(face.box[2] - face.box[0], 1)) / 16)
        return np.minimum(shaped_edge(Shape.SQUARE, side), cut_out_mask(torch.from_numpy(soft), matrix, side))
    points = None if face.keypoints is None else transform_points(matrix, face.keypoints)
    corners = transform_points(matrix, np.asarray(face.box, np.float64).reshape(2, 2))
    return shaped_edge(options.shape, side, points, corners.reshape(4))
