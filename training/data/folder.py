"""A dataset on disk, for its user to look at and to edit:

    anna/dataset.json        what the images are; written by us, read back by us
    anna/001_photo.png       the image
    anna/001_photo.txt       its caption: edit it
    anna/001_photo.mask.png  white on the face: paint it

A folder is written once and never again: what is in it belongs to the user. Deleting an image takes it out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import LikenessError
from ...faces.photo_list import list_photos, names_of, shown
from ...locks import owned, sweep
from ...storage import check_name, free_names, write_whole
from .captions import check_captions, check_trigger, fill_template
from .dataset import Dataset, DatasetKind, DatasetPicture
from .names import check_phrase
from .photo_files import CAPTION_SUFFIX, MASK_SUFFIX, MOST_REPEATS, read_caption, read_mask, read_picture

INDEX = "dataset.json"
UNFINISHED = ".unfinished_"  # folders of datasets that are being written; those of killed processes are removed
FORMAT, VERSION = "likeness.dataset", 1
NOTICE = "This folder holds photos of a person: share it only with that person's consent."


def place_for(root: Path, name: str, made_from: str) -> tuple[Path, bool]:
    """The folder of a dataset below `root`, and whether it is there already.

    That is `name`, or `name_2` ... when the name is taken by something that was not made from the same
    (`dataset.fingerprint`).
    """
    if root.is_dir():
        sweep(root, UNFINISHED)
    for candidate in free_names(safe_name(name), ""):
        folder = root / candidate
        if not os.path.lexists(folder):
            return folder, False
        if _made_from(folder) == made_from:
            return folder, True
    raise AssertionError


def safe_name(name: str) -> str:
    """The name of a folder without spaces around it. LikenessError when it would lead elsewhere, or be hidden."""
    stem = check_name(name.strip(), "The name")
    if stem.startswith("."):
        raise LikenessError(f"The name {name!r} starts with a dot, which hides a folder: leave the dot out.")
    return stem


def _made_from(folder: Path) -> str | None:
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8")).get("made from")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def is_dataset(folder: Path) -> bool:
    """Whether `save_dataset` wrote this folder."""
    return (folder / INDEX).is_file()


def save_dataset(dataset: Dataset, folder: Path, made_from: str = "") -> Path:
    """Write a new folder, all at once or not at all. LikenessError when it exists or cannot be written."""
    from PIL import Image

    if os.path.lexists(folder):
        raise LikenessError(f"The folder '{folder.name}' exists already: choose another name.")
    stems = [f"{number:03d}_{_plain(picture.name)}" for number, picture in enumerate(dataset.pictures, 1)]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, UNFINISHED)
        temporary = Path(tempfile.mkdtemp(prefix=owned(UNFINISHED), dir=folder.parent))
        for stem, picture in zip(stems, dataset.pictures, strict=True):
            write_whole(temporary / f"{stem}.png", partial(Image.fromarray(picture.pixels).save, format="png"))
            write_whole(temporary / f"{stem}{CAPTION_SUFFIX}", partial(_write_text, picture.caption + "\n"))
            if picture.mask is not None:
                write_whole(
                    temporary / f"{stem}{MASK_SUFFIX}", partial(Image.fromarray(picture.mask).save, format="png")
                )
        index = {
            "format": FORMAT,
            "version": VERSION,
            "notice": NOTICE,
            "made from": made_from,
            "kind": dataset.kind.value,
            "trigger": dataset.trigger,
            "class word": dataset.class_word,
            "left out": [{"photo": Path(p.name).name, "reasons": list(p.reasons)} for p in dataset.left_out],
            "samples": [_record(stem, picture) for stem, picture in zip(stems, dataset.pictures, strict=True)],
        }
        write_whole(temporary / INDEX, partial(_write_text, json.dumps(index, ensure_ascii=False, indent=1)))
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError as error:
        raise LikenessError(
            f"The dataset could not be written to {folder.name} ({error.strerror or error}): free some space or choose "
            "another place."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_text(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")


def _plain(name: str) -> str:
    stem = re.sub(r"[^\w-]+", "_", Path(name).stem).strip("_")
    return stem[:40] or "photo"


def _record(stem: str, picture: DatasetPicture) -> dict[str, Any]:
    return {
        "name": stem,
        "photo": Path(picture.name).name,
        "caption": picture.caption,
        "size": list(picture.pixels.shape[:2]),
        "original size": list(picture.original_size),
        "crop": list(picture.crop),
        "keypoints": None if picture.keypoints is None else picture.keypoints.tolist(),
        "remarks": list(picture.remarks),
        "repeats": picture.repeats,
        "captioned": picture.is_captioned,
    }


def load_dataset(folder: Path) -> Dataset:
    """Read a folder back with all that its user has edited.

    Images that were deleted are left out, captions that were deleted are as they were at first, masks that were
    deleted are missing. What is damaged in the index and decides nothing is set aside with a remark. Raises
    LikenessError for a folder that is not a dataset, damaged, empty, of a newer version, or whose images and masks do
    not fit each other.
    """
    index = _read_index(folder)
    pictures, remarks = [], list(index.remarks)
    there = list_photos(folder)
    for record in index.pictures:
        path = folder / f"{record.name}.png"
        if path not in there.photos:
            remarks.append(f"{path.name} was deleted and is not used")
            continue
        pictures.append(_read_sample(path, record, index.trigger))
    known = {f"{record.name}.png" for record in index.pictures}
    added = [path.name for path in there.photos if path.name not in known]
    if added:
        remarks.append(f"{names_of(added)} was put here later and is not used: make a new dataset with it")
    remarks += there.not_used
    if not pictures:
        raise LikenessError(f"The dataset '{folder.name}' has no images any more: make it again under a new name.")
    check_captions([(picture.name, picture.caption) for picture in pictures], index.trigger)
    return Dataset(
        kind=index.kind,
        trigger=index.trigger,
        class_word=index.class_word,
        pictures=tuple(pictures),
        remarks=tuple(remarks),
        folder=folder.name,
    )


@dataclass(frozen=True)
class _Record:
    """What the index says of an image."""

    name: str
    caption: str
    size: tuple[int, int]
    original_size: tuple[int, int]
    crop: tuple[int, int]
    keypoints: np.ndarray | None
    remarks: tuple[str, ...]
    repeats: int
    is_captioned: bool


@dataclass(frozen=True)
class _Index:
    """What the index says, checked. remarks: about what was left out, and about what of it is damaged."""

    kind: DatasetKind
    trigger: str
    class_word: str
    pictures: tuple[_Record, ...]
    remarks: tuple[str, ...]


def _read_index(folder: Path) -> _Index:
    if not is_dataset(folder):
        raise LikenessError(f"The folder '{folder.name}' is not a dataset: it has no {INDEX}.")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(index["format"])
        if _whole(index["version"]) > VERSION:
            raise LikenessError(f"The dataset '{folder.name}' was written by a newer version: update this pack.")
        remarks: list[str] = []
        records = tuple(_read_record(record, remarks) for record in index["samples"])
        kind, words = DatasetKind(index["kind"]), (_text(index["trigger"]), _text(index["class word"]))
        for photo in _or_nothing(index, "left out", list, remarks) or ():
            try:
                reasons = "; ".join(_text(reason) for reason in photo["reasons"])
                remarks.append(f"{_text(photo['photo'])}: left out when this was made, because {reasons}")
            except (ValueError, KeyError, TypeError):
                remarks.append(f"an entry of 'left out' in {INDEX} is damaged and is ignored")
    except LikenessError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise LikenessError(
            f"The file {INDEX} in '{folder.name}' is damaged: make the dataset again under a new name."
        ) from None
    return _Index(kind, check_trigger(words[0]), check_phrase(words[1], "The class word"), records, tuple(remarks))


def _read_record(record: Mapping[str, Any], remarks: list[str]) -> _Record:
    """Raises one of the errors of a wrong type or value for what decides; adds to the remarks for what does not."""
    name = _text(record["name"])
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(name)
    keypoints = None
    if record.get("keypoints") is not None:
        try:
            keypoints = np.array(record["keypoints"], np.float32)
            if keypoints.shape != (5, 2) or not np.isfinite(keypoints).all():
                raise ValueError(keypoints.shape)
        except (ValueError, TypeError, OverflowError):
            remarks.append(f"the keypoints of {name}.png in {INDEX} are damaged and not used")
            keypoints = None
    said = _or_nothing(record, "remarks", list, remarks) or []
    repeats = record.get("repeats", 1)
    return _Record(
        name,
        _text(record["caption"]),
        *(_pair(record[key]) for key in ("size", "original size", "crop")),
        keypoints=keypoints,
        remarks=tuple(shown(remark) for remark in said if isinstance(remark, str)),
        repeats=min(max(_whole(repeats), 1), MOST_REPEATS),
        is_captioned=record.get("captioned") is True,
    )


def _or_nothing(record: Mapping[str, Any], key: str, kind: type, remarks: list[str]) -> Any:
    """An entry that decides nothing; None, with a remark, when it is not what it should be."""
    value = record.get(key)
    if value is not None and not isinstance(value, kind):
        remarks.append(f"{key!r} in {INDEX} is damaged and is ignored")
        return None
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()  # JSON may hold characters that are not text
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(value)
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _whole(first), _whole(second)


def _read_sample(path: Path, record: _Record, trigger: str) -> DatasetPicture:
    pixels, _ = read_picture(path)
    height, width = pixels.shape[:2]
    if height % 8 or width % 8:
        raise LikenessError(
            f"{path.name} now has {width}x{height} pixels: keep the sides of a dataset's images multiples of 8."
        )
    caption, mask = read_caption(path.with_suffix(CAPTION_SUFFIX)) or record.caption, path.with_suffix(MASK_SUFFIX)
    return DatasetPicture(
        name=path.name,
        pixels=pixels,
        mask=read_mask(mask, (height, width)) if mask.is_file() else None,
        caption=fill_template(caption, trigger),
        original_size=record.original_size,
        crop=record.crop,
        keypoints=record.keypoints if (height, width) == record.size else None,
        remarks=record.remarks,
        repeats=record.repeats,
        is_captioned=record.is_captioned or caption != record.caption,
    )
