"""Photos as nodes are given them: over sockets, several at a time, and in a folder that is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io

from ..errors import LikenessError
from ..faces import to_photos
from ..training.data.photo_files import files_below

DATASETS = Path("likeness") / "datasets"  # below ComfyUI's output
MORE_IMAGES = ("image_2", "image_3", "image_4")


def more_images() -> list[Any]:
    """Sockets for further photos, which need not have the size of the others."""
    return [
        io.Image.Input(name, optional=True, tooltip="Further photos, of any size; they count after those above.")
        for name in MORE_IMAGES
    ]


def connected(image: torch.Tensor | None, more: dict[str, torch.Tensor | None]) -> list[np.ndarray]:
    """The photos (H, W, 3) uint8 RGB of all sockets, in their order. more: what `more_images` were given."""
    batches = [image, *(more.get(name) for name in MORE_IMAGES)]
    return [photo for batch in batches if batch is not None for photo in to_photos(batch)]


def dataset_root() -> Path:
    """Where datasets are saved."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / DATASETS


def find_folder(name: str) -> Path:
    """The folder of this name below ComfyUI's input, output or saved datasets; LikenessError for any other.

    A full path will do when it leads into one of them. Links inside them are followed.
    """
    import folder_paths

    roots = [Path(folder_paths.get_input_directory()), dataset_root(), Path(folder_paths.get_output_directory())]
    inside = []
    for root in roots:
        path = Path(os.path.normpath(root / name.strip()))
        if path.is_relative_to(os.path.normpath(root)) and "\0" not in name:
            inside.append(path)
    if not inside:
        raise LikenessError(
            f"The folder {name!r} lies outside of ComfyUI's input and output folders: copy the photos into "
            f"{roots[0]} and name the folder there."
        )
    found = next((path for path in inside if _is_folder(path)), None)
    if found is None:
        raise LikenessError(
            f"The folder {name!r} was not found in {roots[0]}, nor among the datasets in {roots[1]}: put the photos "
            "into a folder there."
        )
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or no text
        return False


def find_photos(folder: str) -> Path | None:
    """The folder that is named, if one is; LikenessError when it is not there."""
    return find_folder(folder) if folder.strip() else None


def places_of(folder: Any) -> list[Path]:
    """The folder that is named, for `state_of`; one that does not exist where it is not there."""
    if not isinstance(folder, str) or not folder.strip():
        return []
    try:
        return [find_folder(folder)]
    except LikenessError:
        return [Path("missing")]


def state_of(places: Sequence[Path]) -> str:
    """Changes when a photo, a caption or a mask in one of these folders does; empty without folders."""
    if not places:
        return ""
    digest = hashlib.sha256()
    for path in _files(places):
        try:
            state = path.stat()
        except OSError:  # it is gone, or a link that leads nowhere
            continue
        digest.update(f"{path!r} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()


def _files(places: Iterable[Path]) -> Iterable[Path]:
    return (file for place in places for file in files_below(place))
