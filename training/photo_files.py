"""Photos for training as they lie in a folder: pictures of any mode, with captions and masks beside them.

    anna.jpg   anna.txt   anna.mask.png

A caption says what its picture shows, `{}` standing for the trigger word. A mask is white on the face, or opaque on
the face and transparent elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import LikenessError
from ..faces.photos import read_mask_file, read_photo_file

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
CAPTION_SUFFIX, MASK_SUFFIX = ".txt", ".mask.png"
LONGEST_CAPTION = 4000  # characters; a text encoder reads 77 tokens of it


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo before it is cropped. `caption` and `mask` are None where the user gave none."""

    name: str  # as messages call it
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    caption: str | None = None
    mask: np.ndarray | None = None  # (H, W) uint8, 255 on the face
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PhotoFolder:
    """What a folder holds: its photos by name, and a sentence for every picture that cannot be read."""

    photos: list[Photo]
    unreadable: list[str]


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name; masks, hidden and other files are none."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not path.name.lower().endswith(MASK_SUFFIX)
        and not path.name.startswith(".")
        and path.is_file()
    )


def read_folder(folder: Path) -> PhotoFolder:
    """The photos of a folder, turned as the camera was held. Raises LikenessError when it holds no picture.

    A mask of another size than its picture, or a caption that is no text, raises: both are the user's own work.
    """
    files = picture_files(folder)
    if not files:
        endings = ", ".join(sorted(suffix[1:] for suffix in PICTURE_SUFFIXES))
        raise LikenessError(f"The folder '{folder.name}' holds no pictures ({endings}): put photos into it.")
    photos, unreadable = [], []
    for path in files:
        try:
            pixels, was_transparent = read_picture(path)
        except LikenessError as error:
            unreadable.append(str(error))
            continue
        photos.append(
            Photo(
                name=path.name,
                pixels=pixels,
                caption=read_caption(path.with_suffix(CAPTION_SUFFIX)),
                mask=read_mask(path.with_suffix(MASK_SUFFIX), pixels.shape[:2]),
                remarks=("its transparent parts were put on grey",) if was_transparent else (),
            )
        )
    return PhotoFolder(photos, unreadable)


def read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """(H, W, 3) uint8 RGB and whether parts were transparent; see `faces.photos.read_photo_file`."""
    picture = read_photo_file(path)
    return picture.rgb, picture.alpha is not None


def read_caption(path: Path) -> str | None:
    """The text of a caption file on one line; None where there is no file, or an empty one."""
    if not path.is_file():
        return None
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise LikenessError(f"The caption {path.name} is not UTF-8 text: save it as UTF-8.") from None
    if len(text) > LONGEST_CAPTION:
        raise LikenessError(f"The caption {path.name} has {len(text)} characters: a caption is a sentence or two.")
    return text or None


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) uint8, 255 on the face; None where there is no file. LikenessError when it is not `size` (H, W).

    How paint and transparency are read: `faces.photos.read_mask_file`.
    """
    if not path.is_file():
        return None
    mask = read_mask_file(path)
    if mask.shape != tuple(size):
        raise LikenessError(
            f"The mask {path.name} has {mask.shape[1]}x{mask.shape[0]} pixels and its picture {size[1]}x{size[0]}: "
            "paint it at the picture's size, or delete it."
        )
    return mask
