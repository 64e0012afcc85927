"""Photos made ready for training: the right face found, cropped, judged, masked and captioned.

    dataset = build_dataset(photos, Settings(DatasetKind.PERSON, "ohwx"), analysis)
    dataset.examples()

Every photo is judged before any is refused, so that a user reads of all problems at once. What a photo is refused for
(no face, too small, blurred, a copy, somebody else) is told apart from what is merely worth knowing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import LikenessError
from ...faces import Choice, Face, FaceAnalysis, FaceParser, Identity, cosine_similarity, order_faces, parse_face
from ...faces.align import clip_box
from ...faces.analysis import SMALLEST_PHOTO, Recogniser
from ...faces.identity import OUTLIER_COSINE
from ...faces.masks import ellipse_mask
from ...faces.parsing import part_mask
from ...faces.photo_list import names_of
from ...faces.similarity import on_scale_of
from .captions import SLOT, check_captions, check_trigger, fill_template, person_templates, renamed, style_templates
from .coverage import Variety
from .examples import Example
from .masks import FACE_PARTS
from .names import check_phrase
from .photo_files import Photo
from .photo_quality import Looks, sharpness

SMALLEST_FACE = 64  # pixels of the photo; a smaller face teaches mostly interpolation
LEAST_SHARPNESS = 15.0  # a face of 120 pixels, in focus 150 to 800, blurred by 2 pixels 5 to 9
ENLARGED = 1.5  # times, from which it is worth a remark
SMALL_SHARE = 0.15  # of the image's side, below which a face teaches little
LEARNED = 1 / 1024  # the smallest face of a photo, in shares of the image that is trained on; 32 pixels of 512
BYSTANDER = 0.25  # of the face's side, from which somebody else in the image counts


LARGEST_RESOLUTION = 2048


class DatasetKind(Enum):
    """What the images have in common."""

    PERSON = "person"
    STYLE = "style"  # portraits of anybody; the mask tells the face from the style

    def templates(self, class_word: str) -> tuple[str, ...]:
        """The built-in sentences about such images."""
        return person_templates(class_word) if self is DatasetKind.PERSON else style_templates(class_word)


class Framing(Enum):
    """Which part of a photo is used."""

    HEAD = "head and shoulders"  # a square of three faces' side; without a face like SQUARE
    SQUARE = "largest square"  # moved so that the face is in its middle, as far as the photo allows
    WHOLE = "whole picture"  # the photo's proportions, up to 1:2


class Unfit(Enum):
    """What happens to a photo that should not be trained on."""

    LEAVE_OUT = "leave out"
    STOP = "stop"
    KEEP = "keep"


@dataclass(frozen=True)
class DatasetSettings:
    """How photos become a dataset. templates: with `{}` for the trigger; empty: the built-in ones."""

    kind: DatasetKind
    trigger: str
    class_word: str = "person"
    resolution: int = 512
    framing: Framing = Framing.HEAD
    unfit: Unfit = Unfit.LEAVE_OUT
    templates: tuple[str, ...] = ()
    smallest_face: int = SMALLEST_FACE
    least_sharpness: float = LEAST_SHARPNESS
    outlier_cosine: float = OUTLIER_COSINE

    def __post_init__(self) -> None:
        object.__setattr__(self, "trigger", check_trigger(self.trigger))
        check_phrase(self.class_word, "The class word")
        if self.trigger.lower() in self.class_word.lower().split():
            raise LikenessError(
                f"The trigger word {self.trigger!r} is the class word too: use a rare word such as ohwx or sks."
            )
        if not 64 <= self.resolution <= LARGEST_RESOLUTION or self.resolution % 8:
            raise LikenessError(
                f"The resolution {self.resolution} is not a multiple of 8 from 64 to {LARGEST_RESOLUTION}: use 512 or "
                "1024."
            )

    def template(self, number: int) -> str:
        """The template of the image with this number."""
        templates = self.templates or self.kind.templates(self.class_word)
        return templates[number % len(templates)]


# --- what comes out


@dataclass(frozen=True, eq=False)
class DatasetPicture:
    """One image to train on. Coordinates are its own pixels."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8 RGB; sides are multiples of 8
    mask: np.ndarray | None  # (H, W) uint8, 255 on the face, all 0 where there is none; None: unknown
    caption: str
    original_size: tuple[int, int]  # (height, width) of the photo
    crop: tuple[int, int] = (0, 0)  # (top, left) in the photo once it is scaled
    keypoints: np.ndarray | None = None  # (5, 2) float32
    remarks: tuple[str, ...] = ()
    repeats: int = 1  # how often it is shown while others are shown once
    is_captioned: bool = False  # by its user, not by a template

    @property
    def shows_face(self) -> bool:
        """Whether the mask says where a face is."""
        return self.mask is not None and bool((self.mask > 127).any())

    def example(self) -> Example:
        """As the engine takes it."""
        mask = None if self.mask is None else torch.from_numpy(self.mask)[None].float() / 255
        pixels = torch.from_numpy(self.pixels).permute(2, 0, 1).float() / 127.5 - 1
        return Example(pixels.contiguous(), self.caption, mask, self.original_size, self.crop, self.name)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A photo that is not trained on, and why."""

    name: str
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, framed like the others
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one person, or in one style, that share a trigger word."""

    kind: DatasetKind
    trigger: str
    class_word: str
    pictures: tuple[DatasetPicture, ...]
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()  # about the whole
    folder: str | None = None  # where it lies on disk

    def __len__(self) -> int:
        return len(self.pictures)

    def examples(self) -> list[Example]:
        """Every image as the engine takes it, once for each of its repeats."""
        return [example for picture in self.pictures for example in [picture.example()] * picture.repeats]

    def called(self, word: str) -> Dataset:
        """The same images with another word in the trigger's place."""
        if word == self.trigger:
            return self
        pictures = (replace(picture, caption=renamed(picture.caption, self.trigger, word)) for picture in self.pictures)
        return replace(self, trigger=word, pictures=tuple(pictures))

    def digest(self) -> str:
        """Tells datasets apart by what a training sees of them: images, masks, captions, words."""
        digest = hashlib.sha256(repr((self.kind, self.trigger, self.class_word)).encode())
        for picture in self.pictures:
            digest.update(repr((picture.caption, picture.original_size, picture.crop, picture.pixels.shape)).encode())
            digest.update(np.ascontiguousarray(picture.pixels).data)
            if picture.mask is not None:
                digest.update(np.ascontiguousarray(picture.mask).data)
            if picture.repeats > 1:
                digest.update(repr(picture.repeats).encode())
        return digest.hexdigest()

    def require_masks(self) -> None:
        """LikenessError naming the images without a mask (for a person: without a white pixel in it)."""
        person = self.kind is DatasetKind.PERSON
        lacking = [s.name for s in self.pictures if s.mask is None or (person and not s.shows_face)]
        if lacking:
            raise LikenessError(
                f"{names_of(lacking)} has no face mask, which this training needs: connect a face analysis to "
                "Portrait Dataset, paint the mask yourself, or leave the image out."
            )

    def report(self) -> str:
        """What was found, line by line."""
        count = len(self.pictures)
        lines = [
            f"{count} image{'s' if count != 1 else ''} of a {self.kind.value}, trigger word "
            f"'{self.trigger}'" + (f", in {self.folder}" if self.folder else ""),
            *self.remarks,
        ]
        for picture in self.pictures:
            lines.append(f"{picture.name}: {'; '.join(['used', *picture.remarks])}")
        lines += [f"{photo.name}: left out, because {'; '.join(photo.reasons)}" for photo in self.left_out]
        return "\n".join(lines)


