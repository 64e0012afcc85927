"""Finding the meant face in every photo of a batch: what was found, what was chosen, and images of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch

from ..errors import LikenessError
from .align import clip_box, head_crop
from .analysis import FaceAnalysis
from .face import Face
from .identity import HEAD_FACTOR, HEAD_SIZE, OUTLIER_COSINE, Identity, build_identity
from .keypoints import Drawing, KeypointCanvas
from .select import Choice, face_regions, is_inside, order_faces
from .similarity import cosine_similarity

SMALLEST_FACE = 32  # pixels; recognisers see mostly interpolation below
CHOSEN_COLOUR, OTHER_COLOUR = (255, 196, 0), (255, 255, 255)


class IfNone(Enum):
    """What happens to a photo without a face."""

    ERROR = "error"
    SKIP = "skip photo"
    WHOLE = "use whole picture"


@dataclass(frozen=True, eq=False)
class Rule:
    """Which face of a photo is meant. `index` counts in the order of `choice`; `reference` is for SIMILAR only.

    A face counts when both sides of its box have at least `min_size` pixels, and its middle lies on `region`, where
    there is one: a mask for all photos, or one for each, of any size.
    """

    choice: Choice = Choice.LARGEST
    index: int = 0
    if_none: IfNone = IfNone.ERROR
    min_size: int = SMALLEST_FACE
    reference: Identity | None = None
    region: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """The faces of n photos. `chosen` is None where a photo is skipped.

    `all_faces` are ordered by the rule, so that a face's place in its list is the rule's `index`; they carry
    embeddings only where the rule needed them, the chosen ones always, if there is a recogniser. `whole` are the
    numbers of photos in which no face was found and the image itself stands in for one.
    """

    photos: list[np.ndarray]  # (H, W, 3) uint8 RGB
    chosen: list[Face | None]
    all_faces: list[list[Face]]
    analysis_name: str
    whole: frozenset[int] = frozenset()

    @property
    def count(self) -> int:
        """How many faces all photos show, the chosen ones among them."""
        return sum(len(faces) for faces in self.all_faces)


def find_faces(
    analysis: FaceAnalysis,
    photos: Sequence[np.ndarray],
    rule: Rule | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> FoundFaces:
    """The face that `rule` means in each photo (H, W, 3) uint8 RGB.

    Raises `LikenessError` when no photo has one, or any photo has none and the rule does not say what then.
    `after_each` is called after every photo, for progress and cancelling.
    """
    rule = rule or Rule()
    _check_reference(analysis, rule)
    if rule.region is not None:
        rule = replace(rule, region=face_regions(rule.region, len(photos)))
    chosen: list[Face | None] = []
    all_faces: list[list[Face]] = []
    whole = set()
    for number, photo in enumerate(photos):
        where = f"photo {number + 1}" if len(photos) > 1 else "the photo"
        faces, why_none = _faces_of(analysis, photo, number, where, rule)
        face = None
        if faces:
            face = _with_embedding(analysis, photo, _at(rule.index, faces, where))
        elif rule.if_none is IfNone.ERROR:
            raise LikenessError(why_none)
        elif rule.if_none is IfNone.WHOLE:
            whole.add(number)
            face = _whole_picture(photo, number)
        chosen.append(face)
        all_faces.append(faces)
        after_each()
    if not any(chosen):
        raise LikenessError(
            f"No face was found in any of the {len(photos)} photos, so none could be skipped: use clearer photographs, "
            f"or lower min_size ({rule.min_size})."
        )
    return FoundFaces(list(photos), chosen, all_faces, analysis.name, frozenset(whole))


def _check_reference(analysis: FaceAnalysis, rule: Rule) -> None:
    if rule.choice is not Choice.SIMILAR:
        return
    if rule.reference is None:
        raise LikenessError("The face most similar to a reference needs one: connect an identity to 'reference'.")
    if analysis.recogniser is None:
        raise LikenessError(
            f"{analysis.name} has no recogniser, so it cannot tell which face is like the reference: choose another "
            "rule, or a face analysis such as buffalo_l."
        )
    if rule.reference.recogniser != analysis.recogniser.name:
        raise LikenessError(
            f"The reference '{rule.reference.name}' was made by the recogniser {rule.reference.recogniser or 'none'}, "
            f"and these photos were analysed by {analysis.recogniser.name}: make both with the same face analysis."
        )


def _faces_of(analysis: FaceAnalysis, photo: np.ndarray, number: int, where: str, rule: Rule) -> tuple[list[Face], str]:
    """The faces that are large enough, in the rule's order, and the sentence to show when there are none."""
    search = analysis.search(photo, number, embed=rule.choice is Choice.SIMILAR)
    large = [face for face in search.faces if min(face.sides) >= rule.min_size]
    if not large:
        if not search.faces:
            return [], search.explain(where)
        width, height = max(search.faces, key=lambda face: face.area).sides
        return [], (
            f"The faces in {where} are too small: the largest has {width:.0f}x{height:.0f} pixels and min_size is "
            f"{rule.min_size}; use a larger photo, or lower min_size."
        )
    if rule.region is not None:
        region = rule.region[min(number, len(rule.region) - 1)]
        outside = len(large)
        large = [face for face in large if is_inside(face, region, photo.shape[:2])]
        if not large:
            return [], (
                f"No face in {where} has its middle on the mask 'region' ({outside} lie outside): paint over the face "
                "that is meant, or disconnect the mask."
            )
    if rule.choice is Choice.ONLY and len(large) > 1:
        raise LikenessError(
            f"In {where} {len(large)} faces were found where only one was expected: crop it, or choose a rule, for "
            "example the largest face."
        )
    reference = rule.reference.mean_embedding() if rule.choice is Choice.SIMILAR and rule.reference else None
    return order_faces(large, rule.choice, photo.shape[:2], reference), ""


