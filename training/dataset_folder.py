"""A dataset on disk, for its user to look at and to edit:

    anna/dataset.json        what the pictures are; written by us, read back by us
    anna/001_photo.png       the picture
    anna/001_photo.txt       its caption: edit it
    anna/001_photo.mask.png  white on the face: paint it

A folder is written once and never again: what is in it belongs to the user. Deleting a picture takes it out.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LikenessError
from .captions import check_captions, fill
from .dataset import Dataset, DatasetKind, Sample
from .photo_files import CAPTION_SUFFIX, MASK_SUFFIX, picture_files, read_caption, read_mask, read_picture

INDEX = "dataset.json"
FORMAT, VERSION = "likeness.dataset", 1
NOTICE = "This folder holds photos of a person: share it only with that person's consent."


def place_for(root: Path, name: str, made_from: str) -> tuple[Path, bool]:
    """The folder of a dataset below `root`, and whether it is there already.

    That is `name`, or `name_2` ... when the name is taken by something that was not made from the same
    (`dataset.fingerprint`).
    """
    stem = safe_name(name)
    for number in itertools.count(1):
        folder = root / (stem if number == 1 else f"{stem}_{number}")
        if not folder.exists():
            return folder, False
        if _made_from(folder) == made_from:
            return folder, True
    raise AssertionError


def safe_name(name: str) -> str:
    """The name of a folder without spaces around it. LikenessError when it would lead elsewhere."""
    stem = name.strip()
    if not re.fullmatch(r"[^\\/:*?\"<>|\0]+", stem) or stem.startswith("."):
        raise LikenessError(f"The name {name!r} cannot be a folder's: use letters, digits, spaces, - and _.")
    return stem


def _made_from(folder: Path) -> str | None:
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8")).get("made from")
    except (OSError, ValueError, AttributeError):
        return None


def is_dataset(folder: Path) -> bool:
    """Whether `save_dataset` wrote this folder."""
    return (folder / INDEX).is_file()


def save_dataset(dataset: Dataset, folder: Path, made_from: str = "") -> Path:
    """Write a new folder, all at once or not at all. LikenessError when it exists or cannot be written."""
    from PIL import Image

    if folder.exists():
        raise LikenessError(f"The folder '{folder.name}' exists already: choose another name.")
    stems = [f"{number:03d}_{_plain(sample.name)}" for number, sample in enumerate(dataset.samples, 1)]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unfinished_", dir=folder.parent))
        for stem, sample in zip(stems, dataset.samples, strict=True):
            Image.fromarray(sample.pixels).save(temporary / f"{stem}.png")
            (temporary / f"{stem}{CAPTION_SUFFIX}").write_text(sample.caption + "\n", encoding="utf-8")
            if sample.mask is not None:
                Image.fromarray(sample.mask).save(temporary / f"{stem}{MASK_SUFFIX}")
        index = {
            "format": FORMAT,
            "version": VERSION,
            "notice": NOTICE,
            "made from": made_from,
            "kind": dataset.kind.value,
            "trigger": dataset.trigger,
            "class word": dataset.class_word,
            "left out": [{"photo": Path(p.name).name, "reasons": list(p.reasons)} for p in dataset.left_out],
            "samples": [_record(stem, sample) for stem, sample in zip(stems, dataset.samples, strict=True)],
        }
        (temporary / INDEX).write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
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


def _plain(name: str) -> str:
    stem = re.sub(r"[^\w-]+", "_", Path(name).stem).strip("_")
    return stem[:40] or "photo"


def _record(stem: str, sample: Sample) -> dict[str, Any]:
    return {
        "name": stem,
        "photo": Path(sample.name).name,
        "caption": sample.caption,
        "size": list(sample.pixels.shape[:2]),
        "original size": list(sample.original_size),
        "crop": list(sample.crop),
        "keypoints": None if sample.keypoints is None else sample.keypoints.tolist(),
        "remarks": list(sample.remarks),
    }


def load_dataset(folder: Path) -> Dataset:
    """Read a folder back with all that its user has edited.

    Pictures that were deleted are left out, captions that were deleted are as they were at first, masks that were
    deleted are missing. Raises LikenessError for a folder that is no dataset, damaged, empty, of a newer version, or
    whose pictures and masks do not fit each other.
    """
    index = _read_index(folder)
    trigger = str(index["trigger"])
    samples, remarks = [], []
    for photo in index.get("left out", ()):
        remarks.append(f"{photo['photo']}: left out when this was made, because {'; '.join(photo['reasons'])}")
    for record in index["samples"]:
        path = folder / f"{record['name']}.png"
        if not path.is_file():
            remarks.append(f"{path.name} was deleted and is not used")
            continue
        samples.append(_read_sample(path, record, trigger))
    known = {f"{record['name']}.png" for record in index["samples"]}
    added = [path.name for path in picture_files(folder) if path.name not in known]
    if added:
        remarks.append(f"{', '.join(added)} was put here later and is not used: make a new dataset with it")
    if not samples:
        raise LikenessError(f"The dataset '{folder.name}' has no pictures any more: make it again under a new name.")
    check_captions([(sample.name, sample.caption) for sample in samples], trigger)
    return Dataset(
        kind=DatasetKind(index["kind"]),
        trigger=trigger,
        class_word=str(index["class word"]),
        samples=tuple(samples),
        remarks=tuple(remarks),
        folder=folder.name,
    )


def _read_index(folder: Path) -> dict[str, Any]:
    if not is_dataset(folder):
        raise LikenessError(f"The folder '{folder.name}' is no dataset: it has no {INDEX}.")
    damaged = LikenessError(f"The file {INDEX} in '{folder.name}' is damaged: make the dataset again under a new name.")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise damaged
        version = int(index["version"])
        fits = (
            index["kind"] in [kind.value for kind in DatasetKind]
            and {"trigger", "class word"} <= set(index)
            and all(re.fullmatch(r"[\w-]+", record["name"]) and "caption" in record for record in index["samples"])
            and all(isinstance(photo["photo"], str) and list(photo["reasons"]) for photo in index.get("left out", ()))
            and all(len(record[key]) == 2 for record in index["samples"] for key in ("size", "original size", "crop"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged from None
    if version > VERSION:
        raise LikenessError(f"The dataset '{folder.name}' was written by a newer version: update this pack.")
    if not fits:
        raise damaged
    return index


def _read_sample(path: Path, record: dict[str, Any], trigger: str) -> Sample:
    pixels, _ = read_picture(path)
    height, width = pixels.shape[:2]
    if height % 8 or width % 8:
        raise LikenessError(
            f"{path.name} now has {width}x{height} pixels: keep the sides of a dataset's pictures multiples of 8."
        )
    caption = read_caption(path.with_suffix(CAPTION_SUFFIX)) or str(record["caption"])
    as_written = [height, width] == list(record["size"])
    keypoints = record.get("keypoints")
    return Sample(
        name=path.name,
        pixels=pixels,
        mask=read_mask(path.with_suffix(MASK_SUFFIX), (height, width)),
        caption=fill(caption, trigger),
        original_size=(int(record["original size"][0]), int(record["original size"][1])),
        crop=(int(record["crop"][0]), int(record["crop"][1])),
        keypoints=np.array(keypoints, np.float32) if keypoints and as_written else None,
        remarks=tuple(str(remark) for remark in record.get("remarks", ())),
    )