# --- one photo


@dataclass(frozen=True, eq=False)
class SecondRecogniser:
    """Another recogniser that looks at the same faces, and whom it looks for (D,), where that is known."""

    recogniser: Recogniser
    reference: Tensor | None = None


@dataclass
class Finding:
    """What is known of one photo without its pixels. `problems` make it unfit, `remarks` do not."""

    photo: Photo
    size: tuple[int, int]  # (height, width)
    frame: Frame  # what is used of it
    looks: Looks
    face: Face | None = None
    others: list[Face] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    second: Tensor | None = None  # (D,) the face as a second recogniser sees it
    cosine: float | None = None  # to the person
    second_cosine: float | None = None  # the same by the second recogniser


def look_at(
    photo: Photo,
    number: int,
    settings: DatasetSettings,
    analysis: FaceAnalysis | None,
    reference: Tensor | None,
    second: Recogniser | None = None,
) -> Finding:
    """Find the meant face of a photo and judge the photo by itself. reference: (D,), whom to look for; second: a
    recogniser that looks at the same face."""
    pixels, mask, face, others = photo.pixels, photo.mask, None, []
    size = pixels.shape[0], pixels.shape[1]
    is_person, is_tiny = settings.kind is DatasetKind.PERSON, min(size) < SMALLEST_PHOTO
    if analysis is not None and not is_tiny:
        search = analysis.search(pixels, number)
        if search.faces:
            face, *others = _in_order(search.faces, reference)
    if face is None and mask is not None and mask.any() and not is_tiny:
        face = _masked(mask)
    frame = frame_of(size, face, settings)
    finding = Finding(photo, size, frame, Looks.of(pixels), face, others, remarks=list(photo.remarks))
    if is_tiny:
        finding.problems.append(f"it has only {size[1]}x{size[0]} pixels")
        return finding
    if is_person:
        finding.problems += _about_the_face(finding, mask, settings)
        if second is not None and face is not None and face.embedding is not None and face.keypoints is not None:
            finding.second = torch.from_numpy(second.embed(pixels, face.keypoints)).float()
    subject = _cut(pixels, face.box) if is_person and face is not None else pixels
    if (sharp := sharpness(subject)) < settings.least_sharpness:
        finding.problems.append(f"it is blurred (sharpness {sharp:.0f}, {settings.least_sharpness:.0f} is needed)")
    return finding


