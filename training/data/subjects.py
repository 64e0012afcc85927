"""Images of several people with the masks of each, as FastComposer's training wants them.

    party.jpg   party.txt   party.1.mask.png   party.2.mask.png

The caption marks the noun of everybody who has a mask, "a man img and a woman img": mask k is white on the person of
the k-th mark. The layout of FastComposer's own data set is read as well: `image_ids_train.txt`, and below the first
five digits of an id its .jpg, .npy (who stands where) and .json (caption, segments).

Only names and captions are kept in memory; images are read when they are trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import LikenessError
from ...faces.photo_list import MASK, list_photos, nothing_in
from ...faces.photos import read_mask_file, read_photo_file
from .examples import Example
from .photo_files import CAPTION_SUFFIXES

OFFICIAL_INDEX = "image_ids_train.txt"
PERSON = "person"  # COCO's label of the segments that are trained on
KEPT = 64  # images; a set that is no larger stays in memory


@dataclass(frozen=True, eq=False)
class Subject:
    """One person of an image. image: (1, h, w, 3) in 0..1, the box around that person, and mask: (1, h, w), true on
    the person, both at the photo's own size. shown: (H, W), 0 or 1, where the person is in what is trained on."""

    image: Tensor
    mask: Tensor
    shown: Tensor


@dataclass(frozen=True, eq=False)
class SubjectExample(Example):
    """An image and its people, in the order of their marks in the caption."""

    subjects: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """One image before it is read. masks: each person's, at the photo's size."""

    name: str
    file: Path
    caption: str
    masks: Callable[[], list[np.ndarray]]
    people: int
    size: int  # bytes of the files


class SubjectPhotos(Sequence[SubjectExample]):
    """The images of a folder, read when they are asked for."""

    def __init__(self, entries: Sequence[_Entry], marker: str, resolution: int) -> None:
        self.marker, self.resolution = marker, resolution
        self._entries = entries
        self._read = lru_cache(KEPT)(self._example)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._read(range(len(self))[number])

    @property
    def stay(self) -> bool:
        """Whether an image that is asked for again is the same object."""
        return len(self) <= KEPT

    def report(self) -> str:
        """What was found."""
        people = [entry.people for entry in self._entries]
        return f"{len(people)} images with {sum(people)} people, up to {max(people)} in one."

    def digest(self) -> str:
        """Tells sets apart by names, captions and sizes of files, and by what is made of them."""
        digest = hashlib.sha256(repr((self.marker, self.resolution)).encode())
        for entry in self._entries:
            digest.update(repr((entry.name, entry.caption, entry.people, entry.size)).encode())
        return digest.hexdigest()

    def _example(self, number: int) -> SubjectExample:
        entry = self._entries[number]
        photo = read_photo_file(entry.file).rgb
        masks = entry.masks()
        for mask in masks:
            if mask.shape != photo.shape[:2]:
                raise LikenessError(
                    f"A mask of {entry.name!r} is {mask.shape[1]} x {mask.shape[0]} and the image {photo.shape[1]} x "
                    f"{photo.shape[0]}: make them the same size."
                )
        image = torch.from_numpy(np.ascontiguousarray(photo)).float() / 255
        flags = [torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks]
        pixels = _framed(image.movedim(-1, 0), self.resolution, "bilinear")
        subjects = []
        for person, mask in enumerate(flags, 1):
            if not bool(mask.any()):
                raise LikenessError(f"Mask {person} of {entry.name!r} is black: paint the person white, or delete it.")
            subjects.append(_subject(image, mask, _framed(mask.float()[None], self.resolution, "nearest")[0]))
        return SubjectExample(
            pixels.clamp(0, 1) * 2 - 1, entry.caption, None, photo.shape[:2], (0, 0), entry.name, tuple(subjects)
        )


def _subject(image: Tensor, mask: Tensor, shown: Tensor) -> Subject:
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return Subject(image[box].unsqueeze(0), mask[box].unsqueeze(0), shown)


