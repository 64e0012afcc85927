"""The way of a face: cut out, restore, bring back colours and texture, check who it is, put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from ..device_errors import is_out_of_memory
from ..faces.align import ffhq_template, robust_similarity_transform, transform_points
from ..faces.face import Face
from ..faces.parsing import CROP_SIZE, FaceParser
from .colour import ColourMatch, grey_like, is_grey, matched, with_texture
from .guard import Guard, Likeness
from .paste import Shape, cut_out, cut_out_mask, for_scaled, parsed_edge, put_back, shaped_edge
from .upscale import resized

SMALLEST = 24  # pixels of the shorter side of a face's box; restorers invent anybody from less
LEAST_EYES = 5.0  # pixels between them: a profile, or keypoints that are wrong
BATCH = 4


class Fate(Enum):
    """What became of a face."""

    RESTORED = "restored"
    REDUCED = "reduced"
    KEPT = "left as it was"


@dataclass(frozen=True, eq=False)
class FaceOutcome:
    """One face: what was done, and why it was not more."""

    picture: int
    number: int  # of the face in its image
    face: Face
    fate: Fate
    share: float  # of the restoration that is in the image
    why: str = ""
    likeness: Likeness | None = None

    def sentence(self) -> str:
        """For the report: which face, what became of it, and its likeness before and after."""
        x1, y1, x2, y2 = (round(float(value)) for value in self.face.box)
        said = f"image {self.picture + 1}, face {self.number} ({x2 - x1}x{y2 - y1} pixels): {self.fate.value}"
        if self.fate is Fate.REDUCED:
            said += f" to {self.share:.0%}"
        if self.likeness is not None:
            whose = " to itself, as it is not the identity's person," if self.likeness.stranger else ""
            said += f", likeness{whose} {self.likeness.before:.2f} before, {self.likeness.kept:.2f} after"
            if self.fate is not Fate.RESTORED:
                said += f", and {self.likeness.restored:.2f} if it were restored in full"
        return f"{said}; {self.why}" if self.why else said


@dataclass(frozen=True, eq=False)
class PasteOptions:
    """How restored faces come back. strength: how much of the restoration is wanted, 0..1. texture: how much of the
    image's finest detail is added. shape: of what is pasted, where no parser says it."""

    strength: float = 1.0
    colours: ColourMatch = ColourMatch.NONE
    texture: float = 0.0
    shape: Shape = Shape.FACE
    parser: FaceParser | None = None
    guard: Guard | None = None
    batch: int = BATCH


@dataclass(frozen=True, eq=False)
class FaceJob:
    """A face to rework, cut out of its image."""

    picture: int
    number: int
    face: Face
    matrix: np.ndarray  # (2, 3), image to crop
    points: np.ndarray | None  # (5, 2), of the crop
    crop: Tensor  # (3, S, S)


@dataclass(eq=False)
class Restored:
    """What came out: images (H, W, 3), where faces were pasted into them (H, W), one outcome for each face, and the
    crops of those that a network saw, before and after."""

    pictures: list[Tensor]
    covered: list[Tensor]
    outcomes: list[FaceOutcome] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)


Restore = Callable[[Tensor], Tensor]  # crops (B, 3, S, S), 0..1 -> the same
Rework = Callable[[Sequence[FaceJob]], Tensor]  # faces -> their crops (B, 3, S, S), changed
# image, its number, the number of the face, the face -> the job, or why there is none
CutFace = Callable[[Tensor, int, int, Face], "FaceJob | str"]


