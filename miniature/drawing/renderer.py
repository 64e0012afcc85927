"""Draws people. Every shape is a signed distance on the pixel grid, laid over the image back to front.

    people = split_people("test", 4)
    pictures = render(people, draw_shots(range(4)), size=128)

`figure.py` says where everything on a person is, `paint_*.py` paint it, and here the parts become an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import LikenessError
from .backgrounds import paint_scenes
from .canvas import Canvas
from .figure import Feature, Figure
from .paint_attire import paint_body, paint_glasses, paint_hat
from .paint_face import paint_eye, paint_head, paint_marks, paint_mouth, paint_nose
from .paint_hair import paint_back_hair, paint_beard, paint_brow, paint_front_hair
from .people import Mark, People
from .shots import Shots
from .styles import apply_styles

SIZES = (64, 128)  # smallest and largest side in pixels


@dataclass(frozen=True)
class Pictures:
    """B portraits and all that is known about them. Coordinates are pixels, origin top left, pixel centres whole."""

    rgb: Tensor  # (B, H, W, 3) float32, 0..1, as ComfyUI's IMAGE
    face: Tensor  # (B, H, W) float32, 0..1: coverage of the visible face, features included, hair and hat excluded
    person: Tensor  # (B, H, W) float32, 0..1: coverage of head, neck and clothes
    parts: Tensor  # (B, H, W) uint8: values of `faces.Part`; a beard is skin, as in CelebAMask-HQ
    keypoints: Tensor  # (B, 5, 2) float32: image-left eye, image-right eye, nose, left and right corner of the mouth
    boxes: Tensor  # (B, 4) float32: x1, y1, x2, y2 of the face from hairline to chin
    people: People
    shots: Shots

    def __len__(self) -> int:
        return len(self.rgb)


def render(people: People, shots: Shots, size: int = 64, device: torch.device | str = "cpu") -> Pictures:
    """Draw person i of `people` as `shots` i says, `size` x `size` pixels. The same input gives the same image.

    LikenessError for a size outside 64..128; ValueError when there are not as many people as shots.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise LikenessError(
            f"The miniature world draws at {SIZES[0]} to {SIZES[1]} pixels, not {size}; choose a size in between."
        )
    if len(people) != len(shots):
        raise ValueError(f"{len(people)} people for {len(shots)} shots")
    figure = Figure(people, shots, size, torch.device(device))
    scene = torch.as_tensor(shots.scene, device=figure.device)
    x, y = torch.broadcast_tensors(figure.x, figure.y)
    canvas = Canvas.on(paint_scenes(scene, x, y, figure.n["backdrop"], figure.pixel))
    paint_person(canvas, figure)
    paint_light(canvas, figure)

    style = torch.as_tensor(shots.style, device=figure.device)
    rgb = apply_styles(canvas, style, figure.x.expand(1, size, size), figure.y.expand(1, size, size))
    return Pictures(
        rgb=rgb.permute(0, 2, 3, 1).contiguous(),
        face=canvas.face,
        person=canvas.person,
        parts=canvas.parts,
        keypoints=find_keypoints(figure),
        boxes=find_boxes(figure),
        people=people,
        shots=shots,
    )


def render_batches(
    people: People, shots: Shots, size: int = 64, device: torch.device | str = "cpu", batch: int = 64
) -> Iterator[Pictures]:
    """`render` in portions that stay in the CPU's cache: 64 is faster than 256 on a CPU, take more on a GPU."""
    for start in range(0, len(people), batch):
        rows = slice(start, start + batch)
        yield render(people[rows], shots[rows], size, device)


