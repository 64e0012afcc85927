"""Photos of many people, as adapters are trained on: a folder of faces in, one record for each photo that is fit.

    faces/
      anna/  1.jpg  1.txt  2.jpg       a folder is a person
      ben.jpg  ben.txt                 a photo beside them is a person of its own

Captions lie beside the photos (`1.txt`), masks of a person's figure too (`1.mask.png`). A photo that cannot be used is
left out and named with the reason; where that happens to more than a fifth of them, something else is wrong, and the
training does not begin. Pixels are read again whenever they are asked for, so that the number of photos is not limited
by memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import LikenessError
from ...faces import Face, FaceAnalysis
from ...faces.align import arcface_crop, ffhq_crop, head_crop
from ...faces.people import PeopleInPhoto
from ...faces.photo_list import list_photos
from .dataset import DatasetKind, DatasetSettings, Finding, Frame, Framing, Unfit, judge_people, look_at
from .examples import Example
from .photo_files import Photo, read_folder

MOST_FAILING = 0.2  # of all photos; more of them are a mistake in the folder, not in the photos
LISTED = 20  # failing photos in a message
BYSTANDER = 0.25  # of the face's side, from which somebody else in the image counts
Segment = Callable[[np.ndarray], PeopleInPhoto]
_NOBODY = "subject"  # captions of these photos name nobody
_REPEATS = re.compile(r"\d{1,9}_.+")


class FramedPhoto(Example):
    """A photo cropped to a frame, read from its file whenever its pixels are asked for."""

    def __init__(self, photo: Photo, frame: Frame, original_size: tuple[int, int], caption: str) -> None:
        down, across = frame.scale
        values = {
            "photo": photo,
            "frame": frame,
            "caption": caption,
            "original_size": original_size,
            "crop": (round(frame.top * down), round(frame.left * across)),
            "name": photo.name,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    photo: Photo
    frame: Frame

    @property
    def pixels(self) -> Tensor:  # type: ignore[override]
        """(3, height, width), -1..1"""
        cut = self.frame.cut(self.photo.pixels)
        return torch.from_numpy(cut).permute(2, 0, 1).float().div(127.5).sub(1).contiguous()

    @property
    def face_mask(self) -> Tensor | None:  # type: ignore[override]
        """(1, height, width), 0..1: the mask beside the photo."""
        mask = self.photo.mask
        return None if mask is None else torch.from_numpy(self.frame.cut(mask))[None].float() / 255

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, without reading the file."""
        return self.frame.size


@dataclass(frozen=True, eq=False)
class PersonPhoto:
    """One photo of one person. digest: of the pixels and masks. companions: the others in it, each as a photo of their
    own with the mask of their own figure."""

    person: str
    example: FramedPhoto
    face: Face
    digest: str
    companions: tuple[PersonPhoto, ...] = ()

    @property
    def name(self) -> str:
        """As messages call it."""
        return self.example.name

    @property
    def embedding(self) -> Tensor | None:
        """(D,), as the recogniser returns it."""
        return None if self.face.embedding is None else torch.from_numpy(self.face.embedding).float()

    @property
    def keypoints(self) -> Tensor:
        """(5, 2), in pixels of the example."""
        assert self.face.keypoints is not None
        return torch.from_numpy(self.example.frame.points(self.face.keypoints)).float()

    @property
    def aligned(self) -> Tensor:
        """The face on ArcFace's template: (1, 224, 224, 3), 0..1."""
        return self._shown(arcface_crop(self.example.photo.pixels, self.face.keypoints, 224))  # type: ignore[arg-type]

    @property
    def portrait(self) -> Tensor:
        """The face on FFHQ's template: (1, 512, 512, 3), 0..1."""
        return self._shown(ffhq_crop(self.example.photo.pixels, self.face.keypoints))  # type: ignore[arg-type]

    @property
    def head(self) -> Tensor:
        """The upright square of twice the face's box: (1, 512, 512, 3), 0..1."""
        return self._shown(head_crop(self.example.photo.pixels, self.face.box))

    @property
    def whole(self) -> Tensor:
        """What is trained on: (1, H, W, 3), 0..1."""
        return (self.example.pixels.permute(1, 2, 0) / 2 + 0.5)[None]

    @staticmethod
    def _shown(crop: np.ndarray) -> Tensor:
        return torch.from_numpy(crop)[None].float() / 255


