"""Where a face is and how it is brought upright: templates, similarity transforms, exact bilinear warps, boxes.

A matrix is always 2x3 and maps photo pixels to crop pixels, x before y, pixel centres at integer coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import LikenessError
from .opencv import opencv

# Keypoints are ordered: eye at image left, eye at image right, nose, mouth corner left, mouth corner right.
ARCFACE_112 = np.array(  # deepinsight/insightface, 112 x 112
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
FFHQ_512 = np.array(  # xinntao/facexlib, 512 x 512
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
HALVING_GRID = 256  # pixels that are the same ones, however often a photo is halved
FFHQ_GREY_RGB = (132.0, 133.0, 135.0)  # outside the photo; facexlib writes it as BGR (135, 133, 132)


class Border(Enum):
    """What a warp finds outside the photo."""

    CONSTANT = "constant"
    REFLECT = "reflect"  # the edge pixel is repeated: cba|abc
    REFLECT_101 = "reflect101"  # the edge pixel is not: dcb|abc
    EDGE = "edge"


def arcface_template(size: int) -> np.ndarray:
    """The five ArcFace points (5, 2) for a square crop; `size` is a multiple of 112 or of 128, like insightface's."""
    if size <= 0 or (size % 112 and size % 128):
        raise LikenessError(f"An ArcFace crop has a side that is a multiple of 112 or 128, not {size}: choose 112.")
    if size % 112 == 0:
        return ARCFACE_112 * (size / 112)
    scale = size / 128
    return ARCFACE_112 * scale + np.array([8.0 * scale, 0.0])


