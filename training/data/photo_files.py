"""Photos for training as they lie in a folder: images of any form, with captions and masks beside them.

    anna.jpg   anna.txt   anna.mask.png

A caption says what its image shows, `{}` standing for the trigger word; `anna.caption` will do as well, and
`anna.jpg.txt` where there is an `anna.png` too. A mask is white on the face, or opaque on the face and transparent
elsewhere. Folders called `10_anna`, as kohya's trainers have them, are read with their repeats. Whatever else lies
there and looks like an image or a caption is named, with the reason why it is not used.
"""

from __future__ import annotations

import math
import re
import unicodedata
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import LikenessError
from ...faces.photo_list import MASK, PhotoList, holds_photos, list_photos, names_of, nothing_in, shown
from ...faces.photos import PICTURE_SUFFIXES, PhotoFile, read_mask_file, read_photo_file

CAPTION_SUFFIX, MASK_SUFFIX = ".txt", f"{MASK}.png"  # as datasets are written
CAPTION_SUFFIXES = (CAPTION_SUFFIX, ".caption")  # the first that is there counts
LONGEST_CAPTION = 4000  # characters
MOST_REPEATS = 1000
_REPEATS = re.compile(r"(\d{1,9})_(.+)")  # kohya's folders
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Pixels = Callable[[], np.ndarray]