def _framed(image: Tensor, side: int, mode: str) -> Tensor:
    """(channels, h, w) as a square: a wide image loses its sides, a tall one gets black bars.

    Masks are resized by the nearest pixel throughout, so that nobody's edge is somebody else's.
    """
    height, width = image.shape[1:]
    smooth: dict[str, Any] = {"align_corners": False, "antialias": True} if mode == "bilinear" else {}
    if width >= height:
        size = side, max(round(width * side / height), side)
    else:
        size = side, max(round(width * side / height), 1)
    resized = F.interpolate(image[None], size, mode=mode, **smooth)[0]
    left = (size[1] - side) // 2
    if left >= 0:
        return resized[..., left : left + side].contiguous()
    return F.pad(resized, (-left, side - size[1] + left))


# --- reading folders


def read_subjects(folder: Path, marker: str, resolution: int) -> SubjectPhotos:
    """The images of a folder, in our layout or in FastComposer's own.

    Raises LikenessError in one sentence for a folder without images, and for captions that do not go with the masks.
    """
    if not folder.is_dir():
        raise LikenessError(f"There is no folder '{folder}': write where the images are into the configuration.")
    official = folder / OFFICIAL_INDEX
    entries = _official(folder, official, marker) if official.is_file() else _beside(folder, marker)
    return SubjectPhotos(entries, marker, resolution)


def count_marks(caption: str, marker: str) -> int:
    """How often a caption has the marker as a word of its own."""
    from ...adapters.trigger_words import pattern_of

    return len(pattern_of([marker]).findall(caption))


def _beside(folder: Path, marker: str) -> list[_Entry]:
    found = list_photos(folder)
    if not found.photos:
        raise nothing_in(folder, found)
    masks: dict[str, list[Path]] = {}
    for path in found.masks:
        numbered = re.fullmatch(rf"(.+)\.(\d+){re.escape(MASK)}", path.stem, re.IGNORECASE)
        if numbered is None:
            raise LikenessError(
                f"The mask '{path.name}' has no number: call it 'photo.1{MASK}.png' for the first mark."
            )
        masks.setdefault(numbered[1], []).append(path)
    return [_entry(path, sorted(masks.get(path.stem, []), key=_number), marker) for path in found.photos]


def _number(mask: Path) -> int:
    return int(mask.stem.split(".")[-2])


def _entry(path: Path, masks: list[Path], marker: str) -> _Entry:
    text = next((path.with_suffix(s) for s in CAPTION_SUFFIXES if path.with_suffix(s).is_file()), None)
    if text is None:
        raise LikenessError(
            f"'{path.name}' has no caption: write what it shows into '{path.stem}.txt', with {marker!r} behind the "
            "word for each person."
        )
    caption = " ".join(text.read_text(encoding="utf-8").split())
    if (marks := count_marks(caption, marker)) != len(masks):
        raise LikenessError(
            f"The caption of '{path.name}' has the marker {marker!r} {marks} times, and there are {len(masks)} masks: "
            "make one mask for each mark."
        )
    size = sum(file.stat().st_size for file in (path, *masks))
    return _Entry(path.name, path, caption, lambda: [read_mask_file(file) > 127 for file in masks], len(masks), size)


def _official(folder: Path, index: Path, marker: str) -> list[_Entry]:
    """FastComposer's own: markers are put behind the noun phrases of the people, from the last to the first."""
    entries = []
    for name in index.read_text(encoding="utf-8").split():
        file = folder / name[:5] / f"{name}.jpg"
        try:
            about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            segments = sorted((s for s in about["segments"] if s["coco_label"] == PERSON), key=lambda s: s["end"])
            caption, ids = str(about["caption"]), [int(segment["id"]) for segment in segments]
            for segment in reversed(segments):
                caption = f"{caption[: segment['end']]} {marker}{caption[segment['end'] :]}"
            size = file.stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LikenessError(
                f"The image {name!r} of '{index.name}' cannot be read ({type(error).__name__}): unpack the data set "
                "again, or take the line out."
            ) from error
        entries.append(_Entry(name, file, caption, _segments(file.with_suffix(".npy"), ids), len(ids), size))
    if not entries:
        raise LikenessError(f"'{index.name}' names no image: unpack the data set again.")
    return entries


def _segments(file: Path, ids: Sequence[int]) -> Callable[[], list[np.ndarray]]:
    def read() -> list[np.ndarray]:
        try:
            labels = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LikenessError(f"'{file.name}' cannot be read ({error}): unpack the data set again.") from error
        return [labels == number for number in ids]

    return read
