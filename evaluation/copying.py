"""Is it a copy of the photo it was given? Angles between embeddings, and whether pose, expression and pixels repeat.

High similarity to the reference is also what a pasted photo has: a copy is nearer to the photo that was given than to
another photo of the same person, and moves neither head nor mouth.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F

from ..faces import Face, mean_direction
from ..faces.align import ARCFACE_112, similarity_transform, transform_points

SMALLEST_ANGLE = 1e-6  # radians
TURNED = 15.0  # degrees from which a head counts as turned


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The angle (...) in radians between vectors (..., D), accurate near 0 and pi, where arccos is not."""
    a, b = F.normalize(a.double(), dim=-1), F.normalize(b.double(), dim=-1)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def copy_angle(g: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """copy = (angle(g, t) - angle(g, r)) / max(angle(t, r), 1e-6): (...) for embeddings (..., D).

    g is the result, r the photo that was given, t another photo of the person. 0: as near to both; 1: exactly r; -1:
    exactly t. NaN where g is the zero vector, an image without a face. Definition of MultiID-Bench (arXiv 2510.14975).
    """
    copy = (angle(g, t) - angle(g, r)) / angle(t, r).clamp(min=SMALLEST_ANGLE)
    return torch.where((g == 0).all(-1), torch.nan, copy)


def mean_copy(results: torch.Tensor, others: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """`copy_angle` of results (n, D), averaged over all pairs of others (t, D) and references (r, D): (n,).

    NaN for everybody when the person has no other photo.
    """
    if not len(others) or not len(references) or not results.shape[-1]:
        return torch.full((len(results),), torch.nan, dtype=torch.float64)
    return copy_angle(results[:, None, None], others[None, :, None], references[None, None]).mean((1, 2))


def copy_paste(results: torch.Tensor, others: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """`copy_angle` of results (n, D) between the mean directions of others (t, D) and references (r, D): (n,).

    What multi-identity benchmarks (MultiID-Bench) report, where each person has one photo that is given and one that is
    not; there it equals `mean_copy`. With more photos the means lie nearer together than any two photos do, so the same
    pull towards the given ones counts for more. NaN for everybody when the person has no other photo.
    """
    if not len(others) or not len(references) or not results.shape[-1]:
        return torch.full((len(results),), torch.nan, dtype=torch.float64)
    return copy_angle(results, mean_direction(others), mean_direction(references))


# --- pose and expression

# The ArcFace template made symmetric, in distances between the eyes; depth towards the camera from mean proportions.
_EYES = float(ARCFACE_112[1, 0] - ARCFACE_112[0, 0])
_HEAD = np.array(
    [
        (-0.5, 0.0, 0.0),
        (0.5, 0.0, 0.0),
        (0.0, (ARCFACE_112[2, 1] - ARCFACE_112[:2, 1].mean()) / _EYES, 0.5),
        *(
            (side * (ARCFACE_112[4, 0] - ARCFACE_112[3, 0]) / _EYES / 2, drop, 0.1)
            for drop in [(ARCFACE_112[3:, 1].mean() - ARCFACE_112[:2, 1].mean()) / _EYES]
            for side in (-1, 1)
        ),
    ]
)
HEAD = _HEAD - _HEAD.mean(0)  # (5, 3): x right, y down, z towards the camera


def pose(face: Face | np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (3,) in degrees from the five keypoints, of a `Face` or (5, 2); NaN without keypoints.

    The rotation of a mean head whose scaled orthographic image lies nearest to the keypoints. Positive yaw looks to
    the image's right, positive pitch up, positive roll tilts clockwise. Five points say little about one image's
    pitch (noses differ); differences between images of one person are meaningful.
    """
    points = face.keypoints if isinstance(face, Face) else face
    if points is None:
        return np.full(3, np.nan)
    points = np.asarray(points, np.float64)
    camera = np.linalg.lstsq(HEAD, points - points.mean(0), rcond=None)[0].T  # (2, 3), scaled rows of a rotation
    u, scales, vt = np.linalg.svd(camera, full_matrices=False)
    if scales[0] < 1e-9:
        return np.full(3, np.nan)
    x, y = u @ vt
    rotation = np.stack([x, y, np.cross(x, y)])
    yaw = np.arcsin(np.clip(-rotation[2, 0], -1, 1))  # rotation = roll after yaw after pitch
    pitch = np.arctan2(rotation[2, 1], rotation[2, 2])
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.degrees([yaw, pitch, roll])


# InsightFace's 106 points: the left eye, left brow, mouth, right eye and right brow, as they lie in the image.
_LEFT_EYE, _LEFT_BROW, _MOUTH = slice(33, 43), slice(43, 52), slice(52, 72)
_RIGHT_EYE, _RIGHT_BROW = slice(87, 97), slice(97, 106)


def expression(points: np.ndarray) -> np.ndarray:
    """Ratios that change with expression and not with size, place or tilt of the head.

    From 106 points (106, 2): width of the mouth, its opening, opening of the eyes, height of the brows (4,). From five
    keypoints (5, 2): width of the mouth, and its distance from the nose (2,). All in distances between the eyes.
    """
    points = np.asarray(points, np.float64)
    if len(points) == 5:
        level = _level(points, points[0], points[1])
        return np.array([level[4, 0] - level[3, 0], level[3:, 1].mean() - level[2, 1]])
    left, right = points[_LEFT_EYE].mean(0), points[_RIGHT_EYE].mean(0)
    level = _level(points, left, right)
    mouth = np.ptp(level[_MOUTH], axis=0)
    opening = np.mean([np.ptp(level[eye, 1]) for eye in (_LEFT_EYE, _RIGHT_EYE)])
    brows = level[_LEFT_EYE, 1].mean() - level[_LEFT_BROW, 1].mean()
    brows = (brows + level[_RIGHT_EYE, 1].mean() - level[_RIGHT_BROW, 1].mean()) / 2
    return np.array([*mouth, opening, brows])


def _level(points: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The points with the eyes at (0, 0) and (1, 0)."""
    return transform_points(similarity_transform(np.stack([left, right]), np.array([(0.0, 0.0), (1.0, 0.0)])), points)


def spread(values: np.ndarray) -> float:
    """Root mean square over columns of the standard deviation over rows (n, k); NaN for fewer than two defined rows."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values).all(-1)]
    return float(np.sqrt(values.var(0, ddof=1).mean())) if len(values) > 1 else float("nan")


def relative_spread(values: np.ndarray, baseline: np.ndarray) -> float:
    """Spread of a person's results over that of the images without identity, same prompts and seeds.

    1: as free as without; 0: frozen. For poses (n, 3) `pose_spread`, for expressions (n, k) `expr_spread`.
    """
    free = spread(baseline)
    return spread(values) / free if free > 0 else float("nan")


def pose_copy(results: np.ndarray, references: np.ndarray, baseline: np.ndarray) -> float:
    """How much poses (n, 3) follow those of the reference photos, beyond the images without identity.

    The mean over yaw, pitch and roll of correlation(results, references) - correlation(baseline, references), over
    (person, prompt); 0: not at all, 1: copied. Angles that never vary are left out; NaN when none varies.
    """
    defined = np.isfinite(np.concatenate([results, references, baseline], -1)).all(-1)
    gains = [
        _correlation(result, reference) - _correlation(plain, reference)
        for result, reference, plain in zip(results[defined].T, references[defined].T, baseline[defined].T, strict=True)
        if len(reference) > 1 and reference.std() > 1e-9
    ]
    return float(np.mean(gains)) if gains else float("nan")


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


class Turn(Enum):
    """Where a prompt asks the head to look, in the image."""

    AHEAD = "ahead"
    LEFT = "left"
    RIGHT = "right"
    UP = "up"
    DOWN = "down"


def obeys_pose(poses: np.ndarray, asked: Sequence[Turn], turned: float = TURNED) -> np.ndarray:
    """1 where the measured pose (n, 3) is in the class that was asked for, else 0; a missing face (NaN) never obeys."""
    poses = np.asarray(poses, np.float64)
    return np.array(
        [float(_obeys(yaw, pitch, turn, turned)) for (yaw, pitch, _), turn in zip(poses, asked, strict=True)]
    )


def _obeys(yaw: float, pitch: float, asked: Turn, turned: float) -> bool:
    if asked is Turn.AHEAD:
        return abs(yaw) < turned and abs(pitch) < turned
    return {Turn.LEFT: -yaw, Turn.RIGHT: yaw, Turn.UP: pitch, Turn.DOWN: -pitch}[asked] >= turned


# --- pixels


def face_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity (n,) of grey aligned crops (n, H, W, 3) 0..1, side 11 or more: above 0.6 is a paste.

    Wang et al. 2004: Gaussian window of sigma 1.5 over 11 pixels, K1 = 0.01, K2 = 0.03. It catches what recognisers
    cannot: a face that was pasted rather than generated.
    """
    x, y = (_grey(crops) for crops in (a, b))
    window = _gaussian(11, 1.5).to(x)

    def blur(planes: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(planes, window[None, None, None, :]), window[None, None, :, None])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    alike = alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return alike.mean((1, 2, 3))


def _grey(crops: torch.Tensor) -> torch.Tensor:
    """Luma (n, 1, H, W) of crops (n, H, W, 3), in float64."""
    return (crops.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[:, None]


def _gaussian(size: int, sigma: float) -> torch.Tensor:
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(at**2) / (2 * sigma**2))
    return weights / weights.sum()