def _about_the_face(finding: Finding, mask: np.ndarray | None, settings: DatasetSettings) -> Iterator[str]:
    """What is wrong with a person's face, in the photo and in what is left of it once it is cropped and scaled."""
    if finding.face is None:
        yield "no face was found in it"
        return
    width, height = finding.face.sides
    down, across = finding.frame.scale
    needed = settings.smallest_face * settings.resolution * LEARNED
    if min(width, height) < settings.smallest_face:
        yield f"its face is too small ({width:.0f}x{height:.0f} pixels, {settings.smallest_face} are needed)"
    elif min(width * across, height * down) < needed:
        yield (
            f"only {width * across:.0f}x{height * down:.0f} pixels of its face are left at this resolution "
            f"({needed:.0f} are needed): '{Framing.HEAD.value}' crops closer"
        )
    if mask is not None and mask.any() and not (finding.frame.cut(mask) > 127).any():
        yield "its mask lies outside the crop around its face"


def _masked(mask: np.ndarray) -> Face:
    """Stands in for the face that the user has painted a mask of."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Face(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32), score=1.0)


def _in_order(faces: list[Face], reference: Tensor | None) -> list[Face]:
    if reference is None or any(face.embedding is None for face in faces):
        return order_faces(faces, Choice.LARGEST)
    return order_faces(faces, Choice.SIMILAR, reference=reference)


def _cut(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of an image in a box; all of it when the box lies outside."""
    x1, y1, x2, y2 = (int(value) for value in clip_box(box, (picture.shape[0], picture.shape[1])))
    part = picture[y1:y2, x1:x2]
    return part if part.size else picture


