"""Five keypoints as the image InstantID's control network was trained on.

Wang et al., "InstantID", 2024; drawing and canvas as in instantX-research/InstantID. Sizes are in absolute pixels
there: draw at the size of the image to be made, never resize the drawing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import check_number
from ..errors import LikenessError
from .opencv import opencv

COLOURS_RGB = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
NOSE = 2
LIMBS = (0, 1, 3, 4)  # each joined to the nose, in this order
HALF_WIDTH, RADIUS = 4, 10
LIMB_BRIGHTNESS = 0.6
_MIRRORED = (1, 0, 2, 4, 3)  # which point of a face is which of its mirror image
LARGEST_COORDINATE = 100_000  # pixels


def draw_keypoints(faces: Sequence[np.ndarray], width: int, height: int) -> np.ndarray:
    """Faces' keypoints (5, 2), in pixels of the canvas, as an image (height, width, 3) uint8 RGB on black.

    The limbs of all faces lie below the dots of all faces; for one face the bytes are the official ones. Points
    outside the canvas are cut off.
    """
    cv2 = opencv()
    canvas = np.zeros((height, width, 3), np.uint8)
    for points in faces:
        for end in LIMBS:
            limb = points[[end, NOSE]]
            centre = limb.mean(0)
            run, rise = limb[0] - limb[1]
            polygon = cv2.ellipse2Poly(
                (int(centre[0]), int(centre[1])),
                (int(np.hypot(run, rise) / 2), HALF_WIDTH),
                int(np.degrees(np.arctan2(rise, run))),
                0,
                360,
                1,
            )
            cv2.fillConvexPoly(canvas, np.asarray(polygon), COLOURS_RGB[end])
    canvas = (canvas * LIMB_BRIGHTNESS).astype(np.uint8)
    for points in faces:
        for (x, y), colour in zip(points, COLOURS_RGB, strict=True):
            cv2.circle(canvas, (int(x), int(y)), RADIUS, colour, -1)
    return canvas


def canvas_size(
    width: int, height: int, long_side: int = 1280, short_side: int = 1024, multiple: int = 64
) -> tuple[int, int]:
    """(width, height) that the official code gives a photo of this size: the long side becomes `long_side`, whatever
    the short one, and both are brought down to a multiple."""
    ratio = short_side / min(width, height)
    width, height = round(ratio * width), round(ratio * height)
    ratio = long_side / max(width, height)
    return round(ratio * width) // multiple * multiple, round(ratio * height) // multiple * multiple


@dataclass(frozen=True)
class Pose:
    """How keypoints are moved on their canvas: mirrored, turned and scaled about the middle of the face, then shifted.

    move: shares of the canvas, to the right and down. degrees: clockwise.
    """

    move: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    degrees: float = 0.0
    mirror: bool = False

    def __call__(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """(5, 2) pixels of a canvas -> (5, 2); the very same where nothing is changed."""
        if self == Pose():
            return points
        middle = points.mean(0)
        away = points - middle
        if self.mirror:  # what lies on the image's left is the left eye again
            away = (away * (-1, 1))[list(_MIRRORED)]
        turn = math.radians(self.degrees)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        moved = middle + np.array(self.move) * (width, height) + self.scale * (away @ rotation)
        return moved.astype(np.float32)


@dataclass(frozen=True)
class KeypointCanvas:
    """The size of a keypoint image. A side of 0 follows the other in the photo's proportions; both 0 take the photo's
    size, brought to `long_side` as the official code does it where that is not 0."""

    width: int = 0
    height: int = 0
    long_side: int = 0

    def of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the canvas for a photo of this size."""
        if self.width and self.height:
            return self.width, self.height
        if self.width:
            return self.width, max(1, round(self.width * height / width))
        if self.height:
            return max(1, round(self.height * width / height)), self.height
        return canvas_size(width, height, self.long_side) if self.long_side else (width, height)


@dataclass(frozen=True, eq=False)
class Drawing:
    """Keypoints on a canvas of this size, one (5, 2) in its pixels for each face."""

    faces: list[np.ndarray]
    width: int
    height: int

    @classmethod
    def fitted(cls, faces: Sequence[np.ndarray], photo: tuple[int, int], canvas: KeypointCanvas) -> Drawing:
        """Of keypoints in a photo of this (width, height), fitted into the canvas, centred and not stretched."""
        size, extent = np.array(canvas.of(*photo)), np.array(photo)
        scale = (size / extent).min()
        moved = [points * scale + (size - extent * scale) / 2 for points in faces]
        return cls(moved, int(size[0]), int(size[1]))

    def posed(self, pose: Pose) -> Drawing:
        """The same faces, moved."""
        return Drawing([pose(points, self.width, self.height) for points in self.faces], self.width, self.height)

    def image(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB"""
        return draw_keypoints(self.faces, self.width, self.height)


def write_points(images: Sequence[Sequence[np.ndarray]]) -> str:
    """Keypoints as text that can be edited: five "x,y" in a line for each face, a blank line between two images."""
    return "\n\n".join("\n".join(" ".join(f"{x:.3f},{y:.3f}" for x, y in face) for face in faces) for faces in images)


def read_points(text: str) -> list[list[np.ndarray]]:
    """The faces of each image of a text as `write_points` writes it. LikenessError naming the line that is not one."""
    images: list[list[np.ndarray]] = [[]]
    for number, line in enumerate(text.strip().splitlines(), 1):
        if line.strip():
            images[-1].append(_read_face(line, number))
        elif images[-1]:
            images.append([])
    return images if images[0] else []


def _read_face(line: str, number: int) -> np.ndarray:
    numbers = re.split(r"[,;\s]+", line.strip(" \t,;"))
    try:
        points = [float(value) for value in numbers]
    except ValueError:
        points = []
    if len(points) != 10:
        raise LikenessError(
            f"Line {number} of the points, {line[:60]!r}, is not a face: write five pairs such as 190,210 for the eye "
            "at the left of the image, the other eye, the nose, and the left and right corner of the mouth."
        )
    for value in points:
        check_number(value, f"A coordinate in line {number} of the points", -LARGEST_COORDINATE, LARGEST_COORDINATE)
    return np.array(points, np.float32).reshape(5, 2)
