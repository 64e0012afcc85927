"""SCRFD, the detector of insightface's packs, on onnxruntime alone.

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from .detection import SCORE_FLOOR, SIZES, Detection, non_maximum_suppression, resize
from .onnx_session import Provider, open_session

MEAN, STD = 127.5, 128.0  # the recogniser's is 127.5 / 127.5
NMS_OVERLAP = 0.4
# number of outputs -> strides, anchors per cell, whether there are keypoints
LAYOUTS = {
    6: ((8, 16, 32), 2, False),
    9: ((8, 16, 32), 2, True),
    10: ((8, 16, 32, 64, 128), 1, False),
    15: ((8, 16, 32, 64, 128), 1, True),
}


class Metric(Enum):
    """Which faces stay when only some may."""

    AREA = "max"
    CENTRAL_AREA = "default"  # area less twice the squared distance from the image's centre


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The image shrunk or enlarged into the top left of a black (width, height) canvas, and the scale applied."""
    width, height = size
    ratio = image.shape[0] / image.shape[1]
    if ratio > height / width:
        new_height, new_width = height, int(height / ratio)
    else:
        new_width, new_height = width, int(width * ratio)
    new_width, new_height = max(new_width, 1), max(new_height, 1)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[:new_height, :new_width] = resize(image, new_width, new_height)
    return canvas, new_height / image.shape[0]


def blob(canvas_bgr: np.ndarray) -> np.ndarray:
    """The network's input (1, 3, H, W) float32, RGB."""
    return ((canvas_bgr[..., ::-1].astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None].copy()


def decode(
    heads: Sequence[np.ndarray],
    size: tuple[int, int],
    scale: float,
    threshold: float,
    overlap: float = NMS_OVERLAP,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The network's outputs as rows x1, y1, x2, y2, score (n, 5) and keypoints (n, 5, 2), in pixels of the image.

    `size` (width, height) is the input's, `scale` what `letterbox` applied. Best first, overlaps removed.
    """
    strides, anchors, has_points = LAYOUTS[len(heads)]
    levels = len(strides)
    heads = [head[0] if head.ndim == 3 else head for head in heads]  # some exports keep a batch axis
    boxes, scores, points = [], [], []
    for level, stride in enumerate(strides):
        ys, xs = np.mgrid[: size[1] // stride, : size[0] // stride]
        centres = np.repeat(np.stack([xs, ys], -1).reshape(-1, 2) * stride, anchors, axis=0)
        score = heads[level].reshape(-1)
        kept = score >= threshold
        centre, distance = centres[kept], heads[levels + level][kept] * stride
        scores.append(score[kept])
        boxes.append(np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], 1))
        if has_points:
            points.append(centre[:, None] + heads[2 * levels + level][kept].reshape(-1, 5, 2) * stride)
    rows = np.concatenate([np.concatenate(boxes) / scale, np.concatenate(scores)[:, None]], 1).astype(np.float32)
    kept = non_maximum_suppression(rows[:, :4], rows[:, 4], overlap, last_pixel=True)
    if not has_points:
        return rows[kept], None
    return rows[kept], (np.concatenate(points) / scale).astype(np.float32)[kept]


def best_by(rows: np.ndarray, count: int, metric: Metric, photo: tuple[int, int]) -> np.ndarray:
    """Indices of the `count` best rows (n, >=4) by the metric, best first; all in their order when count is 0."""
    if count <= 0 or len(rows) <= count:
        return np.arange(len(rows))
    value = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    if metric is Metric.CENTRAL_AREA:
        centre = np.array([photo[1] // 2, photo[0] // 2])
        value = value - 2 * (((rows[:, :2] + rows[:, 2:4]) / 2 - centre) ** 2).sum(1)
    return np.argsort(-value, kind="stable")[:count]


@dataclass(frozen=True)
class Scrfd:
    """The detector; `session` is onnxruntime's, or anything with `run` and `get_inputs`."""

    session: Any
    name: str = "SCRFD"
    threshold: float = 0.5
    sizes: tuple[int, ...] = SIZES

    @classmethod
    def open(cls, path: Path, provider: Provider = Provider.AUTO) -> Scrfd:
        """From a pack's detector file. A file exported for one input size is searched at that size alone."""
        session = open_session(path, provider)
        height, width = session.get_inputs()[0].shape[2:4]
        fixed = (height,) if isinstance(height, int) and height == width else SIZES
        return cls(session, name=path.stem, sizes=fixed)

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`; `size` is a multiple of 32."""
        side = size or self.sizes[0]
        canvas, scale = letterbox(image_bgr, (side, side))
        heads = self.session.run(None, {self.session.get_inputs()[0].name: blob(canvas)})
        rows, keypoints = decode(heads, (side, side), scale, min(SCORE_FLOOR, self.threshold))
        return [
            Detection(row[:4], float(row[4]), None if keypoints is None else keypoints[i]) for i, row in enumerate(rows)
        ]
