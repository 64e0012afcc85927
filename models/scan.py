"""Looking through folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath


def walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, links followed as ComfyUI does, hidden directories left out, in a stable order."""
    for directory, subdirectories, names in os.walk(folder, followlinks=True):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names))


def first_file(places: Iterable[Path], name: PurePosixPath) -> Path | None:
    return next((folder / name for folder in places if (folder / name).is_file()), None)


def onnx_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.onnx")) if folder.is_dir() else []
