"""`Face`: one face in one photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)  # two faces are the same only if they are one object
class Face:
    """One face found in one photo. Coordinates are pixels of that photo, origin top left, x before y.

    `embedding` is the recogniser's raw output; its unit vector is `unit_embedding`. Embeddings of different
    recognisers live in different spaces, so `recogniser` names the model that made this one.
    """

    box: np.ndarray  # (4,) float32: x1, y1, x2, y2
    score: float  # detector's confidence, 0..1
    keypoints: np.ndarray | None = None  # (5, 2) float32: image-left eye, right eye, nose, left and right mouth corner
    embedding: np.ndarray | None = None  # (D,) float32, raw
    recogniser: str | None = None
    photo: int = 0  # index of the photo in the batch it came from

    @property
    def sides(self) -> tuple[float, float]:
        """Width and height of the box."""
        x1, y1, x2, y2 = (float(value) for value in self.box)
        return x2 - x1, y2 - y1

    @property
    def area(self) -> float:
        """Box area in square pixels."""
        x1, y1, x2, y2 = self.box
        return float(max(0.0, x2 - x1) * max(0.0, y2 - y1))

    @property
    def unit_embedding(self) -> np.ndarray | None:
        """The embedding scaled to length 1."""
        if self.embedding is None:
            return None
        return self.embedding / max(float(np.linalg.norm(self.embedding)), 1e-12)
