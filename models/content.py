"""What a file is, by its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .progress import CHUNK, Progress

POINTER = b"version https://git-lfs.github.com/spec/v1"


def is_lfs_pointer(path: Path) -> bool:
    """Whether `path` is the few lines that Git LFS leaves in place of a large file."""
    if path.stat().st_size > 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def sha256(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file in hexadecimal."""
    hasher, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, size)
    return hasher.hexdigest()