class Photo:
    """One photo before it is cropped.

    Those of a folder are read whenever their pixels are asked for, and kept only while somebody holds them: a hundred
    photos of a camera would fill the memory.
    """

    def __init__(
        self,
        name: str,
        pixels: np.ndarray | Pixels,
        caption: str | None = None,
        mask: np.ndarray | Pixels | None = None,
        remarks: tuple[str, ...] = (),
        repeats: int = 1,
        taken: datetime | None = None,
    ) -> None:
        """name: as messages call it. pixels: (H, W, 3) uint8 RGB. mask: (H, W) uint8, 255 on the face. caption and
        mask are None where the user gave none. repeats: how often it is shown while others are shown once.
        taken: when, by the camera's clock."""
        self.taken = taken
        self.name, self.caption, self.remarks, self.repeats = name, caption, remarks, repeats
        self._pixels = _kept(pixels)
        self._mask = None if mask is None else _kept(mask)

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self._pixels()

    @property
    def has_mask(self) -> bool:
        """Whether the user gave one."""
        return self._mask is not None

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) uint8, 255 on the face."""
        return None if self._mask is None else self._mask()


def _kept(values: np.ndarray | Pixels) -> Pixels:
    """What reads the values again unless somebody still has them."""
    if isinstance(values, np.ndarray):
        return lambda: values
    last: Callable[[], np.ndarray | None] = lambda: None  # noqa: E731

    def read() -> np.ndarray:
        nonlocal last
        found = last()
        if found is None:
            found = values()
            last = weakref.ref(found)
        return found

    return read


@dataclass(frozen=True, eq=False)
class PhotoFolder:
    """What a folder holds: its photos by name, a sentence for every image that cannot be read, and sentences about
    other files that are not used."""

    photos: list[Photo]
    unreadable: list[str]
    notes: list[str]


def read_folder(folder: Path, captions: bool = True) -> PhotoFolder:
    """The photos of a folder, turned as the camera was held. captions: whether those beside the images are wanted.

    Raises LikenessError when it holds no image. A mask of another size than its image, or a caption that is no
    text, raises too: both are the user's own work.
    """
    top = list_photos(folder)
    parts = [(folder, top, 1), *_repeated(top.folders)]
    shared = math.gcd(*(repeats for _, found, repeats in parts if found.photos))
    if not shared:
        raise nothing_in(folder, top)
    photos: list[Photo] = []
    unreadable: list[str] = []
    notes = list(_about_folders(folder, top))
    for place, found, repeats in parts:
        inside = "" if place is folder else f"{shown(place.name)}/"
        texts, masks = _captions_in(found), _masks_in(found)
        unreadable += [inside + sentence for sentence in found.not_used]
        beside = (*texts.not_used(captions), *masks.not_used(), *_tables_in(found))
        notes += [inside + sentence for sentence in beside]
        for path in found.photos:
            try:
                picture = read_photo_file(path)
            except LikenessError as error:
                unreadable.append(str(error))
                continue
            photos.append(
                _photo(path, inside, picture, texts.of[path] if captions else None, masks.of[path], repeats // shared)
            )
    words = sorted({_words(place) for place, found, _ in parts[1:] if found.photos})
    if words and any(photo.caption is None for photo in photos):
        notes.append(
            f"The words in the names of folders ({names_of(words)}) are not used: captions come from text files and "
            "templates"
        )
    return PhotoFolder(photos, unreadable, notes)


def files_below(folder: Path) -> Iterator[Path]:
    """All files that `read_folder` looks at; none where the folder cannot be opened."""
    try:
        found = list_photos(folder)
        yield from sorted(folder.iterdir())
        for place, _, _ in _repeated(found.folders):
            yield from sorted(place.iterdir())
    except (OSError, LikenessError):
        return


# --- kohya's folders


def _repeated(folders: Sequence[Path]) -> list[tuple[Path, PhotoList, int]]:
    """Those called <repeats>_<words>, what is in them, and the repeats."""
    found = []
    for path in folders:
        match = _REPEATS.fullmatch(path.name)
        if match is None or int(match[1]) < 1:
            continue
        if int(match[1]) > MOST_REPEATS:
            raise LikenessError(
                f"The folder {path.name!r} asks for {match[1]} repeats: write a number up to {MOST_REPEATS}."
            )
        found.append((path, list_photos(path), int(match[1])))
    return found


def _words(folder: Path) -> str:
    match = _REPEATS.fullmatch(folder.name)
    return match[2] if match else ""


def _about_folders(folder: Path, found: PhotoList) -> Iterator[str]:
    read = {path for path, _, _ in _repeated(found.folders)}
    others = [path.name for path in found.folders if path not in read and any(holds_photos(path))]
    if others:
        yield (
            f"The images in {names_of(others)} are not used: put them into {shown(folder.name)} itself, or name the "
            "folder as kohya's are, such as 10_person"
        )


# --- what lies beside an image


class _Beside:
    """Which caption, or which mask, is whose among the images of one folder."""

    def __init__(
        self, photos: Sequence[Path], files: Sequence[Path], calls: Callable[[Path], list[str]], own: str
    ) -> None:
        """calls: what an image's files may be called, best first. own: how one of a single image ends."""
        self._photos, self._files, self._calls, self._own = photos, files, calls, own
        there = {path.name.lower(): path for path in files} | {path.name: path for path in files}
        self.of = {path: self._first(there, calls(path)) for path in photos}

    @staticmethod
    def _first(there: Mapping[str, Path], names: Sequence[str]) -> Path | None:
        return next((found for name in names if (found := there.get(name) or there.get(name.lower()))), None)

    def not_used(self, wanted: bool = True) -> Iterator[str]:
        """Sentences about files that are nobody's, or that several images share."""
        taken = sorted({path for path in self.of.values() if path is not None})
        if not wanted:
            if taken:
                yield f"{names_of([path.name for path in taken])}: this training does not read captions"
            taken = []
        known = {name.lower() for path in self._photos for name in self._calls(path)}
        second = [path.name for path in self._files if path.name.lower() in known and path not in self.of.values()]
        orphans = [path.name for path in self._files if path.name.lower() not in known]
        if second:
            yield f"{names_of(second)}: not used, because another file of the same image comes first"
        if orphans:
            yield f"{names_of(orphans)}: not used, because no image has this name"
        for path in taken:
            sharing = [photo.name for photo in self._photos if self.of[photo] == path]
            if len(sharing) > 1:
                own = names_of([name + self._own for name in sharing])
                yield f"{names_of(sharing)} share {shown(path.name)}: name the files {own} to give each its own"