@dataclass(frozen=True, eq=False)
class People:
    """All photos that are fit, and sentences about those that are not. recogniser: whose embeddings they have."""

    photos: tuple[PersonPhoto, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recogniser: str | None = None

    def __len__(self) -> int:
        return len(self.photos)

    @cached_property
    def of_person(self) -> dict[str, list[PersonPhoto]]:
        """A person's photos."""
        found: dict[str, list[PersonPhoto]] = {}
        for photo in self.photos:
            found.setdefault(photo.person, []).append(photo)
        return found

    def digest(self) -> str:
        """Tells collections apart by what a training sees of them."""
        digest = hashlib.sha256(repr(self.recogniser).encode())
        for photo in self.photos:
            digest.update(repr((photo.person, photo.digest, photo.example.caption, photo.example.frame)).encode())
            if photo.face.embedding is not None:
                digest.update(photo.face.embedding.tobytes())
        return digest.hexdigest()

    def report(self) -> str:
        """What was found, line by line."""
        several = sum(len(photos) > 1 for photos in self.of_person.values())
        uncaptioned = sum(not photo.example.caption for photo in self.photos)
        lines = [f"{len(self)} images of {len(self.of_person)} people, {several} of them in several images"]
        if uncaptioned:
            lines.append(f"{uncaptioned} images have no caption: they are trained without a text")
        lines += self.notes
        return "\n".join([*lines, *(f"left out: {why}" for why in self.left_out)])


def read_people(
    folder: Path,
    analysis: FaceAnalysis,
    resolution: int,
    framing: Framing = Framing.HEAD,
    embed: bool = True,
    after_each: Callable[[], Any] = lambda: None,
    segment: Segment | None = None,
    together: int = 1,
) -> People:
    """The people of a folder, every photo looked at once. embed: whether a recogniser's embedding is needed. segment:
    finds the figures in photos without a mask beside them. together: how many people a photo may show.

    Raises LikenessError when the folder holds no photos, when there is no recogniser, and, listing them, when more than
    a fifth of the photos cannot be used.
    """
    if embed and analysis.recogniser is None:
        raise LikenessError(
            f"The face analysis {analysis.name} has no recogniser, and this training needs embeddings: write another "
            "one, such as buffalo_l, into data.faces."
        )
    settings = DatasetSettings(
        DatasetKind.PERSON, _NOBODY, resolution=resolution, framing=framing, unfit=Unfit.LEAVE_OUT
    )
    photos, left_out, notes = [], [], []
    for person, found in _by_person(folder, notes, left_out):
        findings = []
        for number, photo in enumerate(found):
            findings.append(look_at(photo, number, settings, analysis, None))
            after_each()
        _judge(findings, settings, embed, together)
        for finding in findings:
            made = None if finding.problems else _photo(person, finding, segment)
            if made is None:
                left_out.append(f"{_named(person, finding.photo)}: {'; '.join(finding.problems)}")
            else:
                photos.append(made)
    if not photos and not left_out:
        raise LikenessError(f"The folder '{folder}' holds no images: put a folder with photos for each person into it.")
    _require_most(photos, left_out)
    recogniser = analysis.recogniser.name if analysis.recogniser else None
    return People(tuple(photos), tuple(left_out), tuple(notes), recogniser)


def only_fit(people: People, why_not: Callable[[PersonPhoto], str]) -> People:
    """The people without the photos that a method cannot use. why_not: '' for one that it can.

    Raises LikenessError when more than a fifth of all photos is left out then.
    """
    found = {photo: why_not(photo) for photo in people.photos}
    photos = tuple(photo for photo, why in found.items() if not why)
    left_out = (*people.left_out, *(f"{photo.name}: {why}" for photo, why in found.items() if why))
    _require_most(photos, left_out)
    return replace(people, photos=photos, left_out=left_out)


def _require_most(photos: Sequence[PersonPhoto], left_out: Sequence[str]) -> None:
    total = len(photos) + len(left_out)
    if photos and len(left_out) <= MOST_FAILING * total:
        return
    more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
    raise LikenessError(
        f"{len(left_out)} of {total} images cannot be trained on, more than a fifth: correct or remove them. "
        f"{'. '.join(left_out[:LISTED])}{more}."
    )


def _by_person(folder: Path, notes: list[str], left_out: list[str]) -> Iterator[tuple[str, Sequence[Photo]]]:
    """People with their photos; what cannot be read goes into `left_out`."""
    if not folder.is_dir():
        raise LikenessError(f"There is no folder '{folder}': write where the people's photos are into data.people.")
    top = list_photos(folder)
    if top.photos:
        found = read_folder(folder)
        own = [photo for photo in found.photos if "/" not in photo.name]
        left_out += found.unreadable
        notes += found.notes
        yield from ((Path(photo.name).stem, [photo]) for photo in own)
    for path in sorted(top.folders):
        if top.photos and _REPEATS.fullmatch(path.name):
            continue  # read above, as kohya's folders are
        inside = list_photos(path)
        if not inside.photos:
            continue
        found = read_folder(path)
        left_out += [f"{path.name}/{sentence}" for sentence in found.unreadable]
        notes += [f"{path.name}/{note}" for note in found.notes]
        yield path.name, found.photos


def _judge(findings: Sequence[Finding], settings: DatasetSettings, embed: bool, together: int) -> None:
    """What is wrong with photos that the search for one face did not say."""
    for finding in findings:
        face = finding.face
        if finding.problems or face is None:
            continue
        seen = [face, *_companions(finding)]
        if len(seen) > together:
            several = "several people" if together == 1 else f"{len(seen)} people, and {together} are supported"
            finding.problems.append(f"it shows {several}")
        elif any(one.keypoints is None for one in seen):
            finding.problems.append("its face has no keypoints")
        elif embed and any(one.embedding is None for one in seen):
            finding.problems.append("its face has no embedding")
    try:
        judge_people(findings, settings, None, "")
    except LikenessError:
        for finding in findings:
            if not finding.problems:
                finding.problems.append("the photos of its folder show different people")


def _companions(finding: Finding) -> list[Face]:
    """The other faces of a photo that count."""
    assert finding.face is not None
    side = max(finding.face.sides)
    return [other for other in finding.others if max(other.sides) >= BYSTANDER * side]


def _photo(person: str, finding: Finding, segment: Segment | None) -> PersonPhoto | None:
    """The photo as a training sees it; None, with the reason among its problems, where a figure in it is not found."""
    photo, others = finding.photo, _companions(finding)
    pixels, face = photo.pixels, finding.face
    assert face is not None
    found = segment(pixels) if segment is not None and (others or not photo.has_mask) else None
    figures = [None if found is None else found.of_face(one.box) for one in (face, *others)]
    if others and any(figure is None for figure in figures):
        finding.problems.append("it shows several people, whose figures only data.segmenter can tell apart")
        return None
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)

    def one(name: str, face: Face, figure: np.ndarray | None, companions: tuple[PersonPhoto, ...] = ()) -> PersonPhoto:
        own = _with_figure(photo, figure)
        mask = own.mask
        if mask is not None:
            digest.update(np.ascontiguousarray(mask).data)
        example = FramedPhoto(own, finding.frame, finding.size, photo.caption or "")
        return PersonPhoto(name, example, face, digest.hexdigest(), companions)

    also = zip(others, figures[1:], strict=True)
    companions = tuple(one(f"{person} ({n})", other, figure) for n, (other, figure) in enumerate(also, 2))
    return one(person, face, figures[0], companions)


def _with_figure(photo: Photo, figure: np.ndarray | None) -> Photo:
    """The photo with this mask (H, W), which is kept as bits; as it is where nobody was found."""
    if figure is None:
        return photo
    bits, shape = np.packbits(figure), figure.shape

    def mask() -> np.ndarray:
        return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape) * np.uint8(255)

    return Photo(photo.name, lambda: photo.pixels, photo.caption, mask)


def _named(person: str, photo: Photo) -> str:
    return photo.name if Path(photo.name).stem == person else f"{person}/{photo.name}"