def _at(index: int, ordered: list[Face], where: str) -> Face:
    if not -len(ordered) <= index < len(ordered):
        raise LikenessError(
            f"Face number {index} was asked for in {where}, but {len(ordered)} were found (numbers start at 0): "
            "choose a smaller index."
        )
    return ordered[index]


def _with_embedding(analysis: FaceAnalysis, photo: np.ndarray, face: Face) -> Face:
    if face.embedding is not None or face.keypoints is None or analysis.recogniser is None:
        return face
    embedding = analysis.recogniser.embed(photo, face.keypoints)
    return replace(face, embedding=embedding, recogniser=analysis.recogniser.name)


def _whole_picture(photo: np.ndarray, number: int) -> Face:
    """A stand-in whose head crop is the whole image: the box is that crop's middle."""
    height, width = photo.shape[:2]
    half = max(height, width) / HEAD_FACTOR / 2
    box = np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half], np.float32)
    return Face(box=box, score=0.0, photo=number)


# --- an identity from what was found


def comparable(found: FoundFaces) -> list[Face | None]:
    """The chosen faces that can make up one identity; the others are None.

    Where some have an embedding, those without cannot stand beside them; the same goes for keypoints.
    """

    def known(face: Face) -> tuple[bool, bool]:
        return face.embedding is not None, face.keypoints is not None

    best = max((known(face) for face in found.chosen if face), default=(False, False))
    return [face if face and known(face) == best else None for face in found.chosen]


def identity_of(
    found: FoundFaces,
    name: str = "person",
    outlier_threshold: float | None = OUTLIER_COSINE,
    leave_out: bool = True,
) -> tuple[Identity, list[str]]:
    """One person from the chosen faces (see `build_identity`), and a sentence for every photo that took no part."""
    faces = comparable(found)
    sentences = []
    for number, (chosen, used) in enumerate(zip(found.chosen, faces, strict=True)):
        if chosen is None:
            sentences.append(f"photo {number + 1} shows no face; skipped")
        elif used is None:
            sentences.append(f"photo {number + 1} has no embedding or keypoints, as the others do; left out")
    return build_identity(found.photos, faces, name, outlier_threshold, leave_out), sentences


def mean_similarity(identity: Identity) -> float | None:
    """Mean cosine (-1..1) over all pairs of photos; None with fewer than two photos or without embeddings."""
    if len(identity) < 2 or not identity.has_embeddings:
        return None
    alike = cosine_similarity(identity.embeddings, identity.embeddings)
    pairs = len(identity) * (len(identity) - 1)
    return float((alike.sum() - alike.diagonal().sum()) / pairs)


# --- images of what was found, float 0..1


