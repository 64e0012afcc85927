"""The sentences for a file that is not there, or not what it should be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import LikenessError
from .content import is_lfs_pointer
from .registry import ModelFile


def missing(what: str, searched: Iterable[Path], models: Iterable[ModelFile], group: str = "") -> str:
    places = ", ".join(str(folder) for folder in searched)
    models = list(models)
    if not models:
        return f"{what}: looked in {places}; put the file there, or see `likeness models list` for known files."
    files = "; ".join(f"{model.filename} ({model.size})" for model in models)
    model = models[0]
    command = f"run `likeness models get {group or model.name}`, or take" if model.url else "take"
    return (
        f"{what} in {places}: {command} {files} from {model.source or 'its publisher'} and put it in "
        f"models/{model.folder} (licence: {model.licence}; commercial use: {model.commercial_use})."
    )


def must_be_readable(path: Path) -> None:
    """Raise LikenessError for a file that cannot be opened, and for the few lines that Git LFS leaves in its place."""
    try:
        is_pointer = is_lfs_pointer(path)
    except OSError as error:
        raise LikenessError(
            f"{path} cannot be read ({error.strerror}): allow reading it, or choose another file."
        ) from error
    if is_pointer:
        raise LikenessError(
            f"{path} is a Git LFS pointer, not the model itself: delete it and download the file (or run `git lfs "
            "pull`)."
        )