# --- all photos together


def judge_copies(findings: Sequence[Finding]) -> None:
    """Mark every photo that is a copy of an earlier one."""
    kept: list[Finding] = []
    for finding in findings:
        original = next((o for o in kept if finding.looks.is_copy_of(o.looks, _cosine(finding, o))), None)
        if original is not None:
            finding.problems.append(f"it is almost the same image as {original.photo.name}")
        else:
            kept.append(finding)


def _cosine(one: Finding, other: Finding) -> float | None:
    a, b = (f.face.embedding if f.face is not None else None for f in (one, other))
    if a is None or b is None:
        return None
    return float(cosine_similarity(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0, 0])


def judge_people(
    findings: Sequence[Finding],
    settings: DatasetSettings,
    reference: Tensor | None,
    who: str,
    second: SecondRecogniser | None = None,
) -> None:
    """Mark photos of somebody else: unlike the reference, or unlike the photo that is most like all others.

    With a second judge a photo must show the person to both. Raises LikenessError when half of the photos or more are
    strangers to the rest, because then nobody can tell who is meant; not when unfit photos are kept.
    """
    seen = [f for f in findings if f.face is not None and f.face.embedding is not None and not f.problems]
    if not seen or (reference is None and len(seen) < 2):
        return
    rows = torch.stack([torch.from_numpy(f.face.embedding).float() for f in seen])  # type: ignore[union-attr]
    own, whom = second.reference if second else None, f"'{who}'"
    if reference is None:
        table = cosine_similarity(rows, rows)
        middle, whom = int(table.sum(1).argmax()), "the others"
        alike, own = table[middle], seen[middle].second
    else:
        alike = cosine_similarity(rows, reference[None])[:, 0]
    judges = [seen[0].face.recogniser if seen[0].face else None, second.recogniser.name if second else None]
    strangers = []
    for finding, cosine in zip(seen, alike.tolist(), strict=True):
        finding.cosine = cosine
        if finding.second is not None and own is not None:
            finding.second_cosine = float(cosine_similarity(finding.second[None], own[None])[0, 0])
        said = list(zip(judges, (finding.cosine, finding.second_cosine), strict=True))
        doubts = [(name, value) for name, value in said if value is not None and value < _least(name, settings)]
        if doubts:
            strangers.append(finding)
            words = ", ".join(f"cosine {value:.2f}" + (f" by {name}" if second else "") for name, value in doubts)
            finding.problems.append(f"its face does not look like {whom} ({words})")
    if reference is None and 2 * len(strangers) >= len(seen) and settings.unfit is not Unfit.KEEP:
        rest = [f.photo.name for f in seen if f not in strangers]
        raise LikenessError(
            f"The photos show different people: {', '.join(f.photo.name for f in strangers)} beside {', '.join(rest)}. "
            "Keep the photos of one person, or connect the identity of the one you mean."
        )


def _least(recogniser: str | None, settings: DatasetSettings) -> float:
    """The cosine below which a face is somebody else's to this recogniser."""
    return on_scale_of(recogniser, settings.outlier_cosine)


# --- cropping