def ffhq_template(size: int = 512, crop_ratio: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The five FFHQ points (5, 2) of facexlib; `crop_ratio` (height, width) >= 1 widens the crop about the face."""
    height, width = crop_ratio
    return FFHQ_512 * (size / 512) + np.array([size * (width - 1) / 2, size * (height - 1) / 2])


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift (2, 3) that bring `source` (n, 2) nearest to `target` in least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991; no reflection.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    mean_s, mean_t = source.mean(0), target.mean(0)
    centred_s, centred_t = source - mean_s, target - mean_t
    variance = (centred_s**2).sum() / len(source)
    if not np.isfinite(variance) or variance < 1e-12:
        raise LikenessError("The face's keypoints all fall on one point: no crop can be aligned to them.")
    u, d, vt = np.linalg.svd(centred_t.T @ centred_s / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = (u * sign) @ vt
    scale = (d * sign).sum() / variance
    shift = mean_t - scale * rotation @ mean_s
    return np.column_stack([scale * rotation, shift])


def robust_similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Like `similarity_transform`, but a keypoint that disagrees with the others is dropped (least median of squares).

    OpenCV's estimator, because facexlib, GFPGAN and CodeFormer crop with it.
    """
    cv2 = opencv()
    matrix, _ = cv2.estimateAffinePartial2D(
        np.asarray(source, np.float64), np.asarray(target, np.float64), method=cv2.LMEDS
    )
    if matrix is None:
        raise LikenessError("The face's keypoints all fall on one point: no crop can be aligned to them.")
    return matrix


def invert(matrix: np.ndarray) -> np.ndarray:
    """The 2x3 matrix that undoes a 2x3 matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) through a 2x3 matrix."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def _sampling_grid(matrices: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Where each crop pixel lies in the photo: (B, height, width, 2), x and y in photo pixels, float64 on the CPU.

    Float32 is too coarse for large photos, and Apple's graphics devices know nothing finer.
    """
    matrices = matrices.detach().cpu().double()
    linear = torch.linalg.inv(matrices[:, :, :2])
    shift = -linear @ matrices[:, :, 2:]
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    crop_points = torch.stack([xs, ys], -1).reshape(1, -1, 2)
    return (crop_points @ linear.mT + shift.mT).reshape(-1, height, width, 2)


def warp_tensor(
    images: torch.Tensor,
    matrices: torch.Tensor,
    size: tuple[int, int],
    border: Border = Border.CONSTANT,
    fill: float | Sequence[float] = 0.0,
) -> torch.Tensor:
    """Exact bilinear warp, differentiable with respect to the images.

    `images` (B, C, H, W) in any range, `matrices` (B, 2, 3) photo to crop, `size` (width, height) of the crop. `fill`
    is the value outside (one, or one per channel) for a constant border; the border blends like any other pixel.
    No anti-aliasing is applied when shrinking: crops for recognisers must not have any.
    """
    width, height = size
    photo_h, photo_w = images.shape[-2:]
    points = _sampling_grid(matrices, width, height)
    extent = points.new_tensor([photo_w, photo_h])
    if border is Border.REFLECT_101:
        grid = 2 * points / (extent - 1).clamp(min=1) - 1
    else:
        grid = (2 * points + 1) / extent - 1
    modes = {Border.CONSTANT: "zeros", Border.EDGE: "border"}
    level = torch.as_tensor(fill, dtype=torch.float32, device=images.device).reshape(1, -1, 1, 1)
    lifted = images.float() - level if border is Border.CONSTANT else images.float()
    crops = F.grid_sample(
        lifted,
        grid.to(images.device, torch.float32),
        mode="bilinear",
        padding_mode=modes.get(border, "reflection"),
        align_corners=border is Border.REFLECT_101,
    )
    return crops + level if border is Border.CONSTANT else crops


def touched(matrix: np.ndarray, size: tuple[int, int], photo: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the photo (height, width) that a crop of this size can sample, at least one of each."""
    corners = np.array([(0, 0), (size[0] - 1, 0), (0, size[1] - 1), (size[0] - 1, size[1] - 1)], np.float64)
    inside = transform_points(invert(matrix), corners)
    spans = []
    for axis, length in ((1, photo[0]), (0, photo[1])):
        low = int(np.clip(np.floor(inside[:, axis].min()) - 1, 0, length - 1))
        high = int(np.clip(np.ceil(inside[:, axis].max()) + 2, low + 1, length))
        spans.append(slice(low, high))
    return spans[0], spans[1]


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: Border = Border.CONSTANT,
    fill: float | Sequence[float] = 0.0,
) -> np.ndarray:
    """`warp_tensor` for one photo (H, W, C), uint8 (rounded) or float; returns (height, width, C) of the same dtype.

    With a constant border only the part of the photo that the crop touches is converted, so an 8k photo costs no
    more than a small one.
    """
    matrix = np.asarray(matrix, np.float64)
    if border is Border.CONSTANT:
        rows, columns = touched(matrix, size, image.shape[:2])
        image = image[rows, columns]
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array([columns.start, rows.start], np.float64)
    planes = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
    crop = warp_tensor(planes, torch.from_numpy(matrix)[None], size, border, fill)[0].permute(1, 2, 0).numpy()
    if image.dtype == np.uint8:
        return np.clip(np.rint(crop), 0, 255).astype(np.uint8)
    return crop.astype(image.dtype)


def warp_nearest(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: int = 0) -> np.ndarray:
    """Labels (H, W) through a 2x3 matrix without mixing them; returns (height, width), `fill` outside."""
    width, height = size
    points = _sampling_grid(torch.from_numpy(np.asarray(matrix, np.float64))[None], width, height)[0].numpy()
    x, y = np.rint(points[..., 0]).astype(np.int64), np.rint(points[..., 1]).astype(np.int64)
    inside = (x >= 0) & (x < labels.shape[1]) & (y >= 0) & (y < labels.shape[0])
    found = labels[y.clip(0, labels.shape[0] - 1), x.clip(0, labels.shape[1] - 1)]
    return np.where(inside, found, np.asarray(fill, labels.dtype))


@dataclass(frozen=True, eq=False)
class Template:
    """Where the five keypoints lie in the square crop a recogniser was trained on; black outside the photo.

    `halves`: a photo in which the face is at least twice as large as in the crop is first halved, as often as that is
    so, by the mean of 2 x 2 pixels. Only for recognisers that were trained so.
    """

    points: np.ndarray  # (5, 2)
    size: int
    halves: bool = False

    def matrix(self, keypoints: np.ndarray) -> np.ndarray:
        """The matrix (2, 3), photo to crop, for keypoints (5, 2)."""
        return similarity_transform(keypoints, self.points)

    def lies_inside(self, other: Template) -> bool:
        """Whether this crop of a face shows nothing that the other crop of the same face does not."""
        low, high = transform_points(
            similarity_transform(self.points, other.points), np.array([(0.0, 0.0), (self.size - 1.0, self.size - 1.0)])
        )
        return bool(low.min() >= -0.5 and high.max() <= other.size - 0.5)

    def crop(self, image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """The crop (size, size, 3) uint8 of a photo (H, W, 3) uint8."""
        matrix = self.matrix(keypoints)
        if not self.halves or _scale(matrix) > 0.5:
            return warp(image, matrix, (self.size, self.size))
        rows, columns = touched(matrix, (self.size, self.size), image.shape[:2])
        top, left, bottom, right = (
            at // HALVING_GRID * HALVING_GRID
            for at in (rows.start, columns.start, rows.stop + HALVING_GRID, columns.stop + HALVING_GRID)
        )
        part = np.ascontiguousarray(image[top:bottom, left:right])
        planes = torch.from_numpy(part).permute(2, 0, 1)[None].float()
        points = np.asarray(keypoints, np.float64) - np.array([left, top])
        crop = self.crops(planes, torch.from_numpy(points)[None])[0].permute(1, 2, 0).numpy()
        return np.clip(np.rint(crop), 0, 255).astype(np.uint8)

    def crops(self, images: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
        """Crops (B, C, size, size) of images (B, C, H, W); gradients flow to the images, never to the keypoints.

        `keypoints` (B, 5, 2) in pixels of these images. For losses on a recogniser's embedding.
        """
        size = (self.size, self.size)
        matrices = [self.matrix(points) for points in keypoints.detach().double().cpu().numpy()]
        if not self.halves or all(_scale(matrix) > 0.5 for matrix in matrices):
            return warp_tensor(images, torch.from_numpy(np.stack(matrices)), size)
        made = [smooth_warp(image[None], matrix, size) for image, matrix in zip(images, matrices, strict=True)]
        return torch.cat(made)


ARCFACE = Template(ARCFACE_112, 112)


def _scale(matrix: np.ndarray) -> float:
    """How many crop pixels a photo pixel becomes."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def smooth_warp(
    image: torch.Tensor,
    matrix: np.ndarray,
    size: tuple[int, int],
    border: Border = Border.CONSTANT,
    fill: float | Sequence[float] = 0.0,
) -> torch.Tensor:
    """`warp_tensor` of one image (1, C, H, W) that is halved while its scale is 1/2 or less, so that nothing of it is
    skipped."""
    image, matrix = image.float(), np.array(matrix, np.float64)
    while _scale(matrix) <= 0.5 and min(image.shape[-2:]) > 1:
        image = F.avg_pool2d(image, 2)
        # Pixel (x, y) of the half is (2x + 1/2, 2y + 1/2) of the whole.
        matrix = np.column_stack([2 * matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ np.array([0.5, 0.5])])
    return warp_tensor(image, torch.from_numpy(matrix)[None], size, border, fill)


def arcface_crop(image: np.ndarray, keypoints: np.ndarray, size: int = 112) -> np.ndarray:
    """The upright crop (size, size, 3) of recognisers, black outside the photo (insightface `norm_crop`)."""
    return Template(arcface_template(size), size).crop(image, keypoints)


def ffhq_crop(image_rgb: np.ndarray, keypoints: np.ndarray, size: int = 512) -> np.ndarray:
    """The upright portrait crop (size, size, 3) of face restoration and PuLID, grey outside (facexlib)."""
    matrix = robust_similarity_transform(keypoints, ffhq_template(size))
    return warp(image_rgb, matrix, (size, size), fill=FFHQ_GREY_RGB)


def differentiable_crop(images: torch.Tensor, keypoints: torch.Tensor, size: int = 112) -> torch.Tensor:
    """ArcFace crops (B, C, size, size) of images (B, C, H, W); see `Template.crops`."""
    return Template(arcface_template(size), size).crops(images, keypoints)


def landmark_matrix(box: np.ndarray, size: int, margin: float = 1.5, rotation: float = 0.0) -> np.ndarray:
    """The matrix (2, 3) of the crop that landmark and attribute networks take.

    The longer box side becomes size / margin, the box centre the crop's centre, turned by `rotation` degrees.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    scale = size / (margin * max(x2 - x1, y2 - y1))
    angle = np.deg2rad(rotation)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    return np.column_stack([linear, size / 2 - linear @ centre])


def landmark_points(raw: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """A landmark network's output (n, 2) in -1..1, as pixels of the photo its crop was taken from."""
    return transform_points(invert(matrix), (np.asarray(raw, np.float64) + 1) * (size // 2))


def expand_box(box: np.ndarray, factor: float, square: bool = True) -> np.ndarray:
    """Boxes (..., 4) enlarged about their centres, as floats; `square` makes both sides factor * max(width, height)."""
    box = np.asarray(box, np.float64)
    corner, opposite = box[..., :2], box[..., 2:]
    centre, sides = (corner + opposite) / 2, opposite - corner
    if square:
        sides = np.broadcast_to(sides.max(-1, keepdims=True), sides.shape)
    return np.concatenate([centre - factor * sides / 2, centre + factor * sides / 2], -1)


def clip_box(box: np.ndarray, photo: tuple[int, int]) -> np.ndarray:
    """Boxes (..., 4) cut to a photo of (height, width)."""
    height, width = photo
    return np.clip(box, 0, np.array([width, height, width, height], np.asarray(box).dtype))


def box_matrix(box: np.ndarray, size: int) -> np.ndarray:
    """The matrix (2, 3) that brings a square box to (0, 0, size, size); its side counts as two pixels at least."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    scale = size / max(x2 - x1, y2 - y1, 2.0)
    return np.array([[scale, 0.0, -x1 * scale], [0.0, scale, -y1 * scale]])


def head_crop(image: np.ndarray, box: np.ndarray, size: int = 512, factor: float = 2.0) -> np.ndarray:
    """The upright photo around a face, not aligned: a square of `factor` times the box, (size, size, 3) uint8.

    Outside the photo the nearest edge pixel is repeated; shrinking is anti-aliased. For CLIP and other image encoders.
    """
    x1, y1, x2, y2 = expand_box(box, factor).round().astype(int)
    side = max(int(max(x2 - x1, y2 - y1)), 1)
    rows = np.arange(y1, y1 + side).clip(0, image.shape[0] - 1)
    columns = np.arange(x1, x1 + side).clip(0, image.shape[1] - 1)
    planes = torch.from_numpy(image[rows[:, None], columns[None]]).float().permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
