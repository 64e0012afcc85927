"""Upright squares around faces, as a denoiser takes them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..faces.align import Border, expand_box, transform_points
from ..faces.face import Face
from .paste import cut_out
from .restore import CutFace, FaceJob, too_small


def upright(side: int, factor: float) -> CutFace:
    """Squares of `factor` times a face's box, brought to `side` pixels; moved into the image where they would reach
    beyond it, and repeating its edge where it is smaller than they are."""

    def cut(picture: Tensor, index: int, number: int, face: Face) -> FaceJob | str:
        if why := too_small(face):
            return why
        matrix = square_matrix(face, (picture.shape[0], picture.shape[1]), side, factor)
        points = None if face.keypoints is None else transform_points(matrix, face.keypoints)
        return FaceJob(index, number, face, matrix, points, cut_out(picture, matrix, side, Border.EDGE))

    return cut


def square_matrix(face: Face, size: tuple[int, int], side: int, factor: float) -> np.ndarray:
    """The matrix (2, 3), image of (height, width) to crop."""
    x1, y1, x2, _ = expand_box(np.asarray(face.box, np.float64), factor)
    length = max(x2 - x1, 2.0)
    starts = [
        (extent - length) / 2 if length >= extent else float(np.clip(start, 0, extent - length))
        for start, extent in ((x1, size[1]), (y1, size[0]))
    ]
    scale = side / length
    return np.array([[scale, 0, (0.5 - starts[0]) * scale - 0.5], [0, scale, (0.5 - starts[1]) * scale - 0.5]])


def shares(job: FaceJob, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a job's square as shares of an image of (height, width)."""
    scale, side = job.matrix[0, 0], job.crop.shape[-1]
    left, top = ((-0.5 - job.matrix[axis, 2]) / scale + 0.5 for axis in (0, 1))
    height, width = size
    return left / width, top / height, (left + side / scale) / width, (top + side / scale) / height