def _captions_in(found: PhotoList) -> _Beside:
    def calls(photo: Path) -> list[str]:
        return [name + suffix for suffix in CAPTION_SUFFIXES for name in (photo.name, photo.stem)]

    texts = [path for path in found.others if path.suffix.lower() in CAPTION_SUFFIXES]
    return _Beside(found.photos, texts, calls, CAPTION_SUFFIX)


def _masks_in(found: PhotoList) -> _Beside:
    suffixes = [MASK_SUFFIX, *(MASK + suffix for suffix in sorted(PICTURE_SUFFIXES) if MASK + suffix != MASK_SUFFIX)]

    def calls(photo: Path) -> list[str]:
        return [name + suffix for suffix in suffixes for name in (photo.name, photo.stem)]

    return _Beside(found.photos, found.masks, calls, MASK_SUFFIX)


def _tables_in(found: PhotoList) -> Iterator[str]:
    tables = [path.name for path in found.others if path.suffix.lower() in (".json", ".jsonl")]
    if tables:
        yield f"{names_of(tables)}: not used, because captions are read from .txt and .caption files"


def _photo(path: Path, inside: str, picture: PhotoFile, text: Path | None, mask: Path | None, repeats: int) -> Photo:
    """An image that has been read once, with what belongs to it. An error now is better than one after an hour."""
    remarks, size = [], (picture.rgb.shape[0], picture.rgb.shape[1])
    if picture.alpha is not None:
        remarks.append("its transparent parts were put on grey")
    if picture.is_animated:
        remarks.append("only its first frame is used")
    caption = None if text is None else read_caption(text)
    if text is not None and caption is None:
        remarks.append(f"{shown(text.name)} is empty, so that a template is its caption")
    if mask is not None:
        read_mask(mask, size)
    return Photo(
        name=inside + shown(path.name),
        pixels=lambda: read_photo_file(path).rgb,
        caption=caption,
        mask=None if mask is None else partial(read_mask, mask, size),
        remarks=tuple(remarks),
        repeats=repeats,
        taken=picture.taken,
    )


# --- single files


def read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """(H, W, 3) uint8 RGB and whether parts were transparent; see `faces.photos.read_photo_file`."""
    picture = read_photo_file(path)
    return picture.rgb, picture.alpha is not None


def read_caption(path: Path) -> str | None:
    """The text of a caption file on one line; None where there is no file, or an empty one.

    Raises LikenessError for a file that is not text, or not a caption: UTF-8, and UTF-16 that says so at its beginning,
    are read.
    """
    if not path.is_file():
        return None
    name = shown(path.name)
    try:
        with path.open("rb") as file:
            content = file.read(4 * LONGEST_CAPTION + 1)
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) > 4 * LONGEST_CAPTION and error.start > 4 * LONGEST_CAPTION - 4:  # a letter was cut
            raise _too_long(name) from None
        raise LikenessError(f"The caption {name} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise LikenessError(f"The caption {name} cannot be read ({error.strerror or error}): restore it.") from error
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise LikenessError(f"The caption {name} holds bytes that are not text: save it as UTF-8.")
    if len(text) > LONGEST_CAPTION or len(content) > 4 * LONGEST_CAPTION:
        raise _too_long(name)
    return text or None


def _too_long(name: str) -> LikenessError:
    return LikenessError(
        f"The caption {name} has more than {LONGEST_CAPTION} characters: a caption is a sentence or two."
    )


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 255 on the face. LikenessError when it is not `size` (H, W).

    How paint and transparency are read: `faces.photos.read_mask_file`.
    """
    mask = read_mask_file(path)
    if mask.shape != tuple(size):
        raise LikenessError(
            f"The mask {shown(path.name)} has {mask.shape[1]}x{mask.shape[0]} pixels and its image "
            f"{size[1]}x{size[0]}: paint it at the image's size, or delete it."
        )
    return mask
