"""Which files of a folder are photos, and a sentence about everything image-like that is not used.

    found = list_photos(folder)
    found.photos, found.not_used

Nothing is opened but files whose names do not say what they are, of which a few bytes are looked at.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import LikenessError
from .photos import PICTURE_SUFFIXES

MASK = ".mask"  # ends the stem of a mask: anna.mask.png
_SHOWN = 5  # names in a sentence
_SAVE_AS = "save them as JPEG or PNG"
_RAW = "3fr arw cr2 cr3 crw dcr dng erf kdc mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_DRAWN = "afdesign afphoto ai clip eps kra ora procreate psb psd svg svgz xcf"
_FILMS = "3gp avi m4v mkv mov mp4 mpeg mpg mts webm wmv"
_OTHERS = "avifs bpg cur dds exr hdr heics icns ico j2c j2k jp2 jpf jpx jxl jxr pcx qoi sgi tga wdp wmf xbm"
_OTHERS += " pbm pfm pgm pnm ppm"
_UNREAD = {
    **dict.fromkeys(_RAW.split(), f"raw files of cameras are not read: {_SAVE_AS}"),
    **dict.fromkeys(_DRAWN.split(), f"files of drawing programs are not read: {_SAVE_AS}"),
    **dict.fromkeys(_FILMS.split(), "videos are not read: save frames of them as JPEG or PNG"),
    **dict.fromkeys(_OTHERS.split(), f"images of this format are not read: {_SAVE_AS}"),
}
_TEXTS = "caption csv html json jsonl log md npz part safetensors toml txt yaml yml"  # never opened
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")  # of JPEG, PNG, GIF, TIFF


@dataclass(frozen=True)
class PhotoList:
    """What a folder holds. All are sorted by name.

    not_used: sentences about image-like files, without the folder's name. masks: images called `<name>.mask`.
    others: all other files. folders: those in it.
    """

    photos: tuple[Path, ...]
    not_used: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()


def list_photos(folder: Path, deep: bool = False) -> PhotoList:
    """The photos directly in a folder, or, `deep`, in the folders below it too; hidden files do not count.

    Raises LikenessError when the folder cannot be opened.
    """
    photos, masks, others, folders = [], [], [], []
    not_used: dict[str, list[str]] = {}
    for path in _walk(folder) if deep else _entries(folder):
        if path.is_dir():
            folders.append(path)
            if not (deep and path.is_symlink()):
                continue
        why_not = (
            "links to folders are not followed: put the photos themselves here" if path.is_dir() else _why_not(path)
        )
        if why_not is None:
            others.append(path)
        elif why_not:
            not_used.setdefault(why_not, []).append(path.relative_to(folder).as_posix())
        elif path.stem.lower().endswith(MASK):
            masks.append(path)
        else:
            photos.append(path)
    sentences = tuple(f"{names_of(names)}: {why}" for why, names in not_used.items())
    return PhotoList(tuple(photos), sentences, tuple(masks), tuple(others), tuple(folders))


def photos_among(paths: Iterable[Path]) -> PhotoList:
    """The photos that are named one by one, and those directly in the folders that are named."""
    photos, not_used = [], []
    for path in paths:
        if not path.is_dir():
            photos.append(path)
            continue
        found = list_photos(path)
        if not found.photos:
            raise nothing_in(path, found)
        photos += found.photos
        not_used += [f"{shown(path.name)}: {sentence}" for sentence in found.not_used]
    return PhotoList(tuple(photos), tuple(not_used))


def nothing_in(folder: Path, found: PhotoList) -> LikenessError:
    """The error for a folder without a photo that can be used."""
    endings = ", ".join(sorted(suffix[1:] for suffix in PICTURE_SUFFIXES))
    more = f" Not used are {'; '.join(found.not_used)}." if found.not_used else ""
    holding = [path for path in found.folders if any(holds_photos(path))]
    if holding:
        more += f" There are images in {names_of([path.name for path in holding])}: name that folder."
    return LikenessError(f"The folder {shown(folder.name)!r} holds no images ({endings}): put photos into it.{more}")


def holds_photos(folder: Path) -> Iterator[Path]:
    """The photos directly in a folder; none where it cannot be opened."""
    try:
        yield from list_photos(folder).photos
    except LikenessError:
        return


def names_of(names: Sequence[str]) -> str:
    """A few of them in words."""
    listed = ", ".join(shown(name) for name in names[:_SHOWN])
    return listed + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def shown(name: str) -> str:
    """A file's name as every log and page can hold it: names may have bytes that are no text."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", name.encode("utf-8", "backslashreplace").decode())


# --- one file


def _why_not(path: Path) -> str | None:
    """Why a file is not used as a photo: "" where it is, None where it is nothing like an image."""
    suffix = path.suffix.lower()
    is_picture = suffix in PICTURE_SUFFIXES
    if not is_picture and suffix[1:] in _TEXTS.split():
        return None
    try:
        if not path.is_file():
            return "these are not files, or are broken links: put the photos themselves here" if is_picture else None
        if is_picture:
            return _unsupported(suffix)
        if suffix[1:] in _UNREAD:
            return _UNREAD[suffix[1:]]
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return "these may not be read: change their permissions" if is_picture else None
    if start.startswith(_STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP") or start[4:8] == b"ftyp":
        return "their names have no image extension: name them .jpg, .png or the like"
    return None


@cache
def _unsupported(suffix: str) -> str:
    """What is needed to read images of this suffix, "" where nothing is."""
    if suffix in (".heic", ".heif", ".hif") and find_spec("pillow_heif") is None:
        return "HEIC images need the package pillow-heif: install it (pip install pillow-heif), or save them as JPEG"
    if suffix == ".avif" and not _reads_avif():
        return "AVIF images need Pillow 11.3 or newer: update it (pip install -U pillow), or save them as JPEG"
    return ""


def _reads_avif() -> bool:
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older versions do not know the word
        return bool(features.check("avif"))


# --- a folder


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LikenessError(
            f"The folder {str(folder)!r} cannot be opened ({error.strerror or error}): check its name and permissions."
        ) from error


def _walk(folder: Path) -> list[Path]:
    """All entries below a folder; links to folders are not followed, folders that cannot be opened are skipped."""
    found = _entries(folder)
    below = [path for path in found if path.is_dir() and not path.is_symlink()]
    while below:
        try:
            entries = _entries(below.pop())
        except LikenessError:
            continue
        found += entries
        below += [path for path in entries if path.is_dir() and not path.is_symlink()]
    return sorted(found)
