"""Masks of a face, or of parts of it, by name: from a face parser, or from the keypoints alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

import numpy as np

from ..errors import LikenessError
from .align import ffhq_template, robust_similarity_transform, transform_points
from .face import Face
from .opencv import opencv
from .parsing import BROWS, CROP_SIZE, EARS, EYES, FACE, LIPS, FaceParser, Labelled, Part, parse_faces, part_mask

EVERYTHING = frozenset(Part) - {Part.BACKGROUND}


class Region(Enum):
    """What of a person a mask shows. `NON_FACE` and `BACKGROUND` are all the rest of the image."""

    FACE = "face"
    FACE_HAIR = "face+hair"
    HEAD = "head"
    NON_FACE = "non-face"
    SKIN = "skin"
    HAIR = "hair"
    BROWS = "brows"
    EYES = "eyes"
    NOSE = "nose"
    MOUTH = "mouth"
    EARS = "ears"
    GLASSES = "glasses"
    HAT = "hat"
    NECK = "neck"
    CLOTH = "cloth"
    PERSON = "person"
    BACKGROUND = "background"


PARTS: dict[Region, frozenset[Part]] = {
    Region.FACE: FACE,
    Region.FACE_HAIR: FACE | {Part.HAIR},
    Region.HEAD: FACE | EARS | {Part.HAIR, Part.HAT},
    Region.NON_FACE: FACE,  # what it leaves out
    Region.SKIN: frozenset({Part.SKIN}),
    Region.HAIR: frozenset({Part.HAIR}),
    Region.BROWS: BROWS,
    Region.EYES: EYES,
    Region.NOSE: frozenset({Part.NOSE}),
    Region.MOUTH: LIPS | {Part.MOUTH},
    Region.EARS: EARS,
    Region.GLASSES: frozenset({Part.GLASSES}),
    Region.HAT: frozenset({Part.HAT}),
    Region.NECK: frozenset({Part.NECK, Part.NECKLACE}),
    Region.CLOTH: frozenset({Part.CLOTH}),
    Region.PERSON: EVERYTHING,
    Region.BACKGROUND: EVERYTHING,  # what it leaves out
}
THE_REST = frozenset({Region.NON_FACE, Region.BACKGROUND})


def region_masks(
    photo: np.ndarray,
    faces: Sequence[Face],
    regions: Collection[Region],
    parser: FaceParser | None = None,
    beside: Sequence[Face] = (),
) -> np.ndarray:
    """One mask for each face of a photo (H, W, 3) uint8 RGB: (n, H, W) bool.

    With a parser a pixel that several faces could claim goes to the nearest; `beside` are faces that get no mask but
    keep what is theirs. Without one, FACE, EYES, BROWS, NOSE and MOUTH are drawn from the keypoints, and the rest of
    the image is what is not FACE. Raises LikenessError for what the keypoints cannot show, and for a face that has
    none where they are needed.
    """
    masks = np.zeros((len(faces), *photo.shape[:2]), bool)
    shown, left_out = set(regions) - THE_REST, set(regions) & THE_REST
    if parser is None:
        for mask, face in zip(masks, faces, strict=True):
            for region in regions:
                drawn = keypoint_mask(photo.shape[:2], face, Region.FACE if region in THE_REST else region)
                mask |= ~drawn if region in THE_REST else drawn
        return masks
    for mask, labelled in zip(masks, parse_faces(parser, photo, [_points(face) for face in faces]), strict=True):
        labels = labelled.labels
        if others := [face for face in (*faces, *beside) if face.keypoints is not None]:
            labels = _own(labelled, [_points(face) for face in others])
        parts = frozenset().union(*(PARTS[region] for region in shown))
        mask[labelled.rows, labelled.columns] = part_mask(labels, parts)
        for region in left_out:
            rest = np.ones_like(mask)
            rest[labelled.rows, labelled.columns] = ~part_mask(labels, PARTS[region])
            mask |= rest
    return masks


def together(masks: np.ndarray, regions: Collection[Region]) -> np.ndarray:
    """The masks of all people (n, H, W) as one (H, W): of the rest of the image, what is nobody's."""
    return np.all(masks, 0) if set(regions) <= THE_REST else np.any(masks, 0)


def _points(face: Face) -> np.ndarray:
    if face.keypoints is None:
        raise LikenessError(
            "A face has no keypoints, which a face parser needs: find faces with a face analysis that gives them, for "
            "example buffalo_l, OpenCV or MTCNN, or choose 'keypoints (no download)' as the parser."
        )
    return face.keypoints


def _own(labelled: Labelled, everybody: Sequence[np.ndarray]) -> np.ndarray:
    """The labels with background where another face is nearer, in sizes of the faces."""
    if len(everybody) < 2:
        return labelled.labels
    ys, xs = np.mgrid[labelled.rows, labelled.columns]
    pixels = np.stack([xs, ys], -1).astype(np.float64)
    middle = ffhq_template(CROP_SIZE).mean(0)

    def distance(keypoints: np.ndarray) -> np.ndarray:
        matrix = robust_similarity_transform(keypoints, ffhq_template(CROP_SIZE))
        return np.linalg.norm(transform_points(matrix, pixels) - middle, axis=-1)

    own = distance(labelled.keypoints)
    nearest = np.minimum.reduce([distance(points) for points in everybody])
    return np.where(own <= nearest + 1e-6, labelled.labels, np.uint8(Part.BACKGROUND))


