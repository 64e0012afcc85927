"""Files that are whole or not there: after a crash, a kill, a full disk, or with two processes after one name."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART = ".part"  # files under way: ".<name>.<process>-<random>.part", beside the file they become
_ABANDONED = 3600.0  # seconds without a write after which such a file belongs to a process that was killed
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside this one, which then takes its place: whole or not at all, and on the disk.

    What was there before stays where writing fails, with whatever `write` raises. The folder must exist.
    """
    with _written(file, write) as part:
        part.replace(file)


def write_new(folder: Path, stem: str, suffix: str, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a new file: `stem` + `suffix`, or `stem_2`, `stem_3`, … when names are taken; returns its path.

    The name is taken exclusively: another process that saves under the same name at the same moment gets the next one,
    and nothing is ever overwritten. Nothing lies under the final name until it is whole. The folder must exist.
    """
    with _written(folder / (stem + suffix), write) as part:
        for candidate in free_names(stem, suffix):
            file = folder / candidate
            try:
                _move_exclusively(part, file)
            except FileExistsError:
                continue
            return file
    raise AssertionError("names never run out")


def free_names(stem: str, suffix: str) -> Iterator[str]:
    """`stem` + `suffix`, then the numbered names that are tried when it is taken."""
    yield stem + suffix
    for number in itertools.count(2):
        yield f"{stem}_{number}{suffix}"


@contextmanager
def _written(file: Path, write: Callable[[Path], Any]) -> Iterator[Path]:
    """A file beside `file`, filled and on the disk, for the caller to move; it is gone afterwards."""
    start = f".{file.name[:50]}."  # file systems allow 255 bytes, and a letter may take four
    _sweep(file.parent, start)
    part = file.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        write(part)
        _to_disk(part, os.O_RDWR)
        yield part
        if os.name != "nt":  # Windows keeps folders itself
            _to_disk(file.parent, os.O_RDONLY)
    finally:
        part.unlink(missing_ok=True)


def _move_exclusively(part: Path, file: Path) -> None:
    """Give `part` the name `file`; FileExistsError when something has it."""
    if os.name == "nt":
        os.rename(part, file)  # refuses by itself
        return
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if file.exists():  # a file system without hard links: this look and the move are two steps
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file)) from None
        part.rename(file)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network folders that cannot
            raise
    finally:
        os.close(handle)


def _sweep(folder: Path, start: str) -> None:
    """Remove what killed processes left of the same file."""
    too_old = time.time() - _ABANDONED
    for entry in os.scandir(folder):
        if entry.name.startswith(start) and entry.name.endswith(PART):
            try:
                if entry.stat(follow_symlinks=False).st_mtime < too_old:
                    os.unlink(entry.path)
            except OSError:  # another process was faster, or may remove it itself
                continue