def paint_person(canvas: Canvas, figure: Figure) -> None:
    """Back to front: the hair behind, the body, the face and its features, the hair before it, glasses and hat."""
    paint_back_hair(canvas, figure)
    with close_up(canvas, figure, lambda s: s.place(0.0, 1.3), 9.0, 0.95) as (piece, s):
        paint_body(piece, s)
    paint_head(canvas, figure)
    marked = figure.people.marks() != Mark.NONE
    with close_up(canvas, figure, lambda s: s.place(0.0, 0.1), 0.75, 0.75, marked) as (piece, s):
        paint_marks(piece, s)
    for side in (-1, 1):
        with close_up(canvas, figure, lambda s, side=side: s.eyes[side > 0], 0.38, 0.36) as (piece, s):
            paint_eye(piece, s, side)
    with close_up(canvas, figure, lambda s: s.place(0.0, 0.2, out=0.1), 0.34, 0.52) as (piece, s):
        paint_nose(piece, s)
    with close_up(canvas, figure, lambda s: s.place(0.0, 0.75), 1.05, 0.95, figure.shots.beard) as (piece, s):
        paint_beard(piece, s)
    with close_up(canvas, figure, lambda s: s.mouth, 0.50, 0.48) as (piece, s):
        paint_mouth(piece, s)
    paint_front_hair(canvas, figure)
    for side in (-1, 1):
        with close_up(canvas, figure, lambda s, side=side: s.brows[side > 0], 0.36, 0.24) as (piece, s):
            paint_brow(piece, s, side)
    with close_up(canvas, figure, lambda s: s.place(0.0, 0.05), 1.10, 0.45, figure.shots.glasses) as (piece, s):
        paint_glasses(piece, s)
    with close_up(canvas, figure, lambda s: s.place(0.0, -0.75), 1.60, 0.70, figure.shots.hat >= 0) as (piece, s):
        paint_hat(piece, s)


@contextmanager
def close_up(
    canvas: Canvas,
    figure: Figure,
    where: Callable[[Figure], Feature],
    reach_u: float,
    reach_v: float,
    chosen: np.ndarray | None = None,
) -> Iterator[tuple[Canvas, Figure]]:
    """Paint only near a feature, and only on the images `chosen` (bool, B): most of a face is smaller than the frame.

    Whatever is painted must end within the reach; a test compares with painting on the whole frame.
    """
    rows = np.arange(len(figure.people)) if chosen is None else np.flatnonzero(chosen)
    piece = Figure(figure.people[rows], figure.shots[rows], figure.size, figure.device)
    window = piece.window(torch.as_tensor(rows, device=figure.device), where(piece), reach_u, reach_v)
    piece.look_at(window.ys, window.xs)
    cut = canvas.cut(window)
    yield cut, piece
    canvas.put(window, cut)


def paint_light(canvas: Canvas, s: Figure) -> None:
    """One light from the side over the person, then exposure and white balance over the whole image."""
    towards = s.n["light_x"] * s.u / 0.9 - 0.45 * s.v
    canvas.shade(1 + 0.17 * torch.tanh(1.2 * towards), canvas.person)
    warm = s.n["warmth"][:, None] * s.rgb(1.0, 0.1, -1.0)
    canvas.rgb = (canvas.rgb * (1 + s.n["light_level"][:, None] + warm)).clamp(0, 1)


def find_keypoints(s: Figure) -> Tensor:
    """The five points in pixels, (B, 5, 2)."""
    left, right = s.eyes
    corner = s.mouth.y - 0.5 * s.mouth_lift
    points = (
        (left.x, left.y),
        (right.x, right.y),
        (s.nose.x, s.nose.y),
        (s.mouth.x - s.mouth_half_width, corner),
        (s.mouth.x + s.mouth_half_width, corner),
    )
    return torch.stack([s.to_pixels(u, v) for u, v in points], dim=1)


def find_boxes(s: Figure) -> Tensor:
    """A box around the face from mid-forehead to chin and from cheek to cheek, (B, 4) pixels."""
    forehead = torch.full_like(s.chin, -0.62)
    outline = (
        (-s.face_width, forehead * 0),
        (s.face_width, forehead * 0),
        (forehead * 0, forehead),
        (0.16 * s.n["yaw"], s.chin),
    )
    points = torch.stack([s.to_pixels(u, v) for u, v in outline], dim=1)
    return torch.cat([points.amin(1), points.amax(1)], dim=1)