def restore_faces(
    pictures: Sequence[Tensor],
    faces: Sequence[Sequence[Face]],
    restore: Restore,
    side: int,
    options: PasteOptions | None = None,
    *,
    canvases: Sequence[Tensor] | None = None,
    regions: Sequence[Tensor] | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> Restored:
    """`rework_faces` by a restorer of aligned crops of this side."""

    def rework(jobs: Sequence[FaceJob]) -> Tensor:
        return restore(torch.stack([job.crop for job in jobs]))

    return rework_faces(
        pictures,
        faces,
        rework,
        aligned(side),
        options,
        canvases=canvases,
        regions=regions,
        after_each=after_each,
    )


def rework_faces(
    pictures: Sequence[Tensor],
    faces: Sequence[Sequence[Face]],
    rework: Rework,
    cut: CutFace,
    options: PasteOptions | None = None,
    *,
    canvases: Sequence[Tensor] | None = None,
    regions: Sequence[Tensor] | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> Restored:
    """Images (H, W, 3), RGB 0..1, with the given faces of each reworked; the input is not changed.

    canvases: the same images at any other size, into which the faces are pasted; they are changed. regions: masks
    (H, W) of the images, outside of which nothing changes. after_each is called for every face. Faces that cannot be
    cut out stay as they are, and their outcome says why.
    """
    options = options or PasteOptions()
    canvases = [picture.clone() for picture in pictures] if canvases is None else list(canvases)
    done = Restored(canvases, [canvas.new_zeros(canvas.shape[:2]) for canvas in canvases])
    waiting: list[FaceJob] = []

    def finish() -> None:
        for job, made in zip(waiting, batched(rework, waiting), strict=True):
            region = None if regions is None else regions[job.picture % len(regions)]
            _finish(done, job, made, options, pictures[job.picture], region)
            after_each()
        waiting.clear()

    for index, (picture, found) in enumerate(zip(pictures, faces, strict=True)):
        for number, face in enumerate(found):
            job = cut(picture, index, number, face) if options.strength > 0 else "the strength is 0"
            if isinstance(job, str):
                done.outcomes.append(FaceOutcome(index, number, face, Fate.KEPT, 0.0, job))
                after_each()
                continue
            waiting.append(job)
            if len(waiting) >= options.batch:
                finish()
    finish()
    done.outcomes.sort(key=lambda outcome: (outcome.picture, outcome.number))
    return done


def aligned(side: int) -> CutFace:
    """Faces on the FFHQ template, as restorers take them."""

    def cut(picture: Tensor, index: int, number: int, face: Face) -> FaceJob | str:
        if face.keypoints is None:
            return "its detector gave no keypoints to align it by"
        if why := too_small(face):
            return why
        if np.linalg.norm(face.keypoints[0] - face.keypoints[1]) < LEAST_EYES:
            return "it is seen from the side: its eyes fall on one point"
        matrix = robust_similarity_transform(face.keypoints, ffhq_template(side))
        points = transform_points(matrix, face.keypoints)
        return FaceJob(index, number, face, matrix, points, cut_out(picture, matrix, side))

    return cut


def too_small(face: Face) -> str:
    """Why nothing can be made of so small a face; empty when it is large enough."""
    x1, y1, x2, y2 = (float(value) for value in face.box)
    return f"it is smaller than {SMALLEST} pixels" if min(x2 - x1, y2 - y1) < SMALLEST else ""


def batched(rework: Rework, jobs: Sequence[FaceJob]) -> Iterator[Tensor]:
    """The reworked crops; where the memory is too small for all at once, half of them at a time."""
    if not jobs:
        return
    try:
        made = rework(jobs)
    except Exception as error:
        if len(jobs) == 1 or not is_out_of_memory(error):
            raise
        made = None
    if made is None:
        half = len(jobs) // 2
        for part in (jobs[:half], jobs[half:]):
            yield from batched(rework, part)
        return
    yield from made.cpu()


def _finish(
    done: Restored, job: FaceJob, restored: Tensor, options: PasteOptions, picture: Tensor, region: Tensor | None
) -> None:
    if not bool(restored.isfinite().all()):
        why = "the network returned NaN or infinite values"
        done.outcomes.append(FaceOutcome(job.picture, job.number, job.face, Fate.KEPT, 0.0, why))
        return
    mask = paste_mask_of(job, restored, options, region)
    tidy = grey_like(restored, job.crop) if is_grey(job.crop) else restored
    tidy = with_texture(matched(tidy, job.crop, torch.from_numpy(mask), options.colours), job.crop, options.texture)
    tidy = tidy.clamp(0, 1)
    share, likeness, why = 1.0, None, ""
    if options.guard is not None and job.points is None:
        why = "the guard did not check it, because its detector gave no keypoints"
    elif options.guard is not None and job.points is not None:
        wanted = job.crop + options.strength * (tidy - job.crop)
        share, likeness = options.guard.keep_person(job.crop, wanted, job.points)
        if share < 1:
            why = "more of it would be another person"
        if likeness is None:
            why = f"{options.guard.recogniser.name} cannot recognise it"
    amount = share * options.strength
    if amount > 0:
        canvas, covered = done.pictures[job.picture], done.covered[job.picture]
        scale = canvas.shape[1] / picture.shape[1], canvas.shape[0] / picture.shape[0]
        within = None if region is None else resized(region[..., None], *canvas.shape[:2])[..., 0]
        put_back(canvas, job.crop, tidy, for_scaled(job.matrix, scale), mask, amount, covered, within)
    fate = Fate.RESTORED if share == 1 else Fate.REDUCED if share > 0 else Fate.KEPT
    done.outcomes.append(FaceOutcome(job.picture, job.number, job.face, fate, amount, why, likeness))
    done.before.append(job.crop)
    done.after.append(job.crop + amount * (tidy - job.crop))


def paste_mask_of(job: FaceJob, restored: Tensor, options: PasteOptions, region: Tensor | None) -> np.ndarray:
    """Where the restored crop is pasted: (S, S) float32, 0..1."""
    side = restored.shape[-1]
    corners = transform_points(job.matrix, np.asarray(job.face.box, np.float64).reshape(2, 2))
    mask = shaped_edge(options.shape, side, job.points, corners.reshape(4))
    if options.parser is not None:
        mask = np.minimum(parsed_mask(options.parser, restored), shaped_edge(Shape.SQUARE, side))
    return mask if region is None else np.minimum(mask, cut_out_mask(region, job.matrix, side))


def parsed_mask(parser: FaceParser, crop: Tensor) -> np.ndarray:
    """What a parser takes for the face and hair of a crop (3, S, S), faded: (S, S) float32."""
    side = (CROP_SIZE, CROP_SIZE)
    planes = torch.nn.functional.interpolate(crop[None], side, mode="bilinear", antialias=True).clamp(0, 1)
    labels = parser.parse_crops((planes * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())[0].numpy()
    edge = torch.from_numpy(parsed_edge(labels))[None, None]
    return torch.nn.functional.interpolate(edge, crop.shape[-2:], mode="bilinear", antialias=True)[0, 0].numpy()