@dataclass(frozen=True)
class Frame:
    """A part of a photo, in its pixels, and the size it is brought to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]  # (height, width)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the result for one of the photo: (down, across)."""
        return self.size[0] / self.height, self.size[1] / self.width

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) or mask (H, W), uint8, at the frame's size, with anti-aliasing."""
        from PIL import Image

        part = np.ascontiguousarray(picture[self.top : self.top + self.height, self.left : self.left + self.width])
        how = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(part).resize((self.size[1], self.size[0]), how))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the photo, x before y, pixel centres whole, in pixels of the result."""
        down, across = self.scale
        moved = (points + 0.5 - np.array([self.left, self.top])) * np.array([across, down]) - 0.5
        return moved.astype(np.float32)


def frame_of(size: tuple[int, int], face: Face | None, settings: DatasetSettings) -> Frame:
    """The part of a photo of `size` (H, W) to train on; always inside the photo."""
    height, width = size
    centre = (height / 2, width / 2)
    if face is not None:
        x1, y1, x2, y2 = (float(value) for value in face.box)
        centre = ((y1 + y2) / 2, (x1 + x2) / 2)
    target = settings.resolution, settings.resolution
    if settings.framing is Framing.WHOLE:
        target = _proportional(size, settings.resolution)
    wanted = min(height / target[0], width / target[1])  # photo's pixels for one of the target
    if settings.framing is Framing.HEAD and face is not None:
        side = max(face.sides)
        wanted = min(wanted, max(3 * side, 8) / settings.resolution)
        centre = centre[0] + side / 4, centre[1]  # shoulders below
    rows, columns = (min(round(wanted * t), limit) for t, limit in zip(target, size, strict=True))
    rows, columns = max(1, rows), max(1, columns)
    top = int(np.clip(round(centre[0] - rows / 2), 0, height - rows))
    left = int(np.clip(round(centre[1] - columns / 2), 0, width - columns))
    return Frame(top, left, rows, columns, target)


def _proportional(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """(height, width) of about resolution² pixels in the photo's proportions, at most 1:2, on the network's grid."""
    grid = 64 if resolution % 64 == 0 else 8
    aspect = float(np.clip(size[1] / size[0], 0.5, 2.0)) ** 0.5
    height, width = (max(grid, round(side / grid) * grid) for side in (resolution / aspect, resolution * aspect))
    return height, width


# --- masks


def mask_of(
    finding: Finding, kind: DatasetKind, parser: FaceParser | None = None, analysed: bool = True
) -> np.ndarray | None:
    """The face mask of a whole photo, (H, W) uint8: the user's own, else the parser's, else an ellipse.

    Of the meant face for a person, of all faces for a style, which is none of theirs. All 0 where there is no face,
    None where nobody has looked for one.
    """
    if (own := finding.photo.mask) is not None:
        return own
    if finding.face is None and not analysed:
        return None
    mask = np.zeros(finding.size, np.uint8)
    others = finding.others if kind is DatasetKind.STYLE else []
    for face in [finding.face, *others]:
        if face is not None:
            mask |= _mask_of_face(finding, face, parser)
    return mask


def _mask_of_face(finding: Finding, face: Face, parser: FaceParser | None) -> np.ndarray:
    if parser is not None and face.keypoints is not None:
        parsed = part_mask(parse_face(parser, finding.photo.pixels, face.keypoints), FACE_PARTS)
        if parsed.any():
            return parsed.astype(np.uint8) * 255
        finding.remarks.append("the face parser found no face; its mask is an ellipse")
    return ellipse_mask(finding.size, face)


# --- all of it


def build_dataset(
    photos: Sequence[Photo],
    settings: DatasetSettings,
    analysis: FaceAnalysis | None = None,
    parser: FaceParser | None = None,
    identity: Identity | None = None,
    unreadable: Sequence[str] = (),
    after_each: Callable[[], Any] = lambda: None,
    notes: Sequence[str] = (),
    second: FaceAnalysis | None = None,
) -> Dataset:
    """The dataset of these photos. identity: the person meant, where photos show several people.

    unreadable: sentences about images that could not be opened; notes: about other files. second: an analysis with
    another recogniser, to which, too, every photo of a person must show that person. `after_each` is called twice for
    every photo, for progress and cancelling. Raises LikenessError when nothing is left, when a caption lacks the
    trigger word, when people are mixed beyond telling, or, with `Unfit.STOP`, when any photo is unfit; all photos are
    named together.
    """
    if not photos:
        raise LikenessError("There is no image to train on: connect images, or name a folder with photos.")
    reference = _reference(identity, analysis)
    judge = None
    if second is not None and settings.kind is DatasetKind.PERSON:
        judge = second_judge(second, identity, analysis)
    if settings.kind is DatasetKind.PERSON and analysis is None and not all(photo.has_mask for photo in photos):
        raise LikenessError(
            "The faces of a person's photos cannot be found without a face analysis: connect one, or put a mask "
            "beside every image (anna.mask.png for anna.jpg)."
        )
    findings = []
    for number, photo in enumerate(photos):
        findings.append(look_at(photo, number, settings, analysis, reference, judge.recogniser if judge else None))
        after_each()
    judge_copies(findings)
    if settings.kind is DatasetKind.PERSON:
        judge_people(findings, settings, reference, identity.name if identity else "", judge)
    refused = [f"{f.photo.name}: {'; '.join(f.problems)}" for f in findings if f.problems]
    if settings.unfit is Unfit.STOP and (refused or unreadable):
        raise LikenessError(
            f"{len(refused) + len(unreadable)} of {len(photos) + len(unreadable)} images are unfit for training "
            f"({'. '.join([*refused, *unreadable])}): replace them, or let Portrait Dataset leave them out."
        )
    pictures, left_out, variety = [], [], Variety()
    for finding in findings:
        pixels = finding.photo.pixels  # kept while the photo is worked on
        if finding.problems and settings.unfit is not Unfit.KEEP:
            left_out.append(LeftOut(finding.photo.name, finding.frame.cut(pixels), tuple(finding.problems)))
        else:
            mask = mask_of(finding, settings.kind, parser, analysis is not None)
            pictures.append(_picture(finding, pixels, mask, settings, len(pictures)))
            points = None if finding.face is None else finding.face.keypoints
            variety.add(finding.photo.name, pixels, points, finding.photo.taken)
        after_each()
    if not pictures:
        raise LikenessError(
            f"None of the {len(photos)} images is fit for training ({'. '.join(refused)}): use other photos."
        )
    check_captions([(picture.name, picture.caption) for picture in pictures], settings.trigger)
    advice = variety.advice() if settings.kind is DatasetKind.PERSON else []
    return Dataset(
        kind=settings.kind,
        trigger=settings.trigger,
        class_word=settings.class_word,
        pictures=tuple(pictures),
        left_out=tuple(left_out),
        remarks=(*_about_the_whole(pictures), *advice, *unreadable, *notes),
    )


def _reference(identity: Identity | None, analysis: FaceAnalysis | None) -> Tensor | None:
    """Whom to look for, (D,). LikenessError when this analysis cannot tell."""
    if identity is None or analysis is None:
        return None
    name = analysis.recogniser.name if analysis.recogniser else None
    if name is None or identity.recogniser != name:
        raise LikenessError(
            f"The identity '{identity.name}' was made by the recogniser {identity.recogniser or 'none'} and these "
            f"photos were analysed by {name or 'none'}: make both with the same face analysis."
        )
    return identity.mean_embedding()


def second_judge(second: FaceAnalysis, identity: Identity | None, analysis: FaceAnalysis | None) -> SecondRecogniser:
    """The other recogniser beside that of `analysis`; LikenessError where it is none, or no other."""
    first = analysis.recogniser.name if analysis and analysis.recogniser else None
    if first is None:
        raise LikenessError(
            "A second judge needs a first one: connect to 'face_analysis' an analysis with a recogniser, for "
            "example OpenCV, or disconnect 'second_judge'."
        )
    if second.recogniser is None or second.recogniser.name == first:
        what = "has no recogniser" if second.recogniser is None else f"is {first}, as the first one"
        raise LikenessError(
            f"The face analysis on 'second_judge' {what}: connect another one, for example dlib beside OpenCV, or "
            "disconnect it."
        )
    if identity is None:
        return SecondRecogniser(second.recogniser)
    seen = identity.seen_again(second.recogniser).as_seen_by(second.recogniser.name)
    return SecondRecogniser(second.recogniser, seen.mean_embedding())


def _picture(
    finding: Finding, pixels: np.ndarray, mask: np.ndarray | None, settings: DatasetSettings, number: int
) -> DatasetPicture:
    photo, face, frame = finding.photo, finding.face, finding.frame
    remarks = [*(f"unfit but kept: {problem}" for problem in finding.problems), *finding.remarks]
    remarks += _about_the_crop(finding, frame, settings)
    down, across = frame.scale
    return DatasetPicture(
        name=photo.name,
        pixels=frame.cut(pixels),
        mask=None if mask is None else frame.cut(mask),
        caption=fill_template(photo.caption or settings.template(number), settings.trigger),
        original_size=finding.size,
        crop=(round(frame.top * down), round(frame.left * across)),
        keypoints=None if face is None or face.keypoints is None else frame.points(face.keypoints),
        remarks=tuple(remarks),
        repeats=photo.repeats,
        is_captioned=photo.caption is not None,
    )


def _about_the_crop(finding: Finding, frame: Frame, settings: DatasetSettings) -> list[str]:
    remarks = [f"shown {finding.photo.repeats} times as often as others"] if finding.photo.repeats > 1 else []
    if (enlarged := max(frame.scale)) > ENLARGED:
        remarks.append(f"enlarged {enlarged:.1f} times: a larger photo shows more detail")
    if finding.face is None:
        return remarks
    side = max(finding.face.sides)
    share = side * frame.scale[0] / frame.size[0]
    if settings.kind is DatasetKind.PERSON and share < SMALL_SHARE:
        remarks.append(f"the face fills only {share:.0%} of its height: '{Framing.HEAD.value}' crops closer")
    bystanders = sum(max(face.sides) >= BYSTANDER * side and _is_inside(face, frame) for face in finding.others)
    if bystanders and settings.kind is DatasetKind.PERSON:
        people = "another person is" if bystanders == 1 else f"{bystanders} other people are"
        remarks.append(f"{people} in the image: the method may learn them too")
    if finding.cosine is not None:
        other = f", {finding.second_cosine:.2f} by the second judge" if finding.second_cosine is not None else ""
        remarks.append(f"cosine {finding.cosine:.2f}{other}")
    return remarks


def _is_inside(face: Face, frame: Frame) -> bool:
    x, y = (face.box[:2] + face.box[2:]) / 2
    return bool(frame.left <= x < frame.left + frame.width and frame.top <= y < frame.top + frame.height)


def _about_the_whole(pictures: Sequence[DatasetPicture]) -> list[str]:
    if len(pictures) > 1:
        return []
    return ["There is one image only: training will repeat its pose and background. Four to ten are better."]


def fingerprint(
    photos: Sequence[Photo],
    settings: DatasetSettings,
    analysis: FaceAnalysis | None = None,
    parser: FaceParser | None = None,
    identity: Identity | None = None,
    second: FaceAnalysis | None = None,
) -> str:
    """What a dataset was made of and how, in 32 letters: the same for the same photos and settings."""
    digest = hashlib.sha256()
    names = analysis.name if analysis else None, parser.name if parser else None
    digest.update(repr((settings, names, SLOT)).encode())
    if second is not None:
        digest.update(second.name.encode())
    if identity is not None and identity.has_embeddings:
        digest.update(identity.mean_embedding().numpy().tobytes())
    for photo in photos:
        pixels, mask = photo.pixels, photo.mask
        digest.update(repr((photo.name, photo.caption, pixels.shape)).encode())
        digest.update(np.ascontiguousarray(pixels).data)
        if mask is not None:
            digest.update(np.ascontiguousarray(mask).data)
        if photo.repeats > 1:
            digest.update(repr(photo.repeats).encode())
    return digest.hexdigest()[:32]