def to_image_batch(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Images (H, W, 3) uint8 as (n, H, W, 3) float 0..1, black at right and bottom where sizes differ."""
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    batch = torch.zeros(len(pictures), height, width, 3)
    for row, picture in zip(batch, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = torch.from_numpy(picture) / 255
    return batch


def preview(found: FoundFaces) -> torch.Tensor:
    """The photos with every face's box and number, the chosen one's thick: (n, H, W, 3)."""
    return to_image_batch([_preview_of(found, number) for number in range(len(found.photos))])


def _preview_of(found: FoundFaces, number: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(found.photos[number])
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 300))
    font = ImageFont.load_default(size=max(10.0, 9.0 * line))
    chosen = found.chosen[number]
    for place, face in enumerate(found.all_faces[number]):
        is_chosen = chosen is not None and face.box is chosen.box
        colour = CHOSEN_COLOUR if is_chosen else OTHER_COLOUR
        x1, y1, x2, y2 = (float(value) for value in face.box)
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=3 * line if is_chosen else line)
        pen.text((x1 + 4 * line, y1 + 3 * line), str(place), fill=colour, font=font, stroke_width=1, stroke_fill=0)
    if number in found.whole:
        pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=CHOSEN_COLOUR, width=3 * line)
    return np.array(picture)


def chosen_heads(found: FoundFaces, size: int = HEAD_SIZE) -> torch.Tensor:
    """Upright crops around the chosen faces, one for each photo that has one: (m, size, size, 3)."""
    pairs = [(photo, face) for photo, face in zip(found.photos, found.chosen, strict=True) if face]
    return to_image_batch([head_crop(photo, face.box, size, HEAD_FACTOR) for photo, face in pairs])


def chosen_masks(found: FoundFaces) -> torch.Tensor:
    """1 inside the chosen face's box, 0 elsewhere, all 1 for a whole image, all 0 for a skipped photo: (n, H, W)."""
    sizes = [photo.shape[:2] for photo in found.photos]
    masks = torch.zeros(len(sizes), max(height for height, _ in sizes), max(width for _, width in sizes))
    for number, (mask, face, size) in enumerate(zip(masks, found.chosen, sizes, strict=True)):
        if face is None:
            continue
        whole_picture = np.array([0, 0, size[1], size[0]])
        box = whole_picture if number in found.whole else clip_box(face.box, size)
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        mask[y1:y2, x1:x2] = 1
    return masks


class Drawn(Enum):
    """Whose keypoints of a photo are drawn."""

    CHOSEN = "the chosen face"
    ALL = "all faces"


def keypoint_drawings(
    found: FoundFaces, canvas: KeypointCanvas, drawn: Drawn = Drawn.CHOSEN, stand_in: Identity | None = None
) -> list[Drawing]:
    """InstantID's keypoints of every photo. Where one has none to draw, those of `stand_in` are taken; without it, a
    skipped photo is left out. Raises LikenessError for a face without keypoints, which has no stand-in.
    """
    drawings = []
    for number, (photo, chosen) in enumerate(zip(found.photos, found.chosen, strict=True)):
        faces = [chosen] if chosen and drawn is Drawn.CHOSEN else found.all_faces[number]
        points = [face.keypoints for face in faces if face.keypoints is not None]
        size = (photo.shape[1], photo.shape[0])
        if points:
            drawings.append(Drawing.fitted(points, size, canvas))
        elif stand_in is not None:
            width, height = canvas.of(*size)
            drawings.append(keypoints_of(stand_in, KeypointCanvas(width, height)))
        elif chosen is not None:
            why = "it shows no face" if number in found.whole else f"{found.analysis_name} finds boxes only"
            raise LikenessError(
                f"Photo {number + 1} has no keypoints to draw, because {why}: use a face analysis with keypoints, for "
                "example buffalo_l or MTCNN, on a photo that shows a face."
            )
    return drawings


def keypoints_of(identity: Identity, canvas: KeypointCanvas) -> Drawing:
    """InstantID's keypoints of an identity, those of its first photo."""
    if not len(identity.keypoints):
        raise LikenessError(
            f"The identity {identity.name!r} has no keypoints to draw, because its detector gave none: make it with a "
            "face analysis that does, for example buffalo_l, OpenCV or MTCNN."
        )
    height, width = identity.photo_sizes[0].tolist()
    return Drawing.fitted([identity.keypoints[0].numpy()], (width, height), canvas)
