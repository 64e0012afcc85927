"""A face cut out of an image and put back: soft masks, and a paste that leaves alone what was not changed.

A crop's matrix (2, 3) maps pixels of the image to pixels of the crop, pixel centres at integer coordinates; images
are float32 RGB 0..1.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor

from ..faces.align import FFHQ_GREY_RGB, Border, invert, smooth_warp, touched
from ..faces.face import Face
from ..faces.masks import ellipse_mask, feathered, grown
from ..faces.opencv import opencv
from ..faces.parsing import EARS, FACE, Part

GREY = [value / 255 for value in FFHQ_GREY_RGB]  # outside of the image
# facexlib keeps all but background, hat, necklace, neck and clothes of the restored face. Hair is kept.
PASTED = FACE | EARS | {Part.HAIR}
_BLUR, _SIGMA, _FRAME = 101, 11.0, 10  # pixels of labels at 512
_SAME, _OTHER = 2 / 255, 8 / 255  # a change up to the first is none, from the second on it is a whole one


class Shape(Enum):
    """What is pasted of a crop, where no parser says it."""

    FACE = "face shape (no download)"
    SQUARE = "square"


# --- masks of a crop, (S, S) float32, 0 at its border


def parsed_edge(labels: np.ndarray) -> np.ndarray:
    """What facexlib pastes of a face with these labels of `Part` (512, 512), faded over about 30 pixels.

    xinntao/facexlib, `FaceRestoreHelper.paste_faces_to_input_image` with `use_parse`.
    """
    cv2 = opencv()
    mask = np.isin(labels, [int(part) for part in PASTED]).astype(np.float32)
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (_BLUR, _BLUR), _SIGMA)
    framed = np.zeros_like(mask)
    inside = (slice(_FRAME, -_FRAME),) * 2
    framed[inside] = mask[inside]
    return framed


def square_edge(inside: np.ndarray) -> np.ndarray:
    """A mask (H, W) of where a square lies, faded inwards over a tenth of its side, as facexlib and CodeFormer do."""
    cv2 = opencv()
    edge = int(float(inside.sum()) ** 0.5) // 20
    centre = cv2.erode(inside, np.ones((2 * edge, 2 * edge), np.uint8))  # OpenCV takes an empty kernel for 3 x 3
    return cv2.GaussianBlur(centre, (2 * edge + 1, 2 * edge + 1), 0)


def shaped_edge(shape: Shape, side: int, points: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
    """The mask (side, side) of a crop whose face has these keypoints (5, 2), or else this box (4,), in it; else that
    of an oval."""
    inside = np.zeros((side, side), np.float32)
    inside[1:-1, 1:-1] = 1
    square = square_edge(inside) * inside
    if shape is Shape.SQUARE:
        return square
    whole = np.array([0, 0, side, side], np.float32)
    five = None if points is None else np.asarray(points, np.float32)
    face = Face(whole if box is None else np.asarray(box, np.float32), 1.0, five)
    drawn = ellipse_mask((side, side), face) > 0
    size = np.sqrt(max(drawn.sum(), 1))  # about 0.6 of an aligned crop's side
    return feathered(grown(drawn, round(size / 14)), size / 12) * square


# --- cut out and put back


def cut_out(picture: Tensor, matrix: np.ndarray, side: int, border: Border = Border.CONSTANT) -> Tensor:
    """The crop (3, side, side) of an image (H, W, 3), grey outside, or with its edge repeated; nothing of a large face
    is skipped."""
    rows, columns = touched(matrix, (side, side), (picture.shape[0], picture.shape[1]))
    planes = picture[rows, columns].permute(2, 0, 1)[None]
    return smooth_warp(planes, moved(matrix, columns.start, rows.start), (side, side), border, GREY)[0]


def cut_out_mask(mask: Tensor, matrix: np.ndarray, side: int) -> np.ndarray:
    """A mask (H, W) of the image as it lies in the crop: (side, side) float32."""
    return smooth_warp(mask[None, None], matrix, (side, side))[0, 0].numpy()


def moved(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """The matrix for the part of the image that begins at (x, y)."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ np.array([x, y], np.float64)])


def for_scaled(matrix: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """The matrix for the image enlarged by (across, down): pixel x of it is (x + 1/2) / s - 1/2 of the image."""
    shrink = 1 / np.asarray(scale, np.float64)
    return np.column_stack([matrix[:, :2] * shrink, matrix[:, 2] + matrix[:, :2] @ (shrink / 2 - 0.5)])


def put_back(
    picture: Tensor,
    before: Tensor,
    after: Tensor,
    matrix: np.ndarray,
    mask: np.ndarray,
    amount: float = 1.0,
    covered: Tensor | None = None,
    within: Tensor | None = None,
) -> None:
    """Paste this much of a changed crop (3, S, S) into an image (H, W, 3), in place; `covered` (H, W) collects masks.

    Where the crop was not changed the image's own pixels stay, whatever cutting out and pasting cost, and even those
    outside 0..1: what the change added to the crop `before` is added to the image there. Elsewhere the crop replaces
    the image. Nothing changes where the mask `within` (H, W) of the image is 0.
    """
    side = after.shape[-1]
    rows, columns = touched(matrix, (side, side), (picture.shape[0], picture.shape[1]))
    size = (columns.stop - columns.start, rows.stop - rows.start)
    back = invert(moved(matrix, columns.start, rows.start))
    change = (after - before).abs().amax(0, keepdim=True)
    replaced = ((change - _SAME) / (_OTHER - _SAME)).clamp(0, 1)
    pixels = smooth_warp(torch.cat([before, after, replaced])[None], back, size, Border.EDGE)[0]
    share = smooth_warp(torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None], back, size)[0]
    if within is not None:
        share = torch.minimum(share, within[rows, columns])
    before, after, replaced = pixels[:3], pixels[3:6], pixels[6:]
    own = picture[rows, columns].permute(2, 0, 1)
    added = after - before + replaced * (before - own)
    mixed = own + amount * share * added
    picture[rows, columns] = mixed.clamp(own.clamp(max=0), own.clamp(min=1)).permute(1, 2, 0)
    if covered is not None:
        covered[rows, columns] = torch.maximum(covered[rows, columns], share[0])