# --- without a network


def ellipse_mask(size: tuple[int, int], face: Face) -> np.ndarray:
    """(H, W) uint8: an ellipse from the hairline to the chin, leaning as the face does; in its box without keypoints.

    Its proportions are those of a face on the FFHQ template: from the eyes one eye-mouth distance up and 1.75 down.
    """
    if face.keypoints is None:
        x1, y1, x2, y2 = (float(value) for value in face.box)
        centre, half_width, half_height = np.array([(x1 + x2) / 2, (y1 + y2) / 2]), (x2 - x1) / 2, (y2 - y1) / 2
        down = np.array([0.0, 1.0])
    else:
        points = np.asarray(face.keypoints, np.float64)
        eyes, down, length = _axis(points)
        centre, half_height = eyes + 0.375 * length * down, 1.375 * length
        half_width = max(1.15 * float(np.linalg.norm(points[1] - points[0])), 0.95 * length)  # the latter in profile
    return 255 * _filled_ellipse(size, centre, down, half_width, half_height).astype(np.uint8)


def keypoint_mask(size: tuple[int, int], face: Face, region: Region) -> np.ndarray:
    """(H, W) bool: FACE, EYES, BROWS, NOSE or MOUTH as the five keypoints suggest them; LikenessError for others."""
    if region is Region.FACE:
        return ellipse_mask(size, face) > 0
    if region not in (Region.EYES, Region.BROWS, Region.NOSE, Region.MOUTH):
        raise LikenessError(
            f"Keypoints do not show the region {region.value!r}: choose a face parser (`likeness models get "
            "facexlib/parsing_bisenet` fetches one), or one of face, non-face, eyes, brows, nose and mouth."
        )
    points = np.asarray(_points(face), np.float64)
    _, down, length = _axis(points)
    corners = points[3:]
    if region is Region.MOUTH:
        wide = 0.5 * float(np.linalg.norm(corners[1] - corners[0])) + 0.12 * length
        return _filled_ellipse(size, corners.mean(0), down, wide, 0.26 * length)
    if region is Region.NOSE:
        return _filled_ellipse(size, points[2] - 0.18 * length * down, down, 0.3 * length, 0.42 * length)
    lift = 0.0 if region is Region.EYES else 0.32 * length
    high = 0.2 * length if region is Region.EYES else 0.13 * length
    left, right = (_filled_ellipse(size, eye - lift * down, down, 0.36 * length, high) for eye in points[:2])
    return left | right


def _axis(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The middle of the eyes, the direction to the mouth, and the distance to it."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    length = max(float(np.linalg.norm(mouth - eyes)), 1e-3)
    return eyes, (mouth - eyes) / length, length


def _filled_ellipse(
    size: tuple[int, int], centre: np.ndarray, down: np.ndarray, half_width: float, half_height: float
) -> np.ndarray:
    """(H, W) bool: True inside an ellipse that stands along `down`, a unit vector."""
    half_height, half_width = max(half_height, 0.5), max(half_width, 0.5)
    reach, mask = max(half_height, half_width), np.zeros(size, bool)
    around = (centre[:, None] + np.array([-reach, reach + 2])).clip(0, [[size[1]], [size[0]]]).astype(int)
    (left, right), (top, bottom) = around  # the rest of a large photo takes no part
    x, y = np.arange(left, right) - centre[0], np.arange(top, bottom)[:, None] - centre[1]
    along, across = x * down[0] + y * down[1], x * down[1] - y * down[0]
    mask[top:bottom, left:right] = (along / half_height) ** 2 + (across / half_width) ** 2 <= 1
    return mask


# --- edges


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (H, W) bool larger by this many pixels in every direction, or smaller where they are negative."""
    if pixels == 0 or not mask.any() or mask.all():
        return mask
    cv2 = opencv()
    # Distances end at the image's border, so that shrinking does not begin there.
    far = cv2.distanceTransform((mask if pixels < 0 else ~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return far > -pixels if pixels < 0 else far <= pixels


def feathered(mask: np.ndarray, pixels: float) -> np.ndarray:
    """A mask (H, W) in 0..1 float32 with an edge that fades over about this many pixels on either side.

    Three box filters, which together are nearly a Gaussian of half that width, and take as long for any width.
    """
    soft = np.ascontiguousarray(mask, np.float32)
    if pixels <= 0:
        return soft
    cv2 = opencv()
    sigma = pixels / 2
    side = 2 * round((np.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1  # three boxes of this side have that variance
    if side == 1:
        return soft
    for _ in range(3):
        soft = cv2.blur(soft, (side, side), borderType=cv2.BORDER_REPLICATE)
    return np.clip(soft, 0.0, 1.0)
